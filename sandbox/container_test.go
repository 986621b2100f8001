package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

func TestContainerLife(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	sid := r.run("a")
	id := r.create(sid, "c")
	if st, _ := r.m.Container(id[:10]); st.State != ContainerCreated || st.ImageID != "sha256:feed" || st.StopSignal != runtime.Signal_SIGNAL_SIGTERM {
		t.Errorf("created: %+v", st)
	}
	r.start(id)
	st, _ := r.m.Container(id)
	if st.State != ContainerRunning || st.PID == 0 || st.User.GetLinux().GetUid() != 7 || st.Started.IsZero() {
		t.Errorf("running: %+v", st)
	}
	if err := r.m.StartContainer(ctx, id); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second start: %v, expected a failed precondition", err)
	}
	if err := r.m.StopContainer(ctx, id, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	st, _ = r.m.Container(id)
	if st.State != ContainerExited || st.ExitCode != 128+15 || st.Reason != reasonError || st.Finished.IsZero() || st.PID != 0 {
		t.Errorf("stopped: %+v", st)
	}
	for range 2 {
		if err := r.m.RemoveContainer(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.m.Container(id); !errdefs.IsNotFound(err) {
		t.Errorf("after removal: %v, expected not found", err)
	}
	if err := r.m.Remove(ctx, sid); err != nil {
		t.Fatal(err)
	}
	r.nothingLeft()
}

func TestCreateTwiceGivesTheSameContainer(t *testing.T) {
	r := newRig(t)
	sid := r.run("a")
	id := r.create(sid, "c")
	if again := r.create(sid, "c"); again != id {
		t.Errorf("got %s, expected %s", again, id)
	}
	other := containerConfig("c")
	other.Command = []string{"other"}
	if _, err := r.m.CreateContainer(context.Background(), sid, other, "sha256:feed", "x"); !errdefs.IsAlreadyExists(err) {
		t.Errorf("another configuration: %v, expected 'already exists'", err)
	}
	if n := len(r.m.Containers()); n != 1 {
		t.Errorf("%d containers, expected 1", n)
	}
}

func TestCreateNeedsAReadySandbox(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	if _, err := r.m.CreateContainer(ctx, "feed", containerConfig("c"), "i", "r"); !errdefs.IsNotFound(err) {
		t.Errorf("unknown sandbox: %v, expected not found", err)
	}
	sid := r.run("a")
	id := r.create(sid, "early")
	if err := r.m.Stop(ctx, sid); err != nil {
		t.Fatal(err)
	}
	if _, err := r.m.CreateContainer(ctx, sid, containerConfig("c"), "i", "r"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("stopped sandbox: %v, expected a failed precondition", err)
	}
	if err := r.m.StartContainer(ctx, id); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("start in a stopped sandbox: %v, expected a failed precondition", err)
	}
}

func TestCreateThatFailsLeavesNothing(t *testing.T) {
	r := newRig(t)
	sid := r.run("a")
	bad := containerConfig("c")
	bad.Mounts = []*runtime.Mount{{ContainerPath: "/x", HostPath: "/does/not/exist"}}
	_, err := r.m.CreateContainer(context.Background(), sid, bad, "sha256:feed", "x")
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "mounts[0].host_path") {
		t.Errorf("got %v, expected an invalid argument that names mounts[0].host_path", err)
	}
	if len(r.m.Containers()) != 0 || len(r.images.prepared) != 0 {
		t.Errorf("left behind: %v, %v", r.m.Containers(), r.images.prepared)
	}
	r.create(sid, "c") // the name is free
}

func TestLogPathsThatCannotBeAreRefused(t *testing.T) {
	dir := &runtime.PodSandboxConfig{LogDirectory: "/var/log/pods/x"}
	for _, rel := range []string{"../x", "/x", "a\x00b", "a/" + strings.Repeat("n", 256)} {
		if _, err := logPath(dir, &runtime.ContainerConfig{LogPath: rel}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "log_path") {
			t.Errorf("%.20q: %v, expected an invalid argument that names log_path", rel, err)
		}
	}
	if got, err := logPath(dir, &runtime.ContainerConfig{LogPath: "c/0.log"}); err != nil || got != "/var/log/pods/x/c/0.log" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestStartThatFailsIsAStartError(t *testing.T) {
	r := newRig(t)
	id := r.create(r.run("a"), "c")
	r.keeper.behave(func() { r.keeper.startErr = errors.New(`exec: "nope": executable file not found in $PATH`) })
	err := r.m.StartContainer(context.Background(), id)
	if !errors.Is(err, keeper.ErrStart) || !strings.Contains(err.Error(), "executable file not found") {
		t.Errorf("got %v", err)
	}
	check := func(when string) {
		t.Helper()
		st, _ := r.m.Container(id)
		if st.State != ContainerExited || st.ExitCode != 128 || st.Reason != reasonStartError ||
			!strings.Contains(st.Message, "executable file not found") || st.Finished.IsZero() {
			t.Errorf("%s: %+v", when, st)
		}
	}
	check("after the start")
	r.restart()
	check("after a restart")
}

func TestExitBeforeTheAnswerToTheStart(t *testing.T) {
	r := newRig(t)
	id := r.create(r.run("a"), "c")
	r.keeper.behave(func() {
		r.keeper.command = []string{"sh", "-c", "exit 3"}
		r.keeper.beforeReply = func(id string) {
			if p := r.keeper.live()[id]; p != nil {
				<-p.done
			}
			time.Sleep(20 * time.Millisecond) // the event arrives
		}
	})
	r.start(id)
	eventually(t, "exited", func() bool { return r.containerState(id) == ContainerExited })
	if st, _ := r.m.Container(id); st.ExitCode != 3 || st.Reason != reasonError || st.Started.IsZero() {
		t.Errorf("%+v", st)
	}
}

func TestAShorterStopWins(t *testing.T) {
	r := newRig(t)
	id := r.create(r.run("a"), "c")
	r.keeper.behave(func() { r.keeper.command = []string{"sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"} })
	r.start(id)
	eventually(t, "the trap is set", func() bool {
		st, err := r.m.Container(id)
		return err == nil && ignores(st.PID, syscall.SIGTERM)
	})
	first := make(chan error, 1)
	go func() { first <- r.m.StopContainer(context.Background(), id, time.Hour) }()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := r.m.StopContainer(ctx, id, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a caller that gives up: %v", err)
	}
	if err := r.m.StopContainer(context.Background(), id, 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if err := <-first; err != nil {
		t.Errorf("the first stop: %v", err)
	}
	if st, _ := r.m.Container(id); st.ExitCode != 128+9 {
		t.Errorf("exit code %d, expected 137", st.ExitCode)
	}
}

// ignores tells whether a process ignores a signal.
func ignores(pid int, sig syscall.Signal) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(text), "SigIgn:")
	var mask uint64
	_, err = fmt.Sscanf(rest, "%x", &mask)
	return err == nil && mask&(1<<(sig-1)) != 0
}

func TestStopOfWhatDoesNotRunIsNoError(t *testing.T) {
	r := newRig(t)
	id := r.create(r.run("a"), "c")
	for what, id := range map[string]string{"created": id, "unknown": "feed"} {
		if err := r.m.StopContainer(context.Background(), id, time.Second); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := r.m.StopContainer(context.Background(), id, -time.Second); !errdefs.IsInvalidArgument(err) {
		t.Errorf("negative timeout: %v", err)
	}
	r.start(id) // a stop of a container that was not started does not spoil its start
}

func TestRestartKeepsContainers(t *testing.T) {
	r := newRig(t)
	sid := r.run("a")
	created, running, ended := r.create(sid, "created"), r.create(sid, "running"), r.create(sid, "ended")
	r.start(running)
	r.start(ended)
	before, _ := r.m.Container(running)
	r.close()
	p := r.keeper.live()[ended]
	_ = p.cmd.Process.Kill()
	<-p.done
	r.open()

	after, err := r.m.Container(running)
	if err != nil {
		t.Fatal(err)
	}
	if after.State != ContainerRunning || after.PID != before.PID || !after.Started.Equal(before.Started) ||
		!proto.Equal(after.Config, before.Config) || !proto.Equal(after.User, before.User) || after.StopSignal != before.StopSignal ||
		after.ImageID != before.ImageID || after.ImageRef != before.ImageRef || after.CgroupPath != before.CgroupPath {
		t.Errorf("running: %+v, was %+v", after, before)
	}
	if st, _ := r.m.Container(ended); st.State != ContainerExited || st.ExitCode != 137 {
		t.Errorf("ended meanwhile: %+v", st)
	}
	r.start(created)
	if err := r.m.StopContainer(context.Background(), running, 0); err != nil {
		t.Errorf("stop after the restart: %v", err)
	}
}

func TestProcessOfAnEarlierBootIsExitedUnknown(t *testing.T) {
	r := newRig(t)
	id := r.create(r.run("a"), "c")
	r.start(id)
	r.close()
	p := r.keeper.live()[id]
	_ = p.cmd.Process.Kill()
	<-p.done
	status := &keeper.Status{PID: 4242, Started: time.Now(), BootID: "another boot"}
	if err := keeper.WriteStatus(p.dir, status); err != nil {
		t.Fatal(err)
	}
	r.open()
	if st, _ := r.m.Container(id); st.State != ContainerExited || st.ExitCode != 255 || st.Reason != reasonUnknown {
		t.Errorf("%+v, expected exited 255 Unknown", st)
	}
}

func TestUpdateMergesAndIsKept(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	id := r.create(r.run("a"), "c")
	r.start(id)
	if err := r.m.UpdateContainer(ctx, id, &runtime.LinuxContainerResources{CpuQuota: 5000, CpuPeriod: 10000}); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		st, _ := r.m.Container(id)
		if res := st.Resources; res.CpuQuota != 5000 || res.CpuShares != 100 || res.MemoryLimitInBytes != 64<<20 {
			t.Errorf("resources %v", res)
		}
	}
	check()
	r.keeper.behave(func() {
		if n := len(r.keeper.updated); n != 1 || *r.keeper.updated[0].Resources.CPU.Quota != 5000 {
			t.Errorf("the keeper was told %d times: %+v", n, r.keeper.updated)
		}
	})
	r.restart()
	check()
	if err := r.m.UpdateContainer(ctx, id, &runtime.LinuxContainerResources{OomScoreAdj: 700}); err != nil {
		t.Fatal(err)
	}
	r.keeper.behave(func() {
		first, second := r.keeper.updated[0].OOMScoreAdj, r.keeper.updated[1].OOMScoreAdj
		if first != nil || second == nil || *second != 700 {
			t.Errorf("OOM scores %v and %v, expected one only where the update has one", first, second)
		}
	})
	if err := r.m.UpdateContainer(ctx, id, nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("nil: %v", err)
	}
	if err := r.m.StopContainer(ctx, id, 0); err != nil {
		t.Fatal(err)
	}
	if err := r.m.UpdateContainer(ctx, id, &runtime.LinuxContainerResources{CpuQuota: 1000}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exited: %v, expected a failed precondition", err)
	}
}

func TestAmbiguousAndEmptyIDs(t *testing.T) {
	all := map[string]int{"aab": 1, "aac": 2}
	if _, err := find(all, "thing", "aa"); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "ambiguous") {
		t.Errorf("ambiguous: %v", err)
	}
	if _, err := find(all, "thing", ""); !errdefs.IsInvalidArgument(err) {
		t.Errorf("empty: %v", err)
	}
	if x, err := find(all, "thing", "aac"); err != nil || x != 2 {
		t.Errorf("exact: %d, %v", x, err)
	}
}
