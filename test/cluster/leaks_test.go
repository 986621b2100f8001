package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What a cluster could leave behind is seen, and what is not of the cluster is not.
func TestWhatIsLeftIsSeen(t *testing.T) {
	b := belongings{name: fmt.Sprintf("gantry-leak-%d", os.Getpid())}
	if left := b.left(); len(left) > 0 {
		t.Fatalf("of nothing is left %q", left)
	}
	saw := func(what string) bool { return strings.Contains(strings.Join(b.left(), "\n"), what) }
	dir := filepath.Join(os.TempDir(), b.name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if !saw(dir) {
		t.Error("a directory is not seen")
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	b.hold(map[string]bool{ownNamespace("net"): true})
	if !saw(fmt.Sprintf("by /proc/%d/ns/net", os.Getpid())) {
		t.Error("a namespace of a process is not seen")
	}
	file, err := os.Open("/proc/self/ns/uts")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	b.hold(map[string]bool{ownNamespace("uts"): true})
	if !saw(fmt.Sprintf("by /proc/%d/fd/%d ", os.Getpid(), file.Fd())) {
		t.Error("a namespace that a descriptor keeps is not seen")
	}
	b.held = map[link]string{{path: fmt.Sprintf("/proc/%d/ns/uts", os.Getpid()), started: "1"}: ownNamespace("uts")}
	if saw("namespace") {
		t.Error("a process counts that has the pid of another")
	}
	if os.Geteuid() != 0 {
		return
	}
	cgroup := filepath.Join("/sys/fs/cgroup", b.name) // version 2
	if found, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs"); len(found) > 0 {
		cgroup = filepath.Join(filepath.Dir(found[0]), b.name)
	}
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(cgroup); err != nil {
			t.Error(err)
		}
	})
	if !saw(cgroup) {
		t.Error("a cgroup is not seen")
	}
	pid := startCat(t)
	if _, err := os.Stat(filepath.Join(cgroup, "cpuset.cpus")); err == nil {
		return // an empty one takes no process
	}
	if err := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), fmt.Append(nil, pid), 0); err != nil {
		t.Fatal(err)
	}
	if left := b.left(); !slices.Contains(left, fmt.Sprintf("process %d cat - ", pid)) {
		t.Errorf("process %d is not seen, of what is left: %q", pid, left)
	}
}

// startCat starts "cat -" and returns its pid. When it has repeated a line it has its command line as well: os/exec is
// done earlier, when the kernel has closed the descriptors and is still about to copy the arguments.
func startCat(t *testing.T) int {
	t.Helper()
	cat := exec.Command("cat", "-")
	in, err := cat.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cat.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cat.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cat.Wait()
	})
	if _, err := io.WriteString(in, "here\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("cat said %q: %v", line, err)
	}
	return cat.Process.Pid
}
