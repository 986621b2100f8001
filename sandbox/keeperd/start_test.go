package keeperd_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeper"
	"github.com/gantry-cri/gantry/sandbox/keeperd/marks"
)

func TestRoundTrip(t *testing.T) {
	n := newNode(t)
	c := n.run(nil, "sh", "-c", "echo out; echo err >&2; printf unterminated; exit 7")
	if s := c.wait(); s.ExitCode != 7 || s.PID != c.pid || s.OOMKilled || s.Error != "" {
		t.Errorf("status %+v", s)
	}
	if got := c.output("stdout"); got != "out\nunterminated" {
		t.Errorf("stdout %q", got)
	}
	if got := c.output("stderr"); got != "err\n" {
		t.Errorf("stderr %q", got)
	}
	c.delete()
	c.delete()
}

// steps starts a container and returns the names of the steps that are told, which follow each other without a gap.
func (c *container) steps() string {
	before := marks.Now()
	reply, proc, err := c.client.Start(deadline(c.t), c.StartRequest)
	if err != nil {
		c.t.Error(err)
		return ""
	}
	proc.Close()
	names := "\n"
	for i, s := range reply.Steps {
		if i > 0 && s.From != reply.Steps[i-1].To || s.From < before || s.To < s.From {
			c.t.Errorf("step %d is %+v, in %+v", i, s, reply.Steps)
		}
		names += s.Name + "\n"
	}
	if n := len(reply.Steps); n == 0 || reply.Steps[n-1].To > marks.Now() {
		c.t.Errorf("steps are %+v, expected some that have ended", reply.Steps)
	}
	return names
}

func TestStartTellsItsSteps(t *testing.T) {
	n := newNode(t)
	want := []string{
		"decode request", "mount root filesystem", "init: clone and execute", "init: enter cgroup",
		"init: join and make namespaces", "init: start Go", "init: mount and limit", "execute command",
	}
	filtered := n.container(deny(unix.EPERM), "true").steps()
	for _, step := range append(want, "init: add seccomp rules", "init: load seccomp filter") {
		if !strings.Contains(filtered, "\n"+step+"\n") {
			t.Errorf("no step %q in:%s", step, filtered)
		}
	}
	if plain := n.container(nil, "true").steps(); strings.Contains(plain, "seccomp") || !strings.Contains(plain, "\ninit: mount and limit\n") {
		t.Errorf("steps of a container without a filter are:%s", plain)
	}
	// Side by side each has its own.
	var group sync.WaitGroup
	for range 4 {
		c := n.container(nil, "true")
		group.Go(func() { c.steps() })
	}
	group.Wait()
}

func TestExecReturnsOutputAndCode(t *testing.T) {
	c := newNode(t).run(nil, "sleep", "1000")
	if m := mountsBelow(c.dir + "/keeper/rootfs"); m != "" {
		t.Errorf("the host sees the root filesystem: %s", m)
	}
	// The init is told to execute the command before the start is answered; an exec may be quicker than that.
	c.eventually("the init has become the command", func() bool {
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", c.pid))
		return err == nil && strings.HasPrefix(string(cmdline), "sleep")
	})
	out, code := c.exec("sh", "-c", "echo hello; cat /proc/1/cmdline | tr '\\000' ' '; exit 3")
	if out != "hello\nsleep 1000 " || code != 3 {
		t.Errorf("got %q, %d", out, code)
	}
	if out, code = c.exec("sh", "-c", "kill -9 $$"); code != 137 {
		t.Errorf("killed exec: %q, %d", out, code)
	}
	if err := c.client.Kill(deadline(t), keeper.KillRequest{ID: c.ID, Signal: 9}); err != nil {
		t.Fatal(err)
	}
	if s := c.wait(); s.ExitCode != 137 {
		t.Errorf("status %+v", s)
	}
	c.delete()
}

func TestStartFailures(t *testing.T) {
	n := newNode(t)
	for _, tc := range []struct {
		name, want string
		change     func(*keeper.StartRequest)
		args       []string
	}{
		{"no such command", `exec: "nosuch": executable file not found in $PATH`, nil, []string{"nosuch"}},
		{"no such file", `exec: "/bin/nosuch": stat /bin/nosuch: no such file or directory`, nil, []string{"/bin/nosuch"}},
		{"not executable", "permission denied", nil, []string{"/noexec"}},
		{"no such user", "unable to find user nosuch", func(r *keeper.StartRequest) { r.User.User = "nosuch" }, nil},
		{"no such group", "unable to find group nosuch", func(r *keeper.StartRequest) { r.User.Group = "nosuch" }, nil},
		{"no such layer", "mount rootfs: overlay", func(r *keeper.StartRequest) {
			r.Rootfs[0].Options[0] = "lowerdir=/nosuch"
		}, nil},
		{"no log directory", "open log: ", func(r *keeper.StartRequest) { r.LogPath = "/nosuch/0.log" }, nil},
		{"no such mount source", "/nosuch", func(r *keeper.StartRequest) {
			m := r.Spec.Mounts[0]
			m.Type, m.Source, m.Destination, m.Options = "bind", "/nosuch", "/x", []string{"bind"}
			r.Spec.Mounts = append(r.Spec.Mounts, m)
		}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.args == nil {
				tc.args = []string{"true"}
			}
			c := n.container(tc.change, tc.args...)
			_, _, err := n.client.Start(deadline(t), c.StartRequest)
			if !errors.Is(err, keeper.ErrStart) || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want %s", err, tc.want)
			}
			s, err := keeper.ReadStatus(c.Dir)
			if err != nil {
				t.Fatal(err)
			}
			if !s.Exited() || s.ExitCode != 128 || s.PID != 0 || !strings.Contains(s.Error, tc.want) {
				t.Errorf("status %+v", s)
			}
			if strings.Contains(s.Error, "unable to start container process") {
				t.Errorf("noise in %q", s.Error)
			}
			c.checkGone()
		})
	}
}

func TestRejectsBadRequests(t *testing.T) {
	n := newNode(t)
	for name, change := range map[string]func(*keeper.StartRequest){
		"id":    func(r *keeper.StartRequest) { r.ID = "../x" },
		"spec":  func(r *keeper.StartRequest) { r.Spec = nil },
		"args":  func(r *keeper.StartRequest) { r.Spec.Process.Args = nil },
		"cwd":   func(r *keeper.StartRequest) { r.Spec.Process.Cwd = "here" },
		"dir":   func(r *keeper.StartRequest) { r.Dir = "" },
		"log":   func(r *keeper.StartRequest) { r.LogPath = "0.log" },
		"linux": func(r *keeper.StartRequest) { r.Spec.Linux = nil },
	} {
		c := n.container(change, "true")
		if _, _, err := n.client.Start(deadline(t), c.StartRequest); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestSameIDTwice(t *testing.T) {
	c := newNode(t).run(nil, "sleep", "1000")
	_, _, err := c.client.Start(deadline(t), c.StartRequest)
	if !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("got %v", err)
	}
	if _, code := c.exec("true"); code != 0 {
		t.Errorf("the first one suffered: %d", code)
	}
}

func TestUsers(t *testing.T) {
	n := newNode(t)
	for _, tc := range []struct {
		user keeper.User
		want string
	}{
		{keeper.User{}, "uid=0(root) gid=0(root) groups=0(root)"},
		{keeper.User{User: "app"}, "uid=1000(app) gid=2000(app) groups=2000(app),3000(extra)"},
		{keeper.User{User: "1000"}, "uid=1000(app) gid=2000(app) groups=2000(app),3000(extra)"},
		{keeper.User{User: "app", Strict: true, Groups: []uint32{5}}, "uid=1000(app) gid=2000(app) groups=5,2000(app)"},
		{keeper.User{User: "app", Group: "other"}, "uid=1000(app) gid=4000(other) groups=3000(extra),4000(other)"},
		{keeper.User{User: "77"}, "uid=77 gid=0(root) groups=0(root)"},
		{keeper.User{User: "77", Group: "88"}, "uid=77 gid=88 groups=88"},
	} {
		c := n.run(func(r *keeper.StartRequest) { r.User = tc.user },
			"sh", "-c", "id; touch /dev/stdout; echo x >/dev/stderr")
		if s := c.wait(); s.ExitCode != 0 {
			t.Errorf("%+v: exit %d: %s", tc.user, s.ExitCode, c.output("stderr"))
		}
		if got := strings.TrimSpace(c.output("stdout")); got != tc.want {
			t.Errorf("%+v: got %s, want %s", tc.user, got, tc.want)
		}
		c.delete()
	}
}

func TestUserFilesCannotLeadOut(t *testing.T) {
	n := newNode(t)
	c := n.container(func(r *keeper.StartRequest) { r.User.User = "root" }, "true")
	upper := filepath.Join(n.dir, "layers", c.ID, "upper", "etc")
	if err := os.MkdirAll(upper, 0o755); err != nil {
		t.Fatal(err)
	}
	// In the image this is a link to a file of its own that does not exist; on the host it would be the host's.
	if err := os.Symlink("/../../../../etc/hostname", filepath.Join(upper, "passwd")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := n.client.Start(deadline(t), c.StartRequest); !errors.Is(err, keeper.ErrStart) {
		t.Errorf("got %v", err)
	}
}
