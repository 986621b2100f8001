package keeperd

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A start ends, and then its caller: whoever watches for the caller must not take that for giving up, also when it gets
// to run only after both.
func TestAStartThatEndedIsNotGivenUp(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // so nothing else runs before this goroutine rests
	synctest.Test(t, func(t *testing.T) {
		for range 50 {
			var acted atomic.Bool
			ctx, cancel := context.WithCancel(t.Context())
			stop := whenGivenUp(ctx, func() { acted.Store(true) })
			stop()
			cancel()
			synctest.Wait()
			if acted.Load() {
				t.Fatal("a start was killed that its caller had not given up")
			}
		}
	})
}

func TestAStartThatIsGivenUpIsKilledUntilItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var acted atomic.Int32
		ctx, cancel := context.WithCancel(t.Context())
		stop := whenGivenUp(ctx, func() { acted.Add(1) })
		want := func(when string, n int32) {
			t.Helper()
			synctest.Wait()
			if got := acted.Load(); got != n {
				t.Errorf("%s: killed %d times, want %d", when, got, n)
			}
		}
		want("before", 0)
		cancel()
		want("given up", 1)
		time.Sleep(2 * giveUpPause)
		want("later", 3)
		stop()
		want("ended", 3)
		time.Sleep(time.Hour)
		want("long after", 3)
	})
}
