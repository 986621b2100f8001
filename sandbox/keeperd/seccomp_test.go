package keeperd_test

import (
	encoding "encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeper"
	"github.com/gantry-cri/gantry/sandbox/keeperd/filters"
)

// deny makes mkdir fail with errno.
func deny(errno unix.Errno) func(*keeper.StartRequest) {
	return func(r *keeper.StartRequest) {
		ret := uint(errno)
		r.Spec.Linux.Seccomp = &specs.LinuxSeccomp{
			DefaultAction: specs.ActAllow,
			Syscalls: []specs.LinuxSyscall{{
				Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno, ErrnoRet: &ret,
			}},
		}
	}
}

// learned is how many filters the keeper has compiled.
func (n *node) learned() uint32 {
	n.t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/fd/%d", n.pid(), filters.FD))
	if err != nil {
		n.t.Fatal(err)
	}
	defer f.Close()
	var header [16]byte
	if _, err := f.ReadAt(header[:], 0); err != nil {
		n.t.Fatal(err)
	}
	return encoding.NativeEndian.Uint32(header[8:])
}

func TestFiltersAreCompiledOnceAndStillTheContainersOwn(t *testing.T) {
	n := newNode(t)
	const script = "mkdir /tmp/x; cat /proc/self/status; sleep 1000"
	say := map[unix.Errno]string{unix.EPERM: "Operation not permitted", unix.EACCES: "Permission denied"}
	for round := range 2 { // the first compiles, the second does not
		for errno, want := range say {
			c := n.run(deny(errno), "sh", "-c", script)
			n.eventually("the container has spoken", func() bool { return strings.Contains(c.output("stdout"), "Seccomp:\t2") })
			// The streams are logged each for itself.
			n.eventually("the error is logged: "+want, func() bool { return strings.Contains(c.output("stderr"), want) })
			if got, _ := c.exec("sh", "-c", "mkdir /tmp/x 2>&1"); !strings.Contains(got, want) {
				t.Errorf("round %d: exec got %q, want %q", round, got, want)
			}
			// No descriptor and no mapping of the keeper's is in the container.
			if maps, _ := c.exec("cat", "/proc/1/maps"); strings.Contains(maps, "gantry") || !strings.Contains(maps, "busybox") {
				t.Errorf("round %d: the container's memory: %s", round, maps)
			}
			c.delete()
		}
		n.eventually("both filters are there", func() bool { return n.learned() == 2 })
	}
	if strings.Contains(n.log(), "compile") {
		t.Errorf("the keeper's log:\n%s", n.log())
	}
}

// rulesGiven is how many system calls the profile has that libcontainer was given.
func (c *container) rulesGiven() int {
	c.t.Helper()
	var state struct {
		Config struct {
			Seccomp struct {
				Syscalls []struct{ Name string }
			}
		}
	}
	b, err := os.ReadFile(filepath.Join(c.dir, "keeper/lc", c.ID, "state.json"))
	if err == nil {
		err = json.Unmarshal(b, &state)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return len(state.Config.Seccomp.Syscalls)
}

// What libcontainer is given from the second container on is not the profile: the filter has to be.
func TestShortFormOfAProfileMakesItsFilter(t *testing.T) {
	n := newNode(t)
	c := n.run(defaultFilter, "sleep", "1000")
	if got := c.rulesGiven(); got < 300 {
		t.Errorf("the first was given %d rules", got)
	}
	want := loadedFilter(t, c.pid)
	n.eventually("a container is given the short form", func() bool {
		c.delete()
		c = n.run(defaultFilter, "sleep", "1000")
		return c.rulesGiven() < 10
	})
	check := func(what string, pid int) {
		t.Helper()
		got := loadedFilter(t, pid)
		if got.flags != want.flags {
			t.Errorf("%s: flags %#x and %#x", what, got.flags, want.flags)
		}
		compareVerdicts(t, got.program, want.program)
	}
	check("start", c.pid)
	// A keeper that never met the profile starts a command by what is on disk.
	n.crash()
	n.program = plainKeeper(t, "-plain-exec")
	n.respawn(c)
	check("exec", c.execSleep())
	if strings.Contains(n.log(), "compile") {
		t.Errorf("the keeper's log:\n%s", n.log())
	}
}

// A profile that is expected is ready before the first container.
func TestExpectedProfileIsCompiledBeforehand(t *testing.T) {
	n := newNode(t)
	c := n.container(defaultFilter, "sleep", "1000")
	if err := n.client.Expect(deadline(t), keeper.ExpectRequest{Seccomp: c.Spec.Linux.Seccomp}); err != nil {
		t.Fatal(err)
	}
	n.eventually("both forms are there", func() bool { return n.learned() == 2 })
	n.eventually("a container is given the short form", func() bool {
		c = n.run(defaultFilter, "sleep", "1000")
		defer c.delete()
		return c.rulesGiven() < 10 // verifying takes some more milliseconds
	})
}

// A keeper that ends while it compiles does not leave its cgroup, in which that is done, to the machine.
func TestKeeperEndsWhileItCompiles(t *testing.T) {
	n := newNode(t) // looks for the cgroup at its end
	c := n.container(defaultFilter, "sleep", "1000")
	if err := n.client.Expect(deadline(t), keeper.ExpectRequest{Seccomp: c.Spec.Linux.Seccomp}); err != nil {
		t.Fatal(err)
	}
}

// Only a profile that denies what it does not name has a short form: see package profiles.
func TestProfileThatAllowsIsGivenWhole(t *testing.T) {
	n := newNode(t)
	whole := func(r *keeper.StartRequest) {
		defaultFilter(r)
		r.Spec.Linux.Seccomp.DefaultAction = specs.ActAllow
		for i := range r.Spec.Linux.Seccomp.Syscalls {
			r.Spec.Linux.Seccomp.Syscalls[i].Action = specs.ActLog
		}
	}
	for range 2 {
		c := n.run(whole, "sleep", "1000")
		if got := c.rulesGiven(); got < 300 {
			t.Errorf("%d rules were given", got)
		}
		c.delete()
		n.eventually("the filter is there", func() bool { return n.learned() == 1 })
	}
}

func TestContainerWithoutAFilterHasNone(t *testing.T) {
	n := newNode(t)
	c := n.run(nil, "sh", "-c", "cat /proc/self/status; exit 0")
	c.wait()
	if got := c.output("stdout"); !strings.Contains(got, "Seccomp:\t0") {
		t.Errorf("got %q", got)
	}
	if got := n.learned(); got != 0 {
		t.Errorf("%d filters were compiled", got)
	}
}
