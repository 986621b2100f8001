package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// lockVariable makes the test binary a process that locks directories until its standard input ends.
const lockVariable = "GANTRYD_TEST_LOCK"

func TestMain(m *testing.M) {
	if dirs := os.Getenv(lockVariable); dirs != "" {
		if _, err := lockDirs(filepath.SplitList(dirs)...); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("locked")
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// startLocker starts another process that locks dirs; kill ends it the hard way.
func startLocker(t *testing.T, dirs ...string) (pid int, kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), lockVariable+"="+strings.Join(dirs, ":"))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = stdin.Close()
	}
	t.Cleanup(kill)
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "locked\n" {
		t.Fatalf("locker said %q, %v", line, err)
	}
	return cmd.Process.Pid, kill
}

func TestSecondDaemonIsRefusedWithThePidOfTheFirst(t *testing.T) {
	root, state := filepath.Join(t.TempDir(), "root"), filepath.Join(t.TempDir(), "state")
	pid, kill := startLocker(t, root, state)
	other := t.TempDir()
	for _, dirs := range [][]string{{root, other}, {other, state}} {
		held, err := lockDirs(dirs...)
		if err == nil {
			held.release()
			t.Fatalf("%v: locked twice", dirs)
		}
		if want := fmt.Sprintf("in use by another gantryd (pid %d)", pid); !strings.Contains(err.Error(), want) {
			t.Errorf("error %q, expected %q in it", err, want)
		}
	}
	kill()
	held, err := lockDirs(root, state)
	if err != nil {
		t.Fatalf("after the first daemon was killed: %v", err)
	}
	held.release()
}

func TestRefusedLockHoldsNothing(t *testing.T) {
	free, taken := t.TempDir(), t.TempDir()
	startLocker(t, taken)
	if _, err := lockDirs(free, taken); err == nil {
		t.Fatal("locked twice")
	}
	if pid, _ := startLocker(t, free); pid == 0 {
		t.Error("no locker")
	}
}

func TestDaemonsWithOtherDirectoriesRunSideBySide(t *testing.T) {
	startLocker(t, t.TempDir(), t.TempDir())
	held, err := lockDirs(t.TempDir(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	held.release()
}
