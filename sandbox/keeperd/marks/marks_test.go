package marks

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The test binary is also the init that leaves marks, like the keeper's.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "init" {
		Begin()
		return
	}
	os.Exit(m.Run())
}

// leave runs an init to its end and returns its pid.
func leave(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "init")
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("init: %v: %s", err, out)
	}
	return cmd.Process.Pid
}

func TestMarks(t *testing.T) {
	var none *Area
	if _, ok := none.Of(leave(t)); ok {
		t.Error("there are marks without an area")
	}
	area, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	before := Now()
	pid := leave(t)
	m, ok := area.Of(pid)
	if !ok || m.Executed < before || m.Began < m.Executed || m.Began > Now() {
		t.Errorf("marks are %+v, %v, expected some from %d on", m, ok, before)
	}
	if m.Bootstrapped != 0 || m.Namespaced != 0 || m.Seccomp != 0 || m.Exported != 0 {
		t.Errorf("marks are %+v, expected none of stages that this init has not", m)
	}
	if _, ok := area.Of(pid + 1); ok {
		t.Error("another process has marks")
	}
	if _, ok := area.Of(pid + slots); ok {
		t.Error("another process of the same slot has the marks")
	}
	if _, err := Open(); err == nil || !strings.Contains(err.Error(), fmt.Sprint("descriptor ", FD, " is in use")) {
		t.Errorf("a second area: %v", err)
	}
	if err := area.file.Close(); err != nil {
		t.Fatal(err)
	}
}
