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
	results, joining := make(chan error, 10), make(chan struct{}, 10)
	want := errors.New("result")
	for range 10 {
		go func() {
			ctx := tellingContext{context.Background(), joining}
			results <- f.do(ctx, func() error { runs.Add(1); <-release; return want })
		}()
	}
	for range 10 {
		<-joining
	}
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

// tellingContext tells when somebody begins to wait for its end, who then has joined.
type tellingContext struct {
	context.Context
	waited chan<- struct{}
}

func (c tellingContext) Done() <-chan struct{} {
	c.waited <- struct{}{}
	return c.Context.Done()
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
	case <-time.After(time.Minute):
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
