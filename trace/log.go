package trace

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// maxPods is how many pods' timelines are kept, maxCalls how many calls of each. A start of a pod with one container
	// is three calls and some 3 KB.
	maxPods  = 64
	maxCalls = 16
)

// Log keeps the timelines of the newest pods. Its methods may be called from several goroutines; those of a nil Log do
// nothing.
type Log struct {
	ended func(context.Context, *Call)

	mu   sync.Mutex
	pods []*pod // the newest last
}

// pod is the calls about one sandbox, the first first.
type pod struct {
	id, name string
	calls    []*timeline
}

// Pod is what is known of a pod.
type Pod struct {
	// ID is the sandbox's, Name the pod's namespace and name with a slash between.
	ID, Name string
	// Calls are in the order of their beginnings.
	Calls []Call
}

// NewLog makes an empty log. ended, which may be nil, is told of every call that has ended, whether it is kept or not,
// with the call's context; it must not change the call, nor keep it.
func NewLog(ended func(context.Context, *Call)) *Log { return &Log{ended: ended} }

// Begin begins the timeline of a call, which the returned context carries. end ends it; the call is kept if it was said
// to be About a sandbox.
func (l *Log) Begin(ctx context.Context, method string) (_ context.Context, end func(error)) {
	if l == nil {
		return ctx, func(error) {}
	}
	t := &timeline{call: Call{Method: method, Begin: time.Now(), Steps: make([]Step, 0, 16)}}
	ctx = context.WithValue(ctx, contextKey{}, position{t: t, index: -1})
	return ctx, func(err error) {
		t.mu.Lock()
		t.call.Took = time.Since(t.call.Begin)
		if err != nil {
			t.call.Err = err.Error()
		}
		subject := t.call.Subject
		t.mu.Unlock()
		if subject.SandboxID != "" {
			l.keep(t, subject)
		}
		if l.ended != nil {
			call := t.copy()
			l.ended(ctx, &call)
		}
	}
}

// keep puts a call to its pod, and lets go of the oldest pod or, but for the one that made the sandbox, the pod's
// oldest call if there are too many.
func (l *Log) keep(t *timeline, subject Subject) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.IndexFunc(l.pods, func(p *pod) bool { return p.id == subject.SandboxID })
	if i < 0 {
		if len(l.pods) == maxPods {
			l.pods = slices.Delete(l.pods, 0, 1)
		}
		l.pods = append(l.pods, &pod{id: subject.SandboxID})
		i = len(l.pods) - 1
	}
	p := l.pods[i]
	if subject.Pod != "" {
		p.name = subject.Pod
	}
	if len(p.calls) == maxCalls {
		p.calls = slices.Delete(p.calls, 1, 2)
	}
	p.calls = append(p.calls, t)
}

// Find returns the timelines of a pod: by its sandbox's id or a unique prefix of that, or by namespace and name with a
// slash between, the newest that has them.
// Errors: errdefs.ErrNotFound, errdefs.ErrInvalidArgument for a prefix of several.
func (l *Log) Find(key string) (*Pod, error) {
	if l == nil || key == "" {
		return nil, fmt.Errorf("pod %q: expected an id or namespace/name: %w", key, errdefs.ErrInvalidArgument)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var found *pod
	for _, p := range l.pods {
		byName := strings.Contains(key, "/")
		if byName && p.name != key || !byName && !strings.HasPrefix(p.id, key) {
			continue
		}
		if found != nil && !byName {
			return nil, fmt.Errorf("pod id %q: it is the beginning of several: %w", key, errdefs.ErrInvalidArgument)
		}
		found = p
	}
	if found == nil {
		return nil, fmt.Errorf("timeline of pod %q: the daemon keeps those of the last %d pods that it started since it "+
			"was started itself: %w", key, maxPods, errdefs.ErrNotFound)
	}
	result := &Pod{ID: found.id, Name: found.name}
	for _, t := range found.calls {
		result.Calls = append(result.Calls, t.copy())
	}
	slices.SortStableFunc(result.Calls, func(a, b Call) int { return a.Begin.Compare(b.Begin) })
	return result, nil
}

// copy returns the call as it is now.
func (t *timeline) copy() Call {
	t.mu.Lock()
	defer t.mu.Unlock()
	call := t.call
	call.Steps = slices.Clone(call.Steps)
	return call
}
