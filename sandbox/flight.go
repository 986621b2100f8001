package sandbox

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"

	"github.com/containerd/errdefs"
	"k8s.io/klog/v2"
)

// flight lets at most one run of an action go on: who asks while it runs waits for that run and gets its result. The
// action does not see its callers' contexts, so it outlives a caller that gives up; each caller waits with its own.
//
// This is the rule "a retry joins": the kubelet repeats a call whose deadline passed, and must neither be refused nor
// make the work happen twice.
type flight struct {
	mu  sync.Mutex
	cur *flightRun
}

type flightRun struct {
	done chan struct{}
	err  error
}

// do joins the running action, or starts action, and waits for its end or for the end of ctx.
func (f *flight) do(ctx context.Context, action func() error) error {
	f.mu.Lock()
	run := f.cur
	if run == nil {
		run = &flightRun{done: make(chan struct{})}
		f.cur = run
		go f.fly(run, action)
	}
	f.mu.Unlock()
	select {
	case <-run.done:
		return run.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// next waits for the running action, if there is one, and then starts its own: for actions that are different wishes
// and not one repeated.
func (f *flight) next(ctx context.Context, action func() error) error {
	for {
		mine := false
		err := f.do(ctx, func() error { mine = true; return action() })
		if mine || ctx.Err() != nil {
			return err
		}
	}
}

// wait waits for the running action, if there is one, and returns its result.
func (f *flight) wait(ctx context.Context) error {
	f.mu.Lock()
	run := f.cur
	f.mu.Unlock()
	if run == nil {
		return nil
	}
	select {
	case <-run.done:
		return run.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *flight) fly(run *flightRun, action func() error) {
	// The action runs outside the gRPC server's goroutine, so its interceptor cannot catch a panic of it.
	defer func() {
		if r := recover(); r != nil {
			klog.ErrorS(nil, "Panic in a lifecycle action", "panic", r, "stack", string(debug.Stack()))
			run.err = fmt.Errorf("panic: %v: %w", r, errdefs.ErrInternal)
		}
		f.mu.Lock()
		f.cur = nil
		f.mu.Unlock()
		close(run.done)
	}()
	run.err = action()
}
