package keeperd_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// patientThreads returns how many threads of a process have a timer slack of their own.
func (n *node) patientThreads(pid int) (count int) {
	n.t.Helper()
	slack := func(thread string) string {
		b, _ := os.ReadFile(filepath.Join("/proc", thread, "timerslack_ns"))
		return strings.TrimSpace(string(b))
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil || slack(fmt.Sprint(pid)) == "" {
		n.t.Fatalf("timer slack of %d: %q, %v", pid, slack(fmt.Sprint(pid)), err)
	}
	for _, thread := range threads {
		if got := slack(thread.Name()); got != "" && got != slack(fmt.Sprint(pid)) {
			count++
		}
	}
	return count
}

// The keeper's sysmon has a timer slack, and nothing that runs in a container has it: neither its first process nor a
// command, by whatever way it is started and with however many beside it.
func TestContainersHaveNoTimerSlack(t *testing.T) {
	b, err := os.ReadFile("/proc/self/timerslack_ns")
	if err != nil {
		t.Fatal(err)
	}
	want := string(b) // what the keeper was started with
	tell := "cat /proc/self/timerslack_ns"
	n := newNode(t)
	check := func(c *container, way string) {
		if got := c.output("stdout"); got != want {
			t.Errorf("a container's first process has a slack of %q, expected %q", got, want)
		}
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				if got, code := c.exec("sh", "-c", tell); got != want || code != 0 {
					t.Errorf("a command, by %s, has a slack of %q, code %d; expected %q", way, got, code, want)
				}
			})
		}
		group.Wait()
	}
	var containers []*container
	for range 8 {
		containers = append(containers, n.container(nil, "sh", "-c", tell+"; exec sleep 1000"))
	}
	var group sync.WaitGroup
	for _, c := range containers {
		group.Go(func() {
			c.begin()
			c.eventually("the first process has told", func() bool { return c.output("stdout") != "" })
			check(c, "the stage")
		})
	}
	group.Wait()
	// It puts its slack off while it makes a thread.
	n.eventually("one thread of the keeper has a slack of its own", func() bool { return n.patientThreads(n.pid()) == 1 })
	n.crash()
	n.program = plainKeeper(t, "-plain-exec")
	n.respawn(containers...)
	check(containers[0], "libcontainer")
	for _, c := range containers {
		c.delete()
	}
}
