package profiles

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The test binary is also the process that records, and it cannot. For a profile with a path in it, it leaves its pid there
// and does not end.
func TestMain(m *testing.M) {
	if len(os.Args) != 2 || os.Args[1] != RecordVerb {
		os.Exit(m.Run())
	}
	var profile specs.LinuxSeccomp
	if err := json.NewDecoder(os.Stdin).Decode(&profile); err != nil || profile.ListenerPath == "" {
		os.Exit(3)
	}
	if err := os.WriteFile(profile.ListenerPath, []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
		os.Exit(4)
	}
	time.Sleep(2 * learnTimeout)
}

// Close ends a process that compiles, and does not wait until it would be given up.
func TestCloseEndsWhatCompiles(t *testing.T) {
	var failed atomic.Int32
	b := Open(func(string, ...any) { failed.Add(1) })
	defer b.cache.Close()
	path := filepath.Join(t.TempDir(), "pid")
	b.Meet(&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, ListenerPath: path})
	pid := 0
	for end := time.Now().Add(time.Minute); pid == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		text, _ := os.ReadFile(path)
		pid, _ = strconv.Atoi(string(text))
	}
	if pid == 0 {
		t.Fatal("nothing compiles")
	}
	b.Close()
	if failed.Load() != 0 {
		t.Error("it was given up, and not ended")
	}
	if err := unix.Kill(pid, 0); err != unix.ESRCH {
		t.Errorf("process %d is still there: %v", pid, err)
	}
}

func TestAProfileThatCannotBeCompiledIsTriedAgainAndThenLeft(t *testing.T) {
	var failed atomic.Int32
	b := Open(func(string, ...any) { failed.Add(1) })
	defer b.cache.Close()
	profile := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	for end := time.Now().Add(time.Minute); failed.Load() < learnTries && time.Now().Before(end); {
		if got := b.Meet(profile); got != profile {
			t.Fatalf("got %v", got)
		}
		time.Sleep(time.Millisecond)
	}
	for range 3 {
		b.Meet(profile)
		b.learning.Wait()
	}
	if failed.Load() != learnTries {
		t.Errorf("it was tried %d times, want %d", failed.Load(), learnTries)
	}
	b.Close()
	other := &specs.LinuxSeccomp{DefaultAction: specs.ActKill}
	if got := b.Meet(other); got != other || failed.Load() != learnTries {
		t.Errorf("closed: got %v after %d tries", got, failed.Load())
	}
}
