package sandbox

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func TestFlightRunsOnceForAllWhoAsk(t *testing.T) {
	var f flight
	var runs atomic.Int32
	release := make(chan struct{})
	results := make(chan error, 10)
	want := errors.New("result")
	for range 10 {
		go func() {
			results <- f.do(context.Background(), func() error { runs.Add(1); <-release; return want })
		}()
	}
	time.Sleep(20 * time.Millisecond)
	close(release)
	for range 10 {
		if err := <-results; !errors.Is(err, want) {
			t.Errorf("got %v", err)
		}
	}
	if n := runs.Load(); n != 1 {
		t.Errorf("ran %d times", n)
	}
}

func TestFlightOutlivesACallerThatGivesUp(t *testing.T) {
	var f flight
	release, done := make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := f.do(ctx, func() error { <-release; close(done); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(release)
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Error("the action ended with its caller")
	}
}

func TestFlightTurnsAPanicIntoAnError(t *testing.T) {
	var f flight
	if err := f.do(context.Background(), func() error { panic("boom") }); !errors.Is(err, errdefs.ErrInternal) {
		t.Errorf("got %v", err)
	}
	if err := f.do(context.Background(), func() error { return nil }); err != nil {
		t.Errorf("the next run: %v", err)
	}
}
