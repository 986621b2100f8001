package keeperd_test

import (
	encoding "encoding/binary"
	"fmt"
	"os"
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
