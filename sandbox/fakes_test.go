package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/keeper"
	"github.com/gantry-cri/gantry/sandbox/keeper/pins"
)

// fakeKeeper answers the keeper's protocol on the real socket with processes of the host, so that everything but the
// containers is real: records, descriptors, signals, exits.
type fakeKeeper struct {
	t     *testing.T
	state string

	mu       sync.Mutex
	procs    map[string]*fakeProcess
	watchers map[chan keeper.WatchEvent]bool
	deleted  []string
	updated  []keeper.UpdateRequest
	// profiles counts how often it was told of a seccomp profile.
	profiles int
	startErr error
	// beforeReply runs after a process has started and before the answer to the start.
	beforeReply func(id string)
	// command is what a start runs.
	command []string
	// hello is who the keeper says it is; shutdown, if not nil, is called when it is told to end.
	hello    keeper.HelloReply
	shutdown func()
}

type fakeProcess struct {
	dir  string
	cmd  *exec.Cmd
	done chan struct{}
}

func newFakeKeeper(t *testing.T, state string) *fakeKeeper {
	t.Helper()
	k := &fakeKeeper{t: t, state: state, procs: map[string]*fakeProcess{}, watchers: map[chan keeper.WatchEvent]bool{},
		command: []string{"sleep", "1000"},
		hello:   keeper.HelloReply{Protocol: keeper.ProtocolVersion, Build: "fake", PID: os.Getpid(), Settled: true}}
	if err := os.MkdirAll(filepath.Join(state, "keeper"), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := keeper.Listen(state)
	if err != nil {
		t.Fatal(err)
	}
	go keeper.Serve(l, map[keeper.Verb]keeper.Handler{
		keeper.VerbHello: func(_ context.Context, c *keeper.Call) error {
			k.mu.Lock()
			defer k.mu.Unlock()
			return c.Reply(k.hello)
		},
		keeper.VerbExpect: k.expect,
		keeper.VerbStart:  k.start,
		keeper.VerbKill:   k.kill,
		keeper.VerbDelete: k.delete,
		keeper.VerbUpdate: k.update,
		keeper.VerbWatch:  k.watch,
		keeper.VerbShutdown: func(_ context.Context, c *keeper.Call) error {
			k.mu.Lock()
			defer k.mu.Unlock()
			if k.shutdown != nil {
				k.shutdown()
			}
			return c.Reply(struct{}{})
		},
	}, func(err error) { t.Log("fake keeper:", err) })
	t.Cleanup(func() {
		_ = l.Close()
		for _, p := range k.live() {
			_ = p.cmd.Process.Kill()
			<-p.done
		}
	})
	return k
}

func (k *fakeKeeper) expect(_ context.Context, c *keeper.Call) error {
	var req keeper.ExpectRequest
	if err := c.Decode(&req); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if req.Seccomp != nil {
		k.profiles++
	}
	return c.Reply(struct{}{})
}

// behave changes how the keeper behaves.
func (k *fakeKeeper) behave(change func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change()
}

func (k *fakeKeeper) live() map[string]*fakeProcess {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := map[string]*fakeProcess{}
	for id, p := range k.procs {
		out[id] = p
	}
	return out
}

func (k *fakeKeeper) start(_ context.Context, c *keeper.Call) error {
	var req keeper.StartRequest
	if err := c.Decode(&req); err != nil {
		return err
	}
	k.mu.Lock()
	startErr, command, beforeReply := k.startErr, k.command, k.beforeReply
	k.mu.Unlock()
	if startErr != nil {
		_ = keeper.WriteStatus(req.Dir, &keeper.Status{ExitCode: 128, Finished: time.Now(), Error: startErr.Error()})
		return keeper.Errorf(keeper.KindStart, "%v", startErr)
	}
	cmd := exec.Command(command[0], command[1:]...)
	if err := cmd.Start(); err != nil {
		return err
	}
	p := &fakeProcess{dir: req.Dir, cmd: cmd, done: make(chan struct{})}
	status := &keeper.Status{PID: cmd.Process.Pid, Started: time.Now(), User: keeper.ResolvedUser{UID: 7, GID: 8, Groups: []uint32{8, 9}}}
	if err := keeper.WriteStatus(req.Dir, status); err != nil {
		return err
	}
	pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(pidfd), "pidfd")
	defer f.Close()
	k.mu.Lock()
	k.procs[req.ID] = p
	k.mu.Unlock()
	go k.wait(req.ID, p, status)
	if beforeReply != nil {
		beforeReply(req.ID)
	}
	return c.Reply(keeper.StartReply{PID: status.PID, Started: status.Started, User: status.User}, f)
}

func (k *fakeKeeper) wait(id string, p *fakeProcess, status *keeper.Status) {
	_ = p.cmd.Wait()
	exited := *status
	exited.Finished = time.Now()
	ws := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	exited.ExitCode = int32(ws.ExitStatus())
	if ws.Signaled() {
		exited.ExitCode = 128 + int32(ws.Signal())
	}
	_ = keeper.WriteStatus(p.dir, &exited)
	k.mu.Lock()
	delete(k.procs, id)
	for w := range k.watchers {
		w <- keeper.WatchEvent{Exited: &keeper.WatchExit{ID: id, Status: exited}}
	}
	k.mu.Unlock()
	close(p.done)
}

func (k *fakeKeeper) kill(_ context.Context, c *keeper.Call) error {
	var req keeper.KillRequest
	if err := c.Decode(&req); err != nil {
		return err
	}
	p := k.live()[req.ID]
	if p == nil {
		return c.Reply(struct{}{})
	}
	sig := syscall.Signal(req.Signal)
	if req.All {
		sig = syscall.SIGKILL
	}
	_ = p.cmd.Process.Signal(sig)
	return c.Reply(struct{}{})
}

func (k *fakeKeeper) delete(_ context.Context, c *keeper.Call) error {
	var req keeper.DeleteRequest
	if err := c.Decode(&req); err != nil {
		return err
	}
	k.mu.Lock()
	k.deleted = append(k.deleted, req.ID)
	k.mu.Unlock()
	return c.Reply(struct{}{})
}

func (k *fakeKeeper) update(_ context.Context, c *keeper.Call) error {
	var req keeper.UpdateRequest
	if err := c.Decode(&req); err != nil {
		return err
	}
	k.mu.Lock()
	k.updated = append(k.updated, req)
	k.mu.Unlock()
	return c.Reply(struct{}{})
}

func (k *fakeKeeper) watch(ctx context.Context, c *keeper.Call) error {
	events := make(chan keeper.WatchEvent, 100)
	k.mu.Lock()
	k.watchers[events] = true
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		delete(k.watchers, events)
		k.mu.Unlock()
	}()
	for id, p := range k.live() {
		fd, err := unix.PidfdOpen(p.cmd.Process.Pid, 0)
		if err != nil {
			continue
		}
		f := os.NewFile(uintptr(fd), "pidfd")
		err = c.Reply(keeper.WatchEvent{Live: &keeper.WatchLive{ID: id, PID: p.cmd.Process.Pid}}, f)
		_ = f.Close()
		if err != nil {
			return err
		}
	}
	if err := c.Reply(keeper.WatchEvent{Synced: true}); err != nil {
		return err
	}
	for {
		select {
		case e := <-events:
			if err := c.Reply(e); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// fakeImages has one image.
type fakeImages struct {
	mu       sync.Mutex
	prepared map[string]bool
	err      error
	retained []string
}

func (i *fakeImages) Prepare(_ context.Context, id, image string) ([]specs.Mount, *ocispec.Image, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.err != nil {
		return nil, nil, i.err
	}
	i.prepared[id] = true
	img := &ocispec.Image{}
	img.Config.Cmd = []string{"sh"}
	img.Config.StopSignal = "SIGTERM"
	return []specs.Mount{{Type: "bind", Source: "/", Options: []string{"rbind", "ro"}}}, img, nil
}

func (i *fakeImages) PrepareVolume(_ context.Context, id, image, sub string) (specs.Mount, string, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if image != "data" || !i.prepared[id] {
		return specs.Mount{}, "", fmt.Errorf("image %q: %w", image, errdefs.ErrNotFound)
	}
	return specs.Mount{Type: "overlay", Source: "overlay", Options: []string{"ro", "lowerdir=/l/" + sub}}, "data@sha256:1", nil
}

func (i *fakeImages) Release(_ context.Context, id string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.prepared, id)
	return nil
}

func (i *fakeImages) Retain(_ context.Context, ids []string) error {
	i.retained = ids
	return nil
}

// fakeNetwork attaches by writing down; attach and detach can be made to fail or to block.
type fakeNetwork struct {
	mu        sync.Mutex
	attached  map[string]string
	attaches  int
	attachErr error
	detachErr error
	// block, when not nil, keeps Attach until it is closed or the context ends.
	block chan struct{}
}

func (n *fakeNetwork) set(attach, detach error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.attachErr, n.detachErr = attach, detach
}

func (n *fakeNetwork) Attach(ctx context.Context, id, netns string, _ *runtime.PodSandboxConfig) ([]string, error) {
	n.mu.Lock()
	n.attaches++
	n.attached[id] = netns
	err, block := n.attachErr, n.block
	n.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err != nil {
		return nil, err
	}
	return []string{"10.1.2.3", "fd00::3"}, nil
}

func (n *fakeNetwork) Detach(_ context.Context, id, _ string, _ *runtime.PodSandboxConfig) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.detachErr != nil {
		return n.detachErr
	}
	delete(n.attached, id)
	return nil
}

func (n *fakeNetwork) Retain(context.Context, []string) error { return nil }

// rig is a Manager on fakes.
type rig struct {
	t       *testing.T
	config  Config
	keeper  *fakeKeeper
	images  *fakeImages
	network *fakeNetwork
	m       *Manager
}

func newRig(t *testing.T) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces and mounts are made")
	}
	dir := t.TempDir()
	r := &rig{t: t, images: &fakeImages{prepared: map[string]bool{}}, network: &fakeNetwork{attached: map[string]string{}}}
	r.config = Config{
		Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), CgroupDriver: DriverCgroupfs,
		CgroupParent: "/gantry-unit", Keeper: "/nonexistent", Build: "fake", Images: r.images, Network: r.network,
	}
	r.keeper = newFakeKeeper(t, r.config.State)
	r.open()
	t.Cleanup(func() {
		for _, s := range r.m.Sandboxes() {
			r.network.set(nil, nil)
			if err := r.m.Remove(context.Background(), s.ID); err != nil {
				t.Errorf("remove %s: %v", s.ID, err)
			}
		}
		r.close()
	})
	return r
}

func (r *rig) open() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	m, err := Open(ctx, r.config)
	if err != nil {
		r.t.Fatal(err)
	}
	r.m = m
}

func (r *rig) close() {
	r.t.Helper()
	if err := r.m.Close(context.Background()); err != nil {
		r.t.Error(err)
	}
}

// restart is what a killed and restarted daemon sees.
func (r *rig) restart() {
	r.t.Helper()
	r.close()
	r.open()
}

func podConfig(name string) *runtime.PodSandboxConfig {
	return &runtime.PodSandboxConfig{
		Metadata:    &runtime.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name, Attempt: 1},
		Hostname:    "host-" + name,
		Labels:      map[string]string{"a": "b"},
		Annotations: map[string]string{"weird/ünicode": "x\ny"},
		Linux:       &runtime.LinuxPodSandboxConfig{},
	}
}

func containerConfig(name string) *runtime.ContainerConfig {
	return &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name},
		Image:    &runtime.ImageSpec{Image: "sha256:feed", UserSpecifiedImage: "example/image"},
		Command:  []string{"sleep", "1000"},
		Labels:   map[string]string{"c": "d"},
		Linux: &runtime.LinuxContainerConfig{
			Resources: &runtime.LinuxContainerResources{CpuShares: 100, MemoryLimitInBytes: 64 << 20},
			SecurityContext: &runtime.LinuxContainerSecurityContext{
				NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER},
			},
		},
	}
}

func (r *rig) run(name string) string {
	r.t.Helper()
	id, err := r.m.Run(context.Background(), podConfig(name), "")
	if err != nil {
		r.t.Fatal(err)
	}
	return id
}

func (r *rig) create(sandboxID, name string) string {
	r.t.Helper()
	id, err := r.m.CreateContainer(context.Background(), sandboxID, containerConfig(name), "sha256:feed", "example/image@sha256:beef")
	if err != nil {
		r.t.Fatal(err)
	}
	return id
}

func (r *rig) start(id string) {
	r.t.Helper()
	if err := r.m.StartContainer(context.Background(), id); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) containerState(id string) ContainerState {
	r.t.Helper()
	st, err := r.m.Container(id)
	if err != nil {
		r.t.Fatal(err)
	}
	return st.State
}

// nothingLeft checks that a removed sandbox left nothing: no record, no pin, no attachment, no snapshot.
func (r *rig) nothingLeft() {
	r.t.Helper()
	for _, dir := range []string{filepath.Join(r.config.Root, sandboxesDir), r.m.pinsDir()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			r.t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() == pins.Anchor {
				continue
			}
			r.t.Errorf("left behind: %s/%s", dir, e.Name())
		}
	}
	if len(r.network.attached) > 0 {
		r.t.Errorf("attachments left behind: %v", r.network.attached)
	}
	if len(r.images.prepared) > 0 {
		r.t.Errorf("snapshots left behind: %v", r.images.prepared)
	}
	if len(r.m.Sandboxes()) > 0 || len(r.m.Containers()) > 0 {
		r.t.Errorf("still listed: %v, %v", r.m.Sandboxes(), r.m.Containers())
	}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("not in time: %s", what)
}

var errPlugin = errors.New("plugin says no")
