package keeperd

import (
	"github.com/gantry-cri/gantry/sandbox/keeper"
	"github.com/gantry-cri/gantry/sandbox/keeperd/marks"
)

// stopwatch takes the time of steps that come one after the other. It is always on: a start has some twelve, each a
// system call of a few hundred nanoseconds.
type stopwatch struct{ steps []keeper.Step }

// next ends the step that goes on and begins another.
func (w *stopwatch) next(name string) {
	now := marks.Now()
	w.endAt(now)
	w.steps = append(w.steps, keeper.Step{Name: name, From: now})
}

// stepInit is libcontainer's part of a start, as long as it is not known what of it took how long.
const stepInit = "start init"

// divide puts the stages of the init in the place of stepInit, which was the step before this one.
func (w *stopwatch) divide(m marks.Marks) {
	now := w.steps[len(w.steps)-1]
	whole := w.steps[len(w.steps)-2]
	w.steps = w.steps[:len(w.steps)-2]
	last := keeper.Step{Name: "init: clone and execute", From: whole.From}
	for _, stage := range []struct {
		name string
		at   int64
	}{
		{"init: enter cgroup", m.Executed},
		{"init: join and make namespaces", m.Bootstrapped},
		{"init: start Go", m.Namespaced},
		{"init: mount and limit", m.Began},
		{"init: add seccomp rules", m.Seccomp},
		{"init: load seccomp filter", m.Exported},
	} {
		if stage.at < last.From || stage.at > whole.To { // it did not come to this one
			continue
		}
		last.To = stage.at
		w.steps = append(w.steps, last)
		last = keeper.Step{Name: stage.name, From: stage.at}
	}
	last.To = whole.To
	w.steps = append(w.steps, last, now)
}

// stop ends the step that goes on and gives all of them away.
func (w *stopwatch) stop() []keeper.Step {
	w.endAt(marks.Now())
	steps := w.steps
	w.steps = nil
	return steps
}

func (w *stopwatch) endAt(now int64) {
	if n := len(w.steps); n > 0 {
		w.steps[n-1].To = now
	}
}
