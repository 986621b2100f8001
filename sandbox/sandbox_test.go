package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/keeper/pins"
	"github.com/gantry-cri/gantry/sandbox/namespace"
)

func TestRunGivesAReadySandbox(t *testing.T) {
	r := newRig(t)
	id := r.run("a")
	st, err := r.m.Sandbox(id[:8])
	if err != nil {
		t.Fatal(err)
	}
	if st.ID != id || st.State != SandboxReady || st.IPs[0] != "10.1.2.3" || !proto.Equal(st.Config, podConfig("a")) {
		t.Errorf("status %+v", st)
	}
	if !pins.Alive(st.NetNS) || st.CgroupParent != "/gantry-unit/"+id {
		t.Errorf("netns %s, cgroup parent %s", st.NetNS, st.CgroupParent)
	}
	link, err := os.Readlink("/run/netns/gantry-" + id[:12])
	if err != nil || link != st.NetNS {
		t.Errorf("ip netns sees %q (%v), expected %q", link, err, st.NetNS)
	}
	if err := r.m.Remove(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	r.nothingLeft()
	if _, err := os.Lstat("/run/netns/gantry-" + id[:12]); err == nil {
		t.Error("the link for ip netns is still there")
	}
}

// TestAnnouncedNamespacesCanBeEntered closes the daemon: what it leaves in /run/netns leads somewhere without it, or is gone.
func TestAnnouncedNamespacesCanBeEntered(t *testing.T) {
	for _, plugins := range []bool{false, true} {
		r := newRig(t)
		r.config.Plugins = plugins
		r.restart()
		id := r.run("a")
		link := "/run/netns/gantry-" + id[:12]
		r.close()
		_, err := os.Lstat(link)
		if plugins && !pins.Alive(link) {
			t.Errorf("a network made by plugins cannot be entered while no daemon runs: %v", err)
		}
		if !plugins && !os.IsNotExist(err) {
			t.Errorf("the link of a namespace that only the daemon could show is still there: %v", err)
		}
		r.open()
		if !pins.Alive(link) {
			t.Errorf("with plugins %v the next daemon does not announce the namespace", plugins)
		}
	}
}

func TestTheSameRunTwiceAtOnceGivesOneSandbox(t *testing.T) {
	r := newRig(t)
	r.network.block = make(chan struct{})
	var ids [8]string
	var errs [8]error
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() { ids[i], errs[i] = r.m.Run(context.Background(), podConfig("a"), "") })
	}
	time.Sleep(20 * time.Millisecond)
	close(r.network.block)
	wg.Wait()
	for i := range ids {
		if errs[i] != nil || ids[i] != ids[0] {
			t.Errorf("call %d: %s, %v; expected %s", i, ids[i], errs[i], ids[0])
		}
	}
	if r.network.attaches != 1 || len(r.m.Sandboxes()) != 1 {
		t.Errorf("%d attaches, %d sandboxes, expected one of each", r.network.attaches, len(r.m.Sandboxes()))
	}
}

func TestRunAgainAfterTheClientGaveUpJoins(t *testing.T) {
	r := newRig(t)
	r.network.block = make(chan struct{})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if _, err := r.m.Run(ctx, podConfig("a"), ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v, expected the client's deadline", err)
	}
	if n := len(r.m.Sandboxes()); n != 0 {
		t.Errorf("%d sandboxes listed while it is made, expected none", n)
	}
	close(r.network.block)
	r.run("a")
	if r.network.attaches != 1 || len(r.m.Sandboxes()) != 1 {
		t.Errorf("%d attaches, %d sandboxes, expected one of each", r.network.attaches, len(r.m.Sandboxes()))
	}
}

func TestRunWithAnotherConfigurationOfTheSameNameIsRefused(t *testing.T) {
	r := newRig(t)
	id := r.run("a")
	other := podConfig("a")
	other.Hostname = "other"
	if _, err := r.m.Run(context.Background(), other, ""); !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), id) {
		t.Errorf("got %v, expected 'already exists' with the id", err)
	}
	if err := r.m.Stop(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	if again, err := r.m.Run(context.Background(), other, ""); err != nil || again == id {
		t.Errorf("after the stop: %s, %v; expected a new sandbox", again, err)
	}
}

func TestRunThatFailsLeavesNothingAndARetryWorks(t *testing.T) {
	r := newRig(t)
	r.network.set(errPlugin, nil)
	if _, err := r.m.Run(context.Background(), podConfig("a"), ""); !errors.Is(err, errPlugin) {
		t.Fatalf("got %v, expected the plugin's error", err)
	}
	r.nothingLeft()
	r.network.set(nil, nil)
	r.run("a")
}

func TestRunThatCannotBeUndoneStaysListedUntilItCan(t *testing.T) {
	r := newRig(t)
	r.network.set(errPlugin, errPlugin)
	if _, err := r.m.Run(context.Background(), podConfig("a"), ""); err == nil {
		t.Fatal("no error")
	}
	list := r.m.Sandboxes()
	if len(list) != 1 || list[0].State == SandboxReady {
		t.Fatalf("listed: %+v, expected one that is not ready", list)
	}
	if err := r.m.Stop(context.Background(), list[0].ID); !errors.Is(err, errPlugin) {
		t.Errorf("stop: %v, expected the plugin's error so that it is retried", err)
	}
	r.network.set(nil, nil)
	if err := r.m.Remove(context.Background(), list[0].ID); err != nil {
		t.Fatal(err)
	}
	r.nothingLeft()
}

func TestStopEndsASandboxThatIsBeingMade(t *testing.T) {
	r := newRig(t)
	r.network.block = make(chan struct{}) // never closed
	result := make(chan error, 1)
	go func() {
		_, err := r.m.Run(context.Background(), podConfig("a"), "")
		result <- err
	}()
	var id string
	eventually(t, "the sandbox is being made", func() bool {
		r.m.mu.RLock()
		defer r.m.mu.RUnlock()
		for id = range r.m.sandboxes {
		}
		r.network.mu.Lock()
		defer r.network.mu.Unlock()
		return r.network.attaches == 1
	})
	if err := r.m.Stop(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	if err := <-result; !errdefs.IsFailedPrecondition(err) {
		t.Errorf("run: %v, expected 'stopped while it was made'", err)
	}
	r.nothingLeft()
}

func TestStopIsIdempotentAndUnknownIsNoError(t *testing.T) {
	r := newRig(t)
	id := r.run("a")
	for range 3 {
		if err := r.m.Stop(context.Background(), id); err != nil {
			t.Fatal(err)
		}
	}
	if st, _ := r.m.Sandbox(id); st.State != SandboxStopped {
		t.Errorf("state %s, expected stopped", st.State)
	}
	if err := r.m.Stop(context.Background(), "feedbeef"); err != nil {
		t.Errorf("stop of an unknown sandbox: %v", err)
	}
	if err := r.m.Remove(context.Background(), "feedbeef"); err != nil {
		t.Errorf("remove of an unknown sandbox: %v", err)
	}
}

func TestRestartKeepsSandboxes(t *testing.T) {
	r := newRig(t)
	ready, stopped := r.run("ready"), r.run("stopped")
	if err := r.m.Stop(context.Background(), stopped); err != nil {
		t.Fatal(err)
	}
	before, _ := r.m.Sandbox(ready)
	r.restart()
	after, err := r.m.Sandbox(ready)
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(before.Config, after.Config) {
		t.Errorf("configuration changed: %v, was %v", after.Config, before.Config)
	}
	if after.State != before.State || after.NetNS != before.NetNS || strings.Join(after.IPs, " ") != strings.Join(before.IPs, " ") ||
		!after.Created.Equal(before.Created) || after.CgroupParent != before.CgroupParent {
		t.Errorf("status %+v, was %+v", after, before)
	}
	if st, _ := r.m.Sandbox(stopped); st.State == SandboxReady {
		t.Errorf("stopped sandbox is %s", st.State)
	}
	if again, err := r.m.Run(context.Background(), podConfig("ready"), ""); err != nil || again != ready {
		t.Errorf("run after the restart: %s, %v; expected to join %s", again, err, ready)
	}
}

func TestRecoveryRemovesWhatWasNeverComplete(t *testing.T) {
	r := newRig(t)
	id := r.run("a")
	s, _ := r.m.findSandbox(id)
	if err := s.save(s.Status(), false, false); err != nil { // as a daemon killed before CNI ADD came back
		t.Fatal(err)
	}
	r.restart()
	eventually(t, "the half-made sandbox is gone", func() bool { return len(r.m.Sandboxes()) == 0 })
	r.nothingLeft()
}

func TestRecoveryCompletesAStopThatWasBegun(t *testing.T) {
	r := newRig(t)
	id := r.run("a")
	s, _ := r.m.findSandbox(id)
	if err := s.save(s.Status(), true, true); err != nil {
		t.Fatal(err)
	}
	r.restart()
	eventually(t, "the stop is complete", func() bool {
		st, err := r.m.Sandbox(id)
		return err == nil && st.State == SandboxStopped
	})
	if len(r.network.attached) != 0 {
		t.Error("the network is still attached")
	}
}

func TestRecoveryAfterARebootStopsSandboxesAndDetaches(t *testing.T) {
	r := newRig(t)
	id := r.run("a")
	s, _ := r.m.findSandbox(id)
	r.m.bootID = "another boot" // what the record is stamped with
	if err := s.save(s.Status(), true, false); err != nil {
		t.Fatal(err)
	}
	if err := namespace.Remove(r.m.pinDir(id)); err != nil {
		t.Fatal(err)
	}
	r.restart()
	if st, err := r.m.Sandbox(id); err != nil || st.State == SandboxReady {
		t.Errorf("%+v, %v; expected a sandbox that is listed and not ready", st, err)
	}
	eventually(t, "the network is detached", func() bool {
		r.network.mu.Lock()
		defer r.network.mu.Unlock()
		return len(r.network.attached) == 0
	})
}

func TestUnreadableRecordsAreListedAndRemovable(t *testing.T) {
	r := newRig(t)
	id := r.run("a")
	cid := r.create(id, "c")
	for _, path := range []string{
		filepath.Join(r.m.sandboxDir(id), sandboxRecord),
		filepath.Join(r.m.containerDir(id, cid), containerRecord),
	} {
		if err := os.WriteFile(path, []byte(`{"version":1,"conf`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.restart()
	st, err := r.m.Sandbox(id)
	if err != nil || st.State != SandboxUnknown || st.Created.IsZero() || st.Config.GetMetadata().GetName() == "" {
		t.Errorf("sandbox %+v, %v; expected unknown with metadata", st, err)
	}
	if r.containerState(cid) != ContainerUnknown {
		t.Errorf("container is %s, expected unknown", r.containerState(cid))
	}
	if err := r.m.Remove(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	r.nothingLeft()
}

func TestBadSandboxConfigurationsAreRefused(t *testing.T) {
	r := newRig(t)
	for field, change := range map[string]func(*runtime.PodSandboxConfig){
		"metadata.name":      func(c *runtime.PodSandboxConfig) { c.Metadata.Name = "" },
		"metadata.namespace": func(c *runtime.PodSandboxConfig) { c.Metadata = &runtime.PodSandboxMetadata{Name: "x", Uid: "y"} },
		"metadata.uid":       func(c *runtime.PodSandboxConfig) { c.Metadata.Uid = "" },
		"hostname":           func(c *runtime.PodSandboxConfig) { c.Hostname = strings.Repeat("h", 65) },
		`hostname "a`:        func(c *runtime.PodSandboxConfig) { c.Hostname = "a\x00b" },
		`cgroup_parent "\n"`: func(c *runtime.PodSandboxConfig) { c.Linux.CgroupParent = "\n" },
		"log_directory":      func(c *runtime.PodSandboxConfig) { c.LogDirectory = "relative" },
		"cgroup_parent":      func(c *runtime.PodSandboxConfig) { c.Linux.CgroupParent = "/a/../../b" },
		"kernel.panic":       func(c *runtime.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"kernel.panic": "1"} },
		"userns_options": func(c *runtime.PodSandboxConfig) {
			c.Linux.SecurityContext = &runtime.LinuxSandboxSecurityContext{NamespaceOptions: &runtime.NamespaceOption{
				UsernsOptions: &runtime.UserNamespace{Mode: runtime.NamespaceMode_POD},
			}}
		},
		"namespace_options.network": func(c *runtime.PodSandboxConfig) {
			c.Linux.SecurityContext = &runtime.LinuxSandboxSecurityContext{NamespaceOptions: &runtime.NamespaceOption{Network: 9}}
		},
		"run_as_group": func(c *runtime.PodSandboxConfig) {
			c.Linux.SecurityContext = &runtime.LinuxSandboxSecurityContext{RunAsGroup: &runtime.Int64Value{Value: 1}}
		},
	} {
		t.Run(field, func(t *testing.T) {
			c := podConfig("bad")
			change(c)
			_, err := r.m.Run(context.Background(), c, "")
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), field) {
				t.Errorf("got %v, expected an invalid argument that names %s", err, field)
			}
			r.nothingLeft()
		})
	}
	if _, err := r.m.Run(context.Background(), nil, ""); !errdefs.IsInvalidArgument(err) {
		t.Errorf("nil configuration: %v", err)
	}
}
