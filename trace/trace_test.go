package trace

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// names gives the steps of a call as paths.
func names(c *Call) (paths []string) {
	for _, s := range c.Steps {
		path := s.Name
		for p := s.Parent; p >= 0; p = c.Steps[p].Parent {
			path = c.Steps[p].Name + "/" + path
		}
		paths = append(paths, path)
	}
	return paths
}

// one records a call about a pod and returns it.
func one(t *testing.T, l *Log, id string, do func(context.Context)) *Call {
	t.Helper()
	ctx, end := l.Begin(t.Context(), "RunPodSandbox")
	About(ctx, Subject{SandboxID: id, Pod: "default/" + id})
	do(ctx)
	end(nil)
	pod, err := l.Find(id)
	if err != nil {
		t.Fatal(err)
	}
	return &pod.Calls[len(pod.Calls)-1]
}

func TestStepsNest(t *testing.T) {
	call := one(t, NewLog(nil), "web", func(ctx context.Context) {
		steps := Steps(ctx)
		steps.Next("first")
		inner, step := Start(steps.Next("second"), "inner")
		_, innermost := Start(inner, "innermost")
		innermost.End()
		step.End()
		_, after := Start(ctx, "beside")
		after.End()
		steps.End()
		steps.End()
	})
	want := "first second second/inner second/inner/innermost beside"
	if got := strings.Join(names(call), " "); got != want {
		t.Errorf("steps are %q, expected %q", got, want)
	}
	for i, s := range call.Steps {
		whole := Step{End: call.Took}
		if s.Parent >= 0 {
			whole = call.Steps[s.Parent]
		}
		if s.Start < whole.Start || s.End < s.Start || s.End > whole.End {
			t.Errorf("step %d is %+v in %+v", i, s, whole)
		}
	}
	if call.Steps[1].Start < call.Steps[0].End {
		t.Errorf("second began at %v, before the end of the first at %v", call.Steps[1].Start, call.Steps[0].End)
	}
}

// A job that outlives its call goes on with the call's timeline, and not with its end.
func TestWithCarriesTheTimelineOnly(t *testing.T) {
	l := NewLog(nil)
	caller, cancel := context.WithCancel(t.Context())
	ctx, end := l.Begin(caller, "RunPodSandbox")
	About(ctx, Subject{SandboxID: "web"})
	job := With(context.Background(), ctx)
	_, step := Start(job, "work")
	cancel()
	end(context.Canceled)
	if job.Err() != nil {
		t.Error("the job ended with its caller")
	}
	pod, err := l.Find("web")
	if err != nil {
		t.Fatal(err)
	}
	if c := pod.Calls[0]; c.Steps[0].End != -1 || c.Err != "context canceled" {
		t.Errorf("call is %+v, expected a failure with a step that goes on", c)
	}
	step.End()
	if pod, _ = l.Find("web"); pod.Calls[0].Steps[0].End < 0 {
		t.Error("the step's end is not known")
	}
}

func TestInsertKeepsWithin(t *testing.T) {
	var began int64
	call := one(t, NewLog(nil), "web", func(ctx context.Context) {
		inner, step := Start(ctx, "ask")
		began = Monotonic()
		time.Sleep(time.Millisecond)
		now := Monotonic()
		Insert(inner, []Stamped{{"early", 0, began}, {"within", began, now}, {"late", now, now + int64(time.Hour)}})
		step.End()
	})
	ask, early, within, late := call.Steps[0], call.Steps[1], call.Steps[2], call.Steps[3]
	if early.Start != ask.Start || early.End != within.Start || within.End != late.Start || late.End > ask.End {
		t.Errorf("steps are %+v", call.Steps)
	}
	if within.End-within.Start < time.Millisecond/2 {
		t.Errorf("the step took %v, expected about a millisecond", within.End-within.Start)
	}
}

func TestStepsAreBounded(t *testing.T) {
	call := one(t, NewLog(nil), "web", func(ctx context.Context) {
		for range maxSteps - 1 {
			_, step := Start(ctx, "step")
			step.End()
		}
		last, step := Start(ctx, "last")
		over, dropped := Start(last, "over")
		Insert(over, []Stamped{{Name: "over"}})
		_, within := Start(over, "over")
		within.End()
		dropped.End()
		step.End()
	})
	if len(call.Steps) != maxSteps || call.Dropped != 3 || call.Steps[maxSteps-1].Name != "last" {
		t.Errorf("%d steps and %d dropped, expected %d and 3", len(call.Steps), call.Dropped, maxSteps)
	}
}

func TestPodsAreBounded(t *testing.T) {
	l := NewLog(nil)
	for i := range maxPods + 3 {
		one(t, l, fmt.Sprintf("pod%03d", i), func(context.Context) {})
	}
	if len(l.pods) != maxPods {
		t.Errorf("%d pods are kept, expected %d", len(l.pods), maxPods)
	}
	if _, err := l.Find("pod002"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("the third pod: %v, expected not found", err)
	}
	if _, err := l.Find("pod003"); err != nil {
		t.Error(err)
	}
}

// A container that is started again and again does not push out how its sandbox was made.
func TestCallsOfAPodAreBounded(t *testing.T) {
	l := NewLog(nil)
	for i := range maxCalls + 5 {
		one(t, l, "web", func(ctx context.Context) { About(ctx, Subject{Container: fmt.Sprint(i)}) })
	}
	pod, err := l.Find("default/web")
	if err != nil {
		t.Fatal(err)
	}
	first, second := pod.Calls[0].Subject.Container, pod.Calls[1].Subject.Container
	if len(pod.Calls) != maxCalls || first != "0" || second != "6" {
		t.Errorf("%d calls from %s and %s on, expected %d from 0 and 6 on", len(pod.Calls), first, second, maxCalls)
	}
}

func TestFind(t *testing.T) {
	l := NewLog(nil)
	for _, id := range []string{"aa1", "aa2", "b"} {
		ctx, end := l.Begin(t.Context(), "RunPodSandbox")
		About(ctx, Subject{SandboxID: id, Pod: "default/same"})
		end(nil)
	}
	for key, want := range map[string]string{"aa1": "aa1", "b": "b", "default/same": "b"} {
		if pod, err := l.Find(key); err != nil || pod.ID != want {
			t.Errorf("%s: %+v, %v, expected %s", key, pod, err, want)
		}
	}
	for key, want := range map[string]error{
		"aa": errdefs.ErrInvalidArgument, "": errdefs.ErrInvalidArgument, "c": errdefs.ErrNotFound,
		"default/other": errdefs.ErrNotFound,
	} {
		if _, err := l.Find(key); !errors.Is(err, want) {
			t.Errorf("%q: %v, expected %v", key, err, want)
		}
	}
}

func TestCallsWithoutSandboxAreToldAndNotKept(t *testing.T) {
	var told []string
	l := NewLog(func(_ context.Context, c *Call) { told = append(told, c.Method+" "+c.Err) })
	_, end := l.Begin(t.Context(), "RunPodSandbox")
	end(errors.New("no config"))
	if len(told) != 1 || told[0] != "RunPodSandbox no config" || len(l.pods) != 0 {
		t.Errorf("told %q, %d pods kept", told, len(l.pods))
	}
}

func TestConcurrentUse(t *testing.T) {
	l := NewLog(func(_ context.Context, c *Call) { _ = names(c) })
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			for range 50 {
				ctx, end := l.Begin(context.Background(), "StartContainer")
				About(ctx, Subject{SandboxID: fmt.Sprint("pod", i%4)})
				var steps sync.WaitGroup
				for range 4 {
					steps.Go(func() {
						inner, step := Start(ctx, "step")
						Insert(inner, []Stamped{{Name: "inner", To: Monotonic()}})
						step.End()
					})
				}
				_, _ = l.Find(fmt.Sprint("pod", i%4))
				steps.Wait()
				end(nil)
			}
		})
	}
	group.Wait()
	pod, err := l.Find("pod0")
	if err != nil || len(pod.Calls) != maxCalls || len(pod.Calls[0].Steps) != 8 {
		t.Errorf("pod is %+v, %v", pod, err)
	}
}

// A call that is not traced pays nothing.
func TestNothingIsAllocatedWithoutTimeline(t *testing.T) {
	ctx := context.Background()
	var none *Log
	allocations := testing.AllocsPerRun(100, func() {
		own, step := Start(ctx, "step")
		steps := Steps(With(own, ctx))
		steps.Next("one")
		steps.Next("two")
		steps.End()
		About(own, Subject{SandboxID: "web"})
		Insert(own, nil)
		step.End()
	})
	if allocations != 0 {
		t.Errorf("%v allocations, expected none", allocations)
	}
	same, end := none.Begin(ctx, "StartContainer")
	end(nil)
	if same != ctx {
		t.Error("a nil log gives another context")
	}
}

func BenchmarkCall(b *testing.B) {
	l := NewLog(nil)
	b.ReportAllocs()
	for b.Loop() {
		ctx, end := l.Begin(context.Background(), "StartContainer")
		About(ctx, Subject{SandboxID: "web"})
		steps := Steps(ctx)
		for range 15 {
			steps.Next("step")
		}
		steps.End()
		end(nil)
	}
}
