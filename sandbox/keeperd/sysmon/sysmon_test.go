package sysmon

import (
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		println("skipping: to read the slack of another thread needs root")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// slacks are those of the threads of this process, by their ids. A thread that ended meanwhile is left out.
func slacks(t *testing.T) map[string]string {
	t.Helper()
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, thread := range threads {
		if b, err := os.ReadFile("/proc/" + thread.Name() + "/timerslack_ns"); err == nil {
			found[thread.Name()] = strings.TrimSpace(string(b))
		}
	}
	return found
}

// patient returns the threads that have another slack than the first one, which has the one of whoever started it. There is
// one at least, but for moments: sysmon puts its slack off while it makes a thread.
func patient(t *testing.T) (threads []string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); len(threads) == 0; time.Sleep(time.Millisecond) {
		all := slacks(t)
		if time.Now().After(end) {
			t.Fatalf("no thread has a slack of its own: %v", all)
		}
		for thread, slack := range all {
			if slack != all[strconv.Itoa(os.Getpid())] {
				threads = append(threads, thread)
			}
		}
	}
	return threads
}

// The patient thread is the one that goes on sleeping for short times while the program is busy.
func TestSysmonIsPatient(t *testing.T) {
	threads := patient(t)
	if len(threads) > 1 {
		t.Fatalf("threads with a slack of their own: %q, expected one of %v", threads, slacks(t))
	}
	call := "/proc/self/task/" + threads[0] + "/syscall"
	var said string
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		b, err := os.ReadFile(call)
		if os.IsNotExist(err) {
			t.Skip("the kernel has no /proc/<pid>/syscall (CONFIG_HAVE_ARCH_TRACEHOOK)")
		}
		if err != nil {
			t.Fatal(err)
		}
		if said = string(b); strings.HasPrefix(said, strconv.Itoa(unix.SYS_NANOSLEEP)+" ") {
			return
		}
	}
	t.Errorf("the thread never sleeps as sysmon does: %s is %q", call, said)
}

// Threads that hold processors in system calls make sysmon start others, for those that wait.
func TestPatienceIsNotInherited(t *testing.T) {
	const blocked = 64
	before := len(slacks(t))
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for range blocked {
		group.Go(func() { _, _ = unix.Read(ends[0], make([]byte, 1)) })
	}
	for end := time.Now().Add(time.Minute); len(slacks(t)) < max(before, blocked); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d threads, expected %d", len(slacks(t)), blocked)
		}
	}
	if threads := patient(t); len(threads) > 1 {
		t.Errorf("%d threads have the slack of sysmon: %v", len(threads), slacks(t))
	}
	if err := unix.Close(ends[1]); err != nil {
		t.Fatal(err)
	}
	group.Wait()
	_ = unix.Close(ends[0])

	want := slacks(t)[strconv.Itoa(os.Getpid())]
	for range 4 * runtime.NumCPU() {
		group.Go(func() {
			out, err := exec.Command("cat", "/proc/self/timerslack_ns").Output()
			if got := strings.TrimSpace(string(out)); err != nil || got != want {
				t.Errorf("a process that was executed has %q, %v; expected %s", got, err, want)
			}
		})
	}
	group.Wait()
}
