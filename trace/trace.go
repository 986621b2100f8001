// Package trace takes the time of the steps by which a pod comes to be, in every part of the daemon, and keeps the
// timelines of the newest pods in memory. A call that is traced has its timeline in its context; where there is none,
// nothing is done and nothing allocated.
//
// It is not OpenTelemetry and sends nothing: who wants to hears of each call's end (see NewLog). It writes no files: a
// restart of the daemon forgets.
package trace

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxSteps bounds the steps of one call. A start has about 30; a network of many plugins has some more.
const maxSteps = 128

// Step is a part of a call, or of another step.
type Step struct {
	// Name says what was done.
	Name string
	// Parent is the index of the step that this one is a part of, -1 for the call.
	Parent int
	// Start and End are since the beginning of the call. End is -1 while the step goes on.
	Start, End time.Duration
}

// Subject is what a call is about. Fields that are empty are not known.
type Subject struct {
	// SandboxID is the id of the sandbox, Pod its namespace and name with a slash between.
	SandboxID, Pod string
	// ContainerID and Container are the id and the name of the container.
	ContainerID, Container string
}

// Call is the timeline of one request. Steps that its job does after it was answered, since the client gave up, are
// there too.
type Call struct {
	// Method is the name of the RPC.
	Method  string
	Subject Subject
	// Begin is when the request was there, Took how long it took until the answer.
	Begin time.Time
	Took  time.Duration
	// Err is why it failed; empty if it did not.
	Err string
	// Steps are in the order of their beginnings, but for those of other processes, which come when these have answered.
	Steps []Step
	// Dropped is how many more there were.
	Dropped int
}

// timeline is a call that goes on. Its methods may be called from several goroutines.
type timeline struct {
	mu   sync.Mutex
	call Call
}

// position is where in a timeline a context is.
type position struct {
	t     *timeline
	index int
}

type contextKey struct{}

func of(ctx context.Context) position {
	at, _ := ctx.Value(contextKey{}).(position)
	return at
}

// With returns ctx with the timeline of from, if that has one. It is for jobs that outlive the call that asked for
// them.
func With(ctx, from context.Context) context.Context {
	at := of(from)
	if at.t == nil {
		return ctx
	}
	return context.WithValue(ctx, contextKey{}, at)
}

// About says what the call is about. Fields that are empty stay as they were.
func About(ctx context.Context, s Subject) {
	t := of(ctx).t
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	known := &t.call.Subject
	for _, f := range []struct {
		to   *string
		from string
	}{
		{&known.SandboxID, s.SandboxID}, {&known.Pod, s.Pod},
		{&known.ContainerID, s.ContainerID}, {&known.Container, s.Container},
	} {
		if f.from != "" {
			*f.to = f.from
		}
	}
}

// Span is a step that goes on. The zero value is none.
type Span struct{ position }

// Start begins a step of the call, or of the step, that ctx is in. What has the returned context is a part of the step.
func Start(ctx context.Context, name string) (context.Context, Span) {
	at := of(ctx)
	if at.t == nil {
		return ctx, Span{}
	}
	at.index = at.t.begin(name, at.index)
	return context.WithValue(ctx, contextKey{}, at), Span{at}
}

// End ends the step. It may be called more than once: the first counts.
func (s Span) End() {
	if s.t != nil {
		s.t.end(s.index)
	}
}

// Sequence is steps of which each begins where the one before it ends. It is for one goroutine.
type Sequence struct {
	ctx  context.Context
	span Span
}

// Steps makes a sequence in the call, or the step, that ctx is in. End ends it.
func Steps(ctx context.Context) Sequence { return Sequence{ctx: ctx} }

// Next ends the step that goes on and begins another. What has the returned context is a part of it.
func (s *Sequence) Next(name string) context.Context {
	s.span.End()
	var ctx context.Context
	ctx, s.span = Start(s.ctx, name)
	return ctx
}

// End ends the step that goes on.
func (s *Sequence) End() { s.span.End() }

// Monotonic is the kernel's CLOCK_MONOTONIC in nanoseconds, which all processes of a node share; see Insert.
func Monotonic() int64 {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // it cannot fail
	return now.Nano()
}

// Stamped is a step that another process took the time of. From and To are of CLOCK_MONOTONIC, in nanoseconds.
type Stamped struct {
	Name     string
	From, To int64
}

// Insert adds steps of another process to the call, or the step, that ctx is in. What is outside of that is cut off.
func Insert(ctx context.Context, steps []Stamped) {
	at := of(ctx)
	if at.t == nil {
		return
	}
	at.t.mu.Lock()
	defer at.t.mu.Unlock()
	now, elapsed := Monotonic(), time.Since(at.t.call.Begin)
	first := time.Duration(0)
	if at.index >= 0 && at.index < dropped {
		first = at.t.call.Steps[at.index].Start
	}
	within := func(stamp int64) time.Duration {
		return min(max(elapsed-time.Duration(now-stamp), first), elapsed)
	}
	for _, s := range steps {
		at.t.addLocked(Step{Name: s.Name, Parent: at.index, Start: within(s.From), End: within(s.To)})
	}
}

// begin returns the index of a new step, dropped when there are too many.
func (t *timeline) begin(name string, parent int) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.addLocked(Step{Name: name, Parent: parent, Start: time.Since(t.call.Begin), End: -1})
}

// dropped is the index of a step that was not kept. Its own steps are not kept either, since there is no more room
// then.
const dropped = maxSteps

func (t *timeline) addLocked(s Step) int {
	if len(t.call.Steps) == maxSteps {
		t.call.Dropped++
		return dropped
	}
	t.call.Steps = append(t.call.Steps, s)
	return len(t.call.Steps) - 1
}

func (t *timeline) end(index int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if index < len(t.call.Steps) && t.call.Steps[index].End < 0 {
		t.call.Steps[index].End = time.Since(t.call.Begin)
	}
}
