package host

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"k8s.io/klog/v2"
)

// lookupTimeout bounds what one container may wait for its paths, and maxLookups how many lookups there can be
// at a time: a stuck one holds an operating system thread until its disk answers.
const (
	lookupTimeout = 30 * time.Second
	maxLookups    = 256
)

// lookupTable runs file system calls that may never return. A system call on a dead network disk cannot be cancelled;
// what can be done is to leave it behind. Who asks for what is being looked up already joins that lookup, so that the
// kubelet's retries do not add a stuck thread each; beyond limit lookups a new one is refused at once.
type lookupTable struct {
	limit int

	mu      sync.Mutex
	running map[string]*lookupRun
}

// lookups is one for the process, for what it bounds are the process's threads.
var lookups = lookupTable{limit: maxLookups}

type lookupRun struct {
	done  chan struct{}
	value any
	err   error
}

// lookup runs f, or joins the run with the same key, and waits for it or for the end of ctx. The same key always goes
// with the same f and T. Errors: f's, ctx's, or errdefs.ErrUnavailable when too many lookups do not return.
func lookup[T any](ctx context.Context, l *lookupTable, key string, f func() (T, error)) (T, error) {
	var none T
	run, err := l.run(key, func() (any, error) { return f() })
	if err != nil {
		return none, err
	}
	select {
	case <-run.done:
	case <-ctx.Done():
		return none, fmt.Errorf("the file system does not answer: %w", ctx.Err())
	}
	value, _ := run.value.(T)
	return value, run.err
}

func (l *lookupTable) run(key string, f func() (any, error)) (*lookupRun, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if run := l.running[key]; run != nil {
		return run, nil
	}
	if len(l.running) >= l.limit {
		return nil, fmt.Errorf("%d lookups of paths are waiting for file systems: %w", l.limit, errdefs.ErrUnavailable)
	}
	if l.running == nil {
		l.running = make(map[string]*lookupRun)
	}
	run := &lookupRun{done: make(chan struct{})}
	l.running[key] = run
	go l.finish(key, run, f)
	return run, nil
}

func (l *lookupTable) finish(key string, run *lookupRun, f func() (any, error)) {
	defer func() {
		if r := recover(); r != nil {
			klog.ErrorS(nil, "Panic in a lookup of a path", "panic", r, "stack", string(debug.Stack()))
			run.err = fmt.Errorf("panic: %v: %w", r, errdefs.ErrInternal)
		}
		l.mu.Lock()
		delete(l.running, key)
		l.mu.Unlock()
		close(run.done)
	}()
	run.value, run.err = f()
}
