package profiles

import (
	"os"
	"sync/atomic"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// The test binary is also the process that records, and it cannot.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == RecordVerb {
		os.Exit(3)
	}
	os.Exit(m.Run())
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
