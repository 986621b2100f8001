//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// checkpoint captures containers of a pod.
func (p *pod) checkpoint(t *testing.T, path string, containers ...*container) error {
	t.Helper()
	request := &runtime.CheckpointPodRequest{PodSandboxId: p.id, OutputPath: path}
	for _, c := range containers {
		request.ContainerIds = append(request.ContainerIds, c.id)
	}
	_, err := p.node.Runtime.CheckpointPod(timeout(t), request)
	return err
}

// restore restores a pod as another one of the same node, whose configuration and containers' are as of this one but
// for what change does.
func (p *pod) restore(t *testing.T, path string, containers []*container, change func(*runtime.RestorePodRequest)) (*pod, []*container, error) {
	t.Helper()
	config := proto.CloneOf(p.config)
	config.Metadata.Uid += "-restored"
	config.LogDirectory += "-restored"
	config.Linux.CgroupParent += "-restored"
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		t.Fatal(err)
	}
	request := &runtime.RestorePodRequest{CheckpointPath: path, Config: config}
	for _, c := range containers {
		request.ContainerConfigs = append(request.ContainerConfigs, proto.CloneOf(c.config))
	}
	if change != nil {
		change(request)
	}
	response, err := p.node.Runtime.RestorePod(timeout(t), request)
	if err != nil {
		return nil, nil, err
	}
	q := &pod{node: p.node, id: response.PodSandboxId, config: request.Config}
	t.Cleanup(func() { q.remove(t) })
	var restored []*container
	for i, r := range response.RestoredContainers {
		config := request.ContainerConfigs[i]
		wantEqual(t, "name", r.Name, config.Metadata.Name)
		restored = append(restored, &container{
			pod: q, id: r.ContainerId, config: config, logPath: filepath.Join(q.config.LogDirectory, config.LogPath),
		})
	}
	return q, restored, nil
}

// tree is all that is in a directory, with sizes and times.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			fmt.Fprintln(&b, path, info.Mode(), info.Size(), info.ModTime())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func (c *container) last(t *testing.T) int {
	t.Helper()
	list := c.numbers(t)
	return list[len(list)-1]
}

func TestRestoredPodGoesOn(t *testing.T) {
	needCRIU(t)
	p := runPod(t)
	counter := p.start(t, "counter", "echo kept > /tmp/file; rm /etc/passwd; "+counterScript)
	other := p.start(t, "other", `exec 3>/tmp/open; i=1000; while :; do i=$((i+1)); echo $i; echo $i >&3; usleep 10000; done`)
	counter.waitLog(t, "5")
	other.waitLog(t, "1005")
	dir := t.TempDir()
	containers := []*container{counter, other}
	if err := p.checkpoint(t, dir, containers...); err != nil {
		t.Fatal(err)
	}
	for _, c := range containers {
		c.counts(t)
		if err := c.stop(t, 0); err != nil {
			t.Fatal(err)
		}
	}
	ip := p.ip(t)
	before := tree(t, dir)
	q, restored, err := p.restore(t, dir, containers, nil)
	if err != nil {
		t.Fatal(err)
	}
	if q.ip(t) == ip {
		t.Errorf("the restored pod has the address %s of the first one, which has it still", ip)
	}
	for i, c := range restored {
		wantEqual(t, "state", c.status(t).State, runtime.ContainerState_CONTAINER_CREATED)
		if pids := processesWith(t, c.id); len(pids) > 0 {
			t.Errorf("container %s has processes before its start: %v", c.config.Metadata.Name, pids)
		}
		if err := c.start(t); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the log has lines", func() bool { return len(readLog(t, c.logPath)) > 0 })
		c.counts(t)
		if first, last := c.numbers(t)[0], containers[i].last(t); first < 5 || first > last || first > 1000 && first < 1005 {
			t.Errorf("the counter goes on at %d; the first one counted to %d", first, last)
		}
		wantEqual(t, "state", c.status(t).State, runtime.ContainerState_CONTAINER_RUNNING)
	}
	wantEqual(t, "checkpoint", tree(t, dir), before)
	wantEqual(t, "files", restored[0].exec(t, "cat /tmp/file; ls /etc/passwd 2>&1; true"), "kept\nls: /etc/passwd: No such file or directory")
	if out := restored[0].exec(t, "ip -4 addr show eth0"); !strings.Contains(out, q.ip(t)+"/") {
		t.Errorf("the restored pod's address is %s, its container has %s", q.ip(t), out)
	}
	wantEqual(t, "clocks of an exec", restored[0].exec(t, "readlink /proc/self/ns/time"), restored[0].exec(t, "readlink /proc/1/ns/time"))
	if err := restored[0].stop(t, 0); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "exit code", restored[0].status(t).ExitCode, 137)
	// The second one is there for a restart of the keeper.
	old := keeperPID(t, q.node)
	killKeeper(t, q.node)
	awaitKeeper(t, q.node, old)
	restored[1].counts(t)
}

// TestCheckpointOfAPodIsOneMoment has two containers that tell each other where they are.
func TestCheckpointOfAPodIsOneMoment(t *testing.T) {
	needCRIU(t)
	p := runPod(t)
	script := `i=0; while :; do i=$((i+1)); echo $i > /tmp/count; echo $i; done`
	a, b := p.start(t, "a", script), p.start(t, "b", script)
	a.waitLog(t, "50")
	b.waitLog(t, "50")
	// Who looks has to get the processor while they are frozen: on a busy machine that may take some times.
	seen := neverFrozen
	for try := 0; seen == neverFrozen && try < 20; try++ {
		dir := t.TempDir()
		stop := make(chan struct{})
		looked := make(chan string, 1)
		go func() { looked <- lookAtFrozen(dir, stop, a, b) }()
		err := p.checkpoint(t, dir, a, b)
		close(stop)
		if err != nil {
			t.Fatal(err)
		}
		seen = <-looked
	}
	wantEqual(t, "what was seen", seen, "frozen and still")
	wantEqual(t, "freezer", freezerState(a)+freezerState(b), "THAWEDTHAWED")
	for _, c := range []*container{a, b} {
		n := c.last(t)
		eventually(t, "the containers go on", func() bool { return c.last(t) > n+10 })
	}
}

// TestCheckpointRightAfterTheStart captures what may not have come to execute its command.
func TestCheckpointRightAfterTheStart(t *testing.T) {
	needCRIU(t)
	p := runPod(t)
	for i := range 10 {
		c := p.start(t, fmt.Sprint("c", i), counterScript)
		if err := p.checkpoint(t, t.TempDir(), c); err != nil {
			t.Error(err)
		}
		if err := c.stop(t, 0); err != nil {
			t.Fatal(err)
		}
	}
}

const neverFrozen = "never frozen together"

// lookAtFrozen looks from the moment when both are frozen until both are captured: the layers are written last.
func lookAtFrozen(dir string, stop <-chan struct{}, a, b *container) string {
	counts := func() string { return a.inLayer("tmp/count") + "," + b.inLayer("tmp/count") }
	still := ""
	for times := 0; ; time.Sleep(time.Millisecond) {
		select {
		case <-stop:
			return neverFrozen
		default:
		}
		if times == 0 && (freezerState(a) != "FROZEN" || freezerState(b) != "FROZEN") {
			continue
		}
		now := counts()
		_, errA := os.Stat(filepath.Join(dir, a.id, "rootfs-diff.tar"))
		_, errB := os.Stat(filepath.Join(dir, b.id, "rootfs-diff.tar"))
		switch {
		case times > 0 && errA == nil && errB == nil:
			return "frozen and still"
		case times > 0 && now != still:
			return fmt.Sprintf("counted from %s to %s", still, now)
		}
		still = now
		times++
	}
}

// inLayer reads a file of the container's writable layer.
func (c *container) inLayer(name string) string {
	b, _ := os.ReadFile(filepath.Join(c.node.Root(), "images/containers", c.id, "fs", name))
	return strings.TrimSpace(string(b))
}

// freezerState is the state of a container's cgroup, in the words of v1.
func freezerState(c *container) string {
	path := filepath.Join(c.pod.config.Linux.CgroupParent, c.id)
	if cgroupV2() {
		b, _ := os.ReadFile(filepath.Join(cgroupTop, path, "cgroup.events"))
		_, frozen, _ := strings.Cut(string(b), "frozen ")
		return map[string]string{"0": "THAWED", "1": "FROZEN"}[strings.TrimSpace(frozen)]
	}
	b, _ := os.ReadFile(filepath.Join(cgroupTop, "freezer", path, "freezer.state"))
	return strings.TrimSpace(string(b))
}

func TestCheckpointPodThatCannotBe(t *testing.T) {
	needCRIU(t)
	p := runPod(t)
	c := p.start(t, "counter", counterScript)
	terminal := p.start(t, "terminal", "sleep 1000", func(c *runtime.ContainerConfig) { c.Tty = true })
	created := p.create(t, "created", "sleep 1000")
	q := runPodOn(t, shared, podConfig(t, shared, "-other"))
	foreign := q.start(t, "foreign", "sleep 1000")
	c.waitLog(t, "5")
	dir, full := t.TempDir(), t.TempDir()
	os.WriteFile(filepath.Join(full, "file"), nil, 0o600)

	wantCode(t, p.checkpoint(t, dir), codes.InvalidArgument, "container_ids", "empty")
	wantCode(t, p.checkpoint(t, dir, c, c), codes.InvalidArgument, "container_ids", "twice")
	wantCode(t, p.checkpoint(t, dir, c, foreign), codes.InvalidArgument, "container_ids", foreign.id)
	wantCode(t, p.checkpoint(t, dir, c, created), codes.FailedPrecondition, "container_ids", "running")
	wantCode(t, p.checkpoint(t, dir, c, terminal), codes.FailedPrecondition, "terminal")
	wantCode(t, p.checkpoint(t, dir, &container{id: strings.Repeat("0", 64)}), codes.NotFound, "container_ids")
	wantCode(t, p.checkpoint(t, full, c), codes.InvalidArgument, "output_path", "empty")
	wantCode(t, p.checkpoint(t, filepath.Join(dir, "none"), c), codes.InvalidArgument, "output_path", "exists")
	wantCode(t, p.checkpoint(t, filepath.Join(full, "file"), c), codes.InvalidArgument, "output_path")
	wantCode(t, p.checkpoint(t, "relative", c), codes.InvalidArgument, "output_path", "absolute")
	wantCode(t, p.checkpoint(t, "", c), codes.InvalidArgument, "output_path")
	request := &runtime.CheckpointPodRequest{PodSandboxId: p.id, OutputPath: dir, ContainerIds: []string{c.id}}
	_, err := p.node.Runtime.CheckpointPod(context.Background(), request)
	wantCode(t, err, codes.InvalidArgument, "deadline")
	request.Options = map[string]string{"compress": "yes"}
	_, err = p.node.Runtime.CheckpointPod(timeout(t), request)
	wantCode(t, err, codes.InvalidArgument, "options", "compress")
	_, err = p.node.Runtime.CheckpointPod(timeout(t), &runtime.CheckpointPodRequest{PodSandboxId: strings.Repeat("0", 64), OutputPath: dir, ContainerIds: []string{c.id}})
	wantCode(t, err, codes.NotFound)
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("requests that were refused left %v", entries)
	}
	c.counts(t)
}

// TestCheckpointPodGivesUp cuts checkpoints short: by the deadline, and by killing daemon, keeper or both.
func TestCheckpointPodGivesUp(t *testing.T) {
	needCRIU(t)
	p := runPod(t)
	big := p.start(t, "big", bigScript)
	small := p.start(t, "small", counterScript)
	big.waitLog(t, "5")
	cut := map[string]int{}
	for i := range 12 {
		how := []string{"deadline", "daemon", "keeper", "both"}[i%4]
		after := time.Duration(20+30*i) * time.Millisecond
		dir := filepath.Join(t.TempDir(), "out")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		limit := callTimeout
		if how == "deadline" {
			limit = after
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		done := make(chan error, 1)
		go func() {
			_, err := p.node.Runtime.CheckpointPod(ctx, &runtime.CheckpointPodRequest{
				PodSandboxId: p.id, OutputPath: dir, ContainerIds: []string{big.id, small.id},
			})
			done <- err
		}()
		if how != "deadline" {
			time.Sleep(after)
		}
		switch how {
		case "daemon":
			p.node.Kill()
			restart(t)
		case "both":
			p.node.Kill()
			killKeeper(t, p.node)
			restart(t)
		case "keeper":
			old := keeperPID(t, p.node)
			killKeeper(t, p.node)
			awaitKeeper(t, p.node, old)
		}
		err := <-done
		cancel()
		for _, c := range []*container{big, small} {
			eventually(t, "the container is thawed", func() bool { return freezerState(c) == "THAWED" })
			n := c.last(t)
			eventually(t, "the counter goes on", func() bool { return c.last(t) > n+5 })
		}
		if err == nil {
			continue
		}
		cut[how]++
		eventually(t, "nothing partial is left after the end of the "+how, func() bool {
			entries, _ := os.ReadDir(dir)
			_, err := os.Stat(filepath.Join(dir, "pod.json")) // it was complete, but the answer came too late
			return len(entries) == 0 || err == nil && how != "keeper"
		})
	}
	if len(cut) != 4 {
		t.Errorf("cut short were %v, expected some of each", cut)
	}
	if err := whenLetGo(t, func() error { return p.checkpoint(t, t.TempDir(), big, small) }); err != nil {
		t.Errorf("after checkpoints that were cut short: %v", err)
	}
}

func TestRestorePodThatCannotBe(t *testing.T) {
	needCRIU(t)
	p := runPod(t)
	a := p.start(t, "a", counterScript)
	b := p.start(t, "b", counterScript)
	both := []*container{a, b}
	a.waitLog(t, "5")
	dir := t.TempDir()
	if err := p.checkpoint(t, dir, both...); err != nil {
		t.Fatal(err)
	}
	before := tree(t, dir)
	sandboxes := func() (ids []string) {
		list, err := p.node.Runtime.ListPodSandbox(timeout(t), &runtime.ListPodSandboxRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list.Items {
			ids = append(ids, s.Id)
		}
		slices.Sort(ids)
		return ids
	}
	had := sandboxes()
	for name, test := range map[string]struct {
		change func(*runtime.RestorePodRequest)
		code   codes.Code
		words  []string
	}{
		"no path":        {func(r *runtime.RestorePodRequest) { r.CheckpointPath = "" }, codes.InvalidArgument, []string{"checkpoint_path"}},
		"relative path":  {func(r *runtime.RestorePodRequest) { r.CheckpointPath = "x" }, codes.InvalidArgument, []string{"checkpoint_path", "absolute"}},
		"no checkpoint":  {func(r *runtime.RestorePodRequest) { r.CheckpointPath = t.TempDir() }, codes.InvalidArgument, []string{"checkpoint_path"}},
		"option":         {func(r *runtime.RestorePodRequest) { r.Options = map[string]string{"x": "y"} }, codes.InvalidArgument, []string{"options"}},
		"handler":        {func(r *runtime.RestorePodRequest) { r.RuntimeHandler = "none" }, codes.InvalidArgument, []string{"runtime_handler"}},
		"no config":      {func(r *runtime.RestorePodRequest) { r.Config = nil }, codes.InvalidArgument, []string{"config"}},
		"no containers":  {func(r *runtime.RestorePodRequest) { r.ContainerConfigs = nil }, codes.InvalidArgument, []string{"container_configs"}},
		"one is missing": {func(r *runtime.RestorePodRequest) { r.ContainerConfigs = r.ContainerConfigs[:1] }, codes.InvalidArgument, []string{"container_configs"}},
		"one twice":      {func(r *runtime.RestorePodRequest) { r.ContainerConfigs[1].Metadata.Name = "a" }, codes.InvalidArgument, []string{"container_configs"}},
		"another name":   {func(r *runtime.RestorePodRequest) { r.ContainerConfigs[1].Metadata.Name = "c" }, codes.InvalidArgument, []string{"container_configs"}},
		"no name":        {func(r *runtime.RestorePodRequest) { r.ContainerConfigs[1].Metadata.Name = "" }, codes.InvalidArgument, []string{"container_configs"}},
		"command":        {func(r *runtime.RestorePodRequest) { r.ContainerConfigs[1].Command = []string{"true"} }, codes.FailedPrecondition, []string{"command"}},
		"arguments":      {func(r *runtime.RestorePodRequest) { r.ContainerConfigs[1].Args = []string{"x"} }, codes.FailedPrecondition, []string{"args"}},
		"directory":      {func(r *runtime.RestorePodRequest) { r.ContainerConfigs[1].WorkingDir = "/tmp" }, codes.FailedPrecondition, []string{"working_dir"}},
		"environment":    {func(r *runtime.RestorePodRequest) { r.ContainerConfigs[1].Envs = []*runtime.KeyValue{{Key: "x"}} }, codes.FailedPrecondition, []string{"envs"}},
		"user": {func(r *runtime.RestorePodRequest) {
			r.ContainerConfigs[1].Linux.SecurityContext.RunAsUser = &runtime.Int64Value{Value: 7}
		}, codes.FailedPrecondition, []string{"security_context"}},
		"mount": {func(r *runtime.RestorePodRequest) {
			r.ContainerConfigs[1].Mounts = []*runtime.Mount{{ContainerPath: "/x", HostPath: "/tmp"}}
		}, codes.FailedPrecondition, []string{"mounts"}},
		"terminal": {func(r *runtime.RestorePodRequest) { r.ContainerConfigs[1].Tty = true }, codes.FailedPrecondition, []string{"tty"}},
		"host's network": {func(r *runtime.RestorePodRequest) {
			r.Config.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_NODE
		}, codes.FailedPrecondition, []string{"namespace_options"}},
		"unknown image":   {func(r *runtime.RestorePodRequest) { r.ContainerConfigs[1].Image.Image = "none" }, codes.NotFound, []string{"image"}},
		"same pod":        {func(r *runtime.RestorePodRequest) { r.Config.Metadata = proto.CloneOf(p.config.Metadata) }, codes.AlreadyExists, []string{p.id}},
		"bad log path":    {func(r *runtime.RestorePodRequest) { r.ContainerConfigs[1].LogPath = "../x" }, codes.InvalidArgument, []string{"log_path"}},
		"missing volumes": {func(r *runtime.RestorePodRequest) { damaged(t, r, b.id, "rootfs-diff.tar") }, codes.Unknown, []string{"rootfs-diff.tar"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := p.restore(t, dir, both, test.change)
			wantCode(t, err, test.code, test.words...)
			if now := sandboxes(); !slices.Equal(now, had) {
				t.Errorf("sandboxes are %v, expected %v", now, had)
			}
		})
	}
	wantEqual(t, "checkpoint", tree(t, dir), before)
}

// damaged makes the request one of a copy of the checkpoint without one file.
func damaged(t *testing.T, r *runtime.RestorePodRequest, id, file string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(dir, os.DirFS(r.CheckpointPath)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, id, file)); err != nil {
		t.Fatal(err)
	}
	r.CheckpointPath = dir
}

// TestRestoreThatFailsAtTheStart has a checkpoint whose images are damaged: the start fails, and all can be removed.
func TestRestoreThatFailsAtTheStart(t *testing.T) {
	needCRIU(t)
	p := runPod(t)
	c := p.start(t, "counter", counterScript)
	c.waitLog(t, "5")
	dir := t.TempDir()
	if err := p.checkpoint(t, dir, c); err != nil {
		t.Fatal(err)
	}
	_, restored, err := p.restore(t, dir, []*container{c}, func(r *runtime.RestorePodRequest) {
		damaged(t, r, c.id, "checkpoint/pages-1.img")
	})
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, restored[0].start(t), codes.Unknown, "criu restore")
	status := restored[0].status(t)
	wantEqual(t, "state", status.State, runtime.ContainerState_CONTAINER_EXITED)
	wantEqual(t, "reason", status.Reason, "StartError")
	c.counts(t)
}

// hasCapability reports whether the bounding set has a capability.
func hasCapability(c uintptr) bool {
	has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
	return err == nil && has == 1
}

// carryOver checkpoints the pod of a container that counts, and restores it in a new pod, where the count has to go on.
func (p *pod) carryOver(t *testing.T, c *container) *container {
	t.Helper()
	c.waitLog(t, "5")
	dir := t.TempDir()
	if err := p.checkpoint(t, dir, c); err != nil {
		t.Fatal(err)
	}
	c.counts(t)
	if err := c.stop(t, 0); err != nil {
		t.Fatal(err)
	}
	_, restored, err := p.restore(t, dir, []*container{c}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := restored[0].start(t); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the log has lines", func() bool { return len(readLog(t, restored[0].logPath)) > 0 })
	restored[0].counts(t)
	if first := restored[0].numbers(t)[0]; first < 5 {
		t.Errorf("the counter began anew, at %d", first)
	}
	return restored[0]
}

// TestRestoredContainersOfManyKinds restores what differs in namespaces, mounts, users and rights.
func TestRestoredContainersOfManyKinds(t *testing.T) {
	needCRIU(t)
	volume := t.TempDir()
	if err := os.WriteFile(filepath.Join(volume, "file"), []byte("of the volume\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(volume, 0o777); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		pod       func(*runtime.PodSandboxConfig)
		container func(*runtime.ContainerConfig)
		script    string
		// check is run in the restored container and has to print ok.
		check string
	}{
		"as the kubelet makes them": {container: func(c *runtime.ContainerConfig) {
			s := c.Linux.SecurityContext
			s.MaskedPaths = []string{"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"}
			s.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
			s.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}
			c.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuPeriod: 100000, CpuQuota: 100000}
			c.Mounts = []*runtime.Mount{{ContainerPath: "/data", HostPath: volume}}
		}, check: `[ $(grep ^Seccomp: /proc/1/status | cut -f2) = 2 ] && [ ! -s /proc/kcore ] && ` +
			`[ $(cat /sys/fs/cgroup/memory.max || cat /sys/fs/cgroup/memory/memory.limit_in_bytes) = 67108864 ] && ` +
			`! echo x 2>/dev/null >/proc/sys/kernel/hostname && cat /data/file >/dev/null && echo ok`},
		"another user": {container: func(c *runtime.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser = &runtime.Int64Value{Value: 1234}
			c.Linux.SecurityContext.RunAsGroup = &runtime.Int64Value{Value: 1235}
			c.Linux.SecurityContext.NoNewPrivs = true
		}, script: `while :; do i=$((i+1)); echo $i > /dev/stdout; usleep 10000; done`,
			check: `[ $(id -u) = 1234 ] && [ $(stat -c %u:%g /proc/1) = 1234:1235 ] && echo ok`},
		"read-only root": {container: func(c *runtime.ContainerConfig) {
			c.Linux.SecurityContext.ReadonlyRootfs = true
			c.Mounts = []*runtime.Mount{{ContainerPath: "/data", HostPath: volume, Readonly: true}}
		}, check: `! touch /x 2>/dev/null && ! touch /data/x 2>/dev/null && echo ok`},
		"open files": {container: func(c *runtime.ContainerConfig) {
			c.Mounts = []*runtime.Mount{{ContainerPath: "/data", HostPath: volume}}
		}, script: `exec 4</data/file 5>/gone; rm /gone; while :; do i=$((i+1)); echo $i; echo $i >&5; usleep 10000; done`,
			check: `[ $(tail -n 1 /proc/1/fd/5) -gt 5 ] && [ "$(cat /proc/1/fd/4)" = "of the volume" ] && echo ok`},
		"shared processes": {pod: podPID, container: pidMode(runtime.NamespaceMode_POD), check: `[ "$(cat /proc/1/comm)" = pause ] && echo ok`},
		"input":            {container: func(c *runtime.ContainerConfig) { c.Stdin = true }, check: "echo ok"},
		"privileged": {pod: func(c *runtime.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true },
			container: func(c *runtime.ContainerConfig) { c.Linux.SecurityContext.Privileged = true }, check: "echo ok"},
		"a connection": {script: `nc -l -p 7777 -e sleep 1000 & usleep 300000; nc 127.0.0.1 7777 & ` + counterScript, check: "echo ok"},
		"children":     {script: `(trap '' TERM; while :; do sleep 1; done) & sleep 1000 & ` + counterScript, check: `[ $(ls -d /proc/[0-9]* | wc -l) -ge 4 ] && echo ok`},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "another user" && !hasCapability(unix.CAP_SYS_RESOURCE) {
				t.Skip("CAP_SYS_RESOURCE is missing, without which CRIU cannot read the limits of another user's process")
			}
			change := func(c *runtime.PodSandboxConfig) {
				if test.pod != nil {
					test.pod(c)
				}
			}
			p := runPod(t, change)
			script := test.script
			if script == "" {
				script = counterScript
			}
			c := p.start(t, "counter", script, func(c *runtime.ContainerConfig) {
				if test.container != nil {
					test.container(c)
				}
			})
			restored := p.carryOver(t, c)
			wantEqual(t, "what an exec sees", restored.exec(t, test.check), "ok")
		})
	}
}

func TestRestoreOnTheUnifiedHierarchy(t *testing.T) {
	needCRIU(t)
	n := unifiedNode(t)
	p := runPodOn(t, n, podConfig(t, n, ""))
	c := p.start(t, "counter", counterScript)
	restored := p.carryOver(t, c)
	wantEqual(t, "cgroup that an exec sees", restored.exec(t, "grep ^0 /proc/1/cgroup; cat /sys/fs/cgroup/cgroup.type"), "0::/\ndomain")
}
