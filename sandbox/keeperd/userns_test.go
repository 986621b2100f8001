package keeperd_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

const mappedRoot, mappedSize = 300000, 65536

// newUserns makes a user namespace that the keeper's binary holds, and returns its path.
func newUserns(t *testing.T) string {
	t.Helper()
	cmd := exec.Command(binary)
	cmd.Env = []string{keeper.HoldMarker + "=1"}
	ids := []syscall.SysProcIDMap{{HostID: mappedRoot, Size: mappedSize}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
	}
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Skip("the kernel lacks user namespaces: ", err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the holder did not end with its input: %v", err)
		}
	})
	return fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid)
}

// mapped changes a request into one for a container in a user namespace.
func mapped(path string) func(*keeper.StartRequest) {
	return func(r *keeper.StartRequest) {
		ids := []specs.LinuxIDMapping{{HostID: mappedRoot, Size: mappedSize}}
		r.Spec.Linux.UIDMappings, r.Spec.Linux.GIDMappings = ids, ids
		r.Spec.Linux.Namespaces = append(r.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: path})
	}
}

// newOpenNode is a node whose state directory the root of a user namespace can reach.
func newOpenNode(t *testing.T) *node {
	t.Helper()
	n := newNode(t)
	if err := os.Chmod(filepath.Dir(n.dir), 0o711); err != nil {
		t.Fatal(err)
	}
	return n
}

func ownerOf(t *testing.T, path string) uint32 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return st.Uid
}

func TestLayersOfAContainerInAUserNamespace(t *testing.T) {
	n, path := newOpenNode(t), newUserns(t)
	c := n.container(mapped(path), "sh", "-c", "ps -o user,args > /out; id -u; busybox stat -c %u /etc/passwd /tmp /declared /declared/deep /set")
	upper := strings.TrimPrefix(c.Rootfs[0].Options[1], "upperdir=")
	if err := os.MkdirAll(upper+"/declared/deep", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(upper+"/declared/deep", 1000, 1000); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(upper+"/set", nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Chmod(upper+"/set", 0o6755); err != nil {
		t.Fatal(err)
	}
	c.begin()
	if s := c.wait(); s.ExitCode != 0 {
		t.Errorf("status %+v, stderr %s", s, c.output("stderr"))
	}
	if got, want := c.output("stdout"), "0\n0\n0\n0\n1000\n0\n"; got != want {
		t.Errorf("owners inside: %q, expected %q", got, want)
	}
	for name, want := range map[string]uint32{
		"": mappedRoot, "out": mappedRoot, "declared": mappedRoot, "declared/deep": mappedRoot + 1000, "set": mappedRoot,
	} {
		if got := ownerOf(t, filepath.Join(upper, name)); got != want {
			t.Errorf("owner of /%s on disk is %d, expected %d", name, got, want)
		}
	}
	if info, err := os.Stat(upper + "/set"); err != nil || info.Mode()&(os.ModeSetuid|os.ModeSetgid) != os.ModeSetuid|os.ModeSetgid {
		t.Errorf("set-id bits are lost: %v, %v", info.Mode(), err)
	}
	if got := ownerOf(t, image+"/etc/passwd"); got != 0 {
		t.Errorf("the image's owner was changed to %d", got)
	}
}

func TestBindRootfsInAUserNamespaceLeavesTheImageAlone(t *testing.T) {
	path := newUserns(t)
	c := newOpenNode(t).run(func(r *keeper.StartRequest) {
		mapped(path)(r)
		r.Rootfs = []specs.Mount{{Type: "bind", Source: image, Options: []string{"rbind", "ro"}}}
		r.Spec.Root.Readonly = true
	}, "sh", "-c", "busybox stat -c %u /etc/passwd && ! touch /x")
	if s := c.wait(); s.ExitCode != 0 || c.output("stdout") != "0\n" {
		t.Errorf("status %+v, owner inside %q", s, c.output("stdout"))
	}
	if got := ownerOf(t, image); got != 0 {
		t.Errorf("the image's owner was changed to %d", got)
	}
}

func TestOverlayVolumeWithMappedOwners(t *testing.T) {
	n, path := newOpenNode(t), newUserns(t)
	lower := filepath.Join(n.dir, "lower")
	for _, dir := range []string{lower, lower + "2"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(lower+"/file", []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := n.run(func(r *keeper.StartRequest) {
		mapped(path)(r)
		r.Spec.Mounts = append(r.Spec.Mounts, specs.Mount{
			Destination: "/volume", Type: "overlay", Source: "overlay",
			Options: []string{"ro", "nosuid", "nodev", "noexec", "lowerdir=" + lower + ":" + lower + "2", "idmap"},
		})
	}, "sh", "-c", "busybox stat -c %u /volume/file && ! touch /volume/x && busybox grep ' /volume ' /proc/self/mountinfo")
	if s := c.wait(); s.ExitCode != 0 || !strings.HasPrefix(c.output("stdout"), "0\n") ||
		!strings.Contains(c.output("stdout"), " ro,nosuid,nodev,noexec") {
		t.Errorf("status %+v, stdout %q, stderr %q", s, c.output("stdout"), c.output("stderr"))
	}
	c.delete()
	if left, _ := filepath.Glob(filepath.Join(n.dir, "keeper/rootfs/[^.]*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestPodInitInAUserNamespace(t *testing.T) {
	n, path := newOpenNode(t), newUserns(t)
	dir := filepath.Join(n.dir, "records", "sandbox")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	request := keeper.PodInitRequest{ID: "sandbox", Dir: dir, CgroupsPath: parent + "/sandbox", UserNS: "/proc/self/ns/net"}
	if _, _, err := n.client.PodInit(deadline(t), request); err == nil || !strings.Contains(err.Error(), "enter user namespace") {
		t.Errorf("got %v, expected an error that says what cannot be done", err)
	}
	request.UserNS = path
	reply, proc, err := n.client.PodInit(deadline(t), request)
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", reply.PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Name:\tpause\n", "Uid:\t365535\t365535\t365535\t365535\n", "CapEff:\t0000000000000000\n",
		"CapPrm:\t0000000000000000\n", "NoNewPrivs:\t1\n", "Threads:\t1\n", fmt.Sprintf("PPid:\t%d\n", n.pid())} {
		if !strings.Contains(string(status), want) {
			t.Errorf("status lacks %q: %s", want, status)
		}
	}
	n.eventually("all descriptors are closed, after the report", func() bool {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", reply.PID))
		return err == nil && len(fds) == 0
	})
	c := n.run(func(r *keeper.StartRequest) {
		mapped(path)(r)
		joinPID(r, fmt.Sprintf("/proc/%d/ns/pid", reply.PID))
	}, "sh", "-c", "kill -KILL 1; sleep 1000")
	n.eventually("the init sleeps, whom no process of the pod kills", func() bool {
		ps, _ := c.exec("ps", "-o", "pid,stat,args")
		return initSleeps.MatchString(ps) && strings.Contains(ps, "sleep 1000")
	})
	c.delete()
	if err := n.client.Kill(deadline(t), keeper.KillRequest{ID: "sandbox", Signal: int(unix.SIGTERM)}); err != nil {
		t.Fatal(err)
	}
	n.eventually("it exited", func() bool {
		s, err := keeper.ReadStatus(dir)
		return err == nil && s.Exited() && s.ExitCode == 0
	})
}
