package reaper

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// keeperVariable makes the test program play the keeper.
const keeperVariable = "GANTRY_TEST_PLAY_KEEPER"

func TestMain(m *testing.M) {
	switch os.Getenv(keeperVariable) {
	case "":
		os.Exit(m.Run())
	case "exits":
		os.Exit(3)
	case "is killed":
		playKilled()
	}
}

// playKilled leaves two children behind, which it names with their start times.
func playKilled() {
	fmt.Println(os.Getppid(), PID(), "marker="+os.Getenv(keeper.ReaperVariable))
	for _, script := range []string{"sleep 0.2; exit 7", "sleep 0.2; kill -9 $$"} {
		cmd := exec.Command("sh", "-c", script)
		if err := cmd.Start(); err != nil {
			panic(err)
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
		if err != nil {
			panic(err)
		}
		_, fields, _ := strings.Cut(string(stat), ") ")
		fmt.Println(cmd.Process.Pid, strings.Fields(fields)[22-3])
	}
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}

// play runs the program as a reaper with a keeper, until both have ended.
func play(t *testing.T, file, how string) (output string, code int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), keeperVariable + "=" + how, keeper.ReaperVariable + "=" + file}
	out, err := cmd.Output()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func TestOrphansAreNoted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ends")
	ends := open(t, file)
	out, code := play(t, file, "is killed")
	if code != 128+9 {
		t.Errorf("the reaper ended with %d", code)
	}
	var parent, reaper int
	var pids [2]int
	var starts [2]uint64
	if _, err := fmt.Sscanf(out, "%d %d marker=\n%d %d\n%d %d\n", &parent, &reaper,
		&pids[0], &starts[0], &pids[1], &starts[1]); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if reaper == 0 || reaper != parent {
		t.Errorf("reaper %d, parent %d", reaper, parent)
	}
	for i, want := range []unix.WaitStatus{7 << 8, 9} {
		if status, ok := ends.Find(pids[i], starts[i]); !ok || status != want {
			t.Errorf("end of orphan %d: %#x, %v; expected %#x", i, status, ok, want)
		}
		if status, ok := ends.Find(pids[i], starts[i]+1); ok {
			t.Errorf("a later process has its end: %#x", status)
		}
	}
}

func TestReaperEndsAsTheKeeper(t *testing.T) {
	// Without a file too: one that fails early makes none.
	if out, code := play(t, filepath.Join(t.TempDir(), "none"), "exits"); code != 3 {
		t.Errorf("exit code %d: %s", code, out)
	}
}

func TestNoReaperWithoutTheVariable(t *testing.T) {
	if pid := PID(); pid != 0 {
		t.Errorf("a reaper: %d", pid)
	}
}

func open(t *testing.T, path string) *Ends {
	t.Helper()
	ends, err := OpenEnds(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ends.file.Close() })
	return ends
}

func TestEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ends")
	ends := open(t, path)
	want := func(pid int, start uint64, status unix.WaitStatus, there bool) {
		t.Helper()
		// By whoever opens it.
		if got, ok := open(t, path).Find(pid, start); ok != there || got != status {
			t.Errorf("end of %d started at %d: %#x, %v; expected %#x, %v", pid, start, got, ok, status, there)
		}
	}
	const other = 4<<20 - 1 // the highest pid that there is
	note := func(pid int, start uint64, status unix.WaitStatus) {
		t.Helper()
		if err := ends.Note(pid, start, status); err != nil {
			t.Fatal(err)
		}
	}
	want(100, 5, 0, false)
	note(other, 1<<40, 9)
	note(100, 5, 3<<8)
	want(100, 5, 3<<8, true)
	want(100, 6, 0, false)
	want(99, 0, 0, false)
	want(other, 1<<40, 9, true)
	note(100, 6, 0)
	want(100, 5, 0, false)
	want(100, 6, 0, true)
	if info, err := os.Stat(path); err != nil || info.Size() > 1<<20 {
		t.Errorf("the file: %+v, %v", info, err)
	}
}
