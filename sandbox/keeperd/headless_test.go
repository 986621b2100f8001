package keeperd

import (
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// headlessVariable makes the program go on without its first thread until its stdin ends. To the kernel it is a zombie
// then, with threads that run.
const headlessVariable = "GANTRY_TEST_HEADLESS"

func init() { // the only place where Go promises the first thread
	if os.Getenv(headlessVariable) == "" {
		return
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	_, _, _ = unix.Syscall(unix.SYS_EXIT, 0, 0, 0)
}

func TestProcessWithoutItsFirstThreadHasNotExited(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), headlessVariable+"=1")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer stdin.Close()
	pidfd, err := openPIDFD(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer pidfd.Close()
	eventually := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("not in time: " + what)
			}
		}
	}
	eventually("the first thread ends", func() bool {
		s, err := readStat(cmd.Process.Pid)
		return err == nil && s.state == 'Z'
	})
	if hasExited(pidfd) {
		t.Error("it goes on and is taken for one that has exited")
	}
	_ = stdin.Close()
	eventually("it exits", func() bool { return hasExited(pidfd) })
}
