package stats

import (
	"testing"
	"time"

	"github.com/gantry-cri/gantry/sandbox"
)

// A layer in which nobody can have written is not walked through again, and is none the older for that.
func TestWhatHasNotRunIsNotMeasuredAgain(t *testing.T) {
	s, n, _ := startFake(t)
	<-n.measured // the round at start
	e := s.entry("c")
	s.measuring <- struct{}{} // when that is over
	for _, step := range []struct {
		what    string
		change  func()
		all     bool
		measure bool
	}{
		{"nothing has run", func() {}, false, false},
		{"everything is to be measured", func() {}, true, true},
		{"it has run", func() { contents{"pod/c/cpu.stat": "usage_usec 5000001\n"}.write(t, s.cgroups.root) }, false, true},
		{"nothing has run since", func() {}, false, false},
		{"it was long ago", func() { e.ran.Load().at = time.Now().Add(-2 * measureAnyway) }, false, true},
		{"the kernel does not tell", func() { contents{"pod/c/cpu.stat": ""}.write(t, s.cgroups.root) }, false, true},
		{"it still does not", func() {}, false, true},
	} {
		step.change()
		before := *e.layer.Load()
		s.measureAll(t.Context(), step.all)
		if got := len(n.measured) == 1; got != step.measure {
			t.Errorf("%s: measured is %t", step.what, got)
		}
		for len(n.measured) > 0 {
			<-n.measured
		}
		if after := *e.layer.Load(); !after.Time.After(before.Time) || after.Bytes != before.Bytes || after.InodesUsed != before.InodesUsed ||
			after.Mountpoint != layersMount || after.Limit == 0 {
			t.Errorf("%s: %+v became %+v", step.what, before, after)
		}
	}
}

// A round of a resting sampler reads all of what something happened in, and nothing more of what nothing happened in.
func TestARestingSamplerReadsWhatHappened(t *testing.T) {
	for name, node := range map[string]struct {
		unified     bool
		files       contents
		cpu, memory contents
		tasks       string
	}{
		"v1": {
			false, v1Files(), contents{"cpuacct/pod/c/cpuacct.usage": "5000000001\n"},
			contents{"memory/pod/c/memory.usage_in_bytes": "10489856\n"}, "pids/pod/c/pids.current",
		},
		"v2": {
			true, v2Files(), contents{"pod/c/cpu.stat": "usage_usec 5000001\n"},
			contents{"pod/c/memory.current": "10489856\n"}, "pod/c/pids.current",
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newFakeNode()
			n.containers = []*sandbox.ContainerStatus{runningContainer("c", "/pod/c")}
			n.sandboxes = []*sandbox.SandboxStatus{{ID: "pod", State: sandbox.SandboxReady, CgroupParent: "/pod/c"}}
			s := start(Config{
				Source: n, Images: n, Period: time.Hour,
				ContainerForm: func(_ *sandbox.ContainerStatus, sample *Sample, _ Form) Form {
					return Form{Usage: []byte(sample.Time.String())}
				},
			}, fakeCgroups(t, node.unified, node.files))
			t.Cleanup(s.Close)
			e := s.entry("pod")
			eventually(t, "the first round", func() bool { return e.last.Load() != nil })
			<-n.measured
			for _, step := range []struct {
				what   string
				change func()
				whole  bool
				reads  bool
			}{
				{"nothing happened", func() {}, false, false},
				{"it is asked for", func() {}, true, true},
				{"it ran", func() { node.cpu.write(t, s.cgroups.root) }, false, true},
				{"its memory changed", func() { node.memory.write(t, s.cgroups.root) }, false, true},
				{"its status changed", func() {
					n.set(func() {
						c, p := *n.containers[0], *n.sandboxes[0]
						n.containers, n.sandboxes = []*sandbox.ContainerStatus{&c}, []*sandbox.SandboxStatus{&p}
					})
				}, false, true},
				{"nothing happened again", func() {}, false, false},
			} {
				contents{node.tasks: "7\n"}.write(t, s.cgroups.root)
				s.sampleAll(true)
				contents{node.tasks: "8\n"}.write(t, s.cgroups.root) // is only seen by whoever reads everything
				step.change()
				before := map[string]*Sample{"c": s.entry("c").last.Load(), "pod": s.entry("pod").last.Load()}
				s.sampleAll(step.whole)
				for id, before := range before {
					after := s.entry(id).last.Load()
					if got := after.Tasks.Threads == 8; got != step.reads {
						t.Errorf("%s: everything of %s was read: %t", step.what, id, got)
					}
					if !after.Time.After(before.Time) || after.CPU == before.CPU || after.Memory.Pressure == nil {
						t.Errorf("%s: %s has %+v after %+v", step.what, id, after, before)
					}
					if id == "c" && string(after.Form.Usage) != after.Time.String() {
						t.Errorf("%s: the form is that of another sample", step.what)
					}
				}
			}
		})
	}
}

func TestEverythingIsReadNowAndThen(t *testing.T) {
	const period = time.Minute
	s := &Sampler{period: period}
	for _, test := range []struct {
		unasked int
		since   time.Duration
		want    bool
	}{
		{0, period, true}, {0, period * 2 / 3, true}, {0, period / 3, false}, {0, 0, false},
		{restAfter - 1, period, true}, {restAfter, period, false}, {restWhole - 1, period, false}, {restWhole, period, true},
		{restWhole + 1, period, false}, {100 * restWhole, period, true},
	} {
		if got := s.wholeRound(test.unasked, time.Now().Add(-test.since)); got != test.want {
			t.Errorf("%v after everything was read, after %d rounds without a list, everything is read: %t", test.since, test.unasked, got)
		}
	}
	if !s.wholeRound(0, time.Time{}) {
		t.Error("not everything is read that never was")
	}
}
