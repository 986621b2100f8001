//go:build e2e

package e2e

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
)

// What the tests look up on the host, behind the runtime's back.

const cgroupTop = "/sys/fs/cgroup"

// cgroupV2 says that the unified hierarchy has the controllers.
func cgroupV2() bool {
	_, err := os.Stat(filepath.Join(cgroupTop, "cgroup.controllers"))
	return err == nil
}

// cgroupsNamed finds the cgroups whose path holds the id, in all hierarchies.
func cgroupsNamed(t *testing.T, id string) []string {
	t.Helper()
	var found []string
	filepath.WalkDir(cgroupTop, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, id) {
			found = append(found, path)
		}
		return nil
	})
	return found
}

// cgroupFile reads a file of the container's own cgroup: the name on v1 with its controller, the name on v2.
func (c *container) cgroupFile(t *testing.T, controller, v1, v2 string) string {
	t.Helper()
	name, top := v1, filepath.Join(cgroupTop, controller)
	if cgroupV2() {
		name, top = v2, cgroupTop
	}
	for _, dir := range cgroupsNamed(t, c.id) {
		if !strings.HasPrefix(dir, top+"/") {
			continue
		}
		if b, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
			return strings.TrimSpace(string(b))
		}
	}
	t.Fatalf("no %s below %s for container %s", name, top, c.id)
	return ""
}

// processesWith are the pids of processes of which cgroup or command line hold the text.
func processesWith(t *testing.T, text string) []int {
	t.Helper()
	var pids []int
	for _, pid := range allProcesses(t) {
		dir := filepath.Join("/proc", strconv.Itoa(pid))
		cgroup, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if bytes.Contains(cgroup, []byte(text)) || bytes.Contains(cmdline, []byte(text)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func allProcesses(t *testing.T) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// alive reports whether a process lives and is no zombie.
func alive(pid int) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(after, "Z")
}

// wantNotFound checks that an error says that something does not exist.
func wantNotFound(t *testing.T, err error) {
	t.Helper()
	wantCode(t, err, codes.NotFound)
}

// crictlWithInput runs crictl with a standard input.
func crictlWithInput(t *testing.T, input string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(timeout(t), filepath.Join(shared.Tools, "crictl"), append(shared.CrictlArgs(), args...)...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("crictl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}
