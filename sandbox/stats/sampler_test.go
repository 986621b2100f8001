package stats

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/sandbox"
)

// startFake starts a sampler of a node with the container c below the sandbox pod.
func startFake(t *testing.T) (*Sampler, *fakeNode, *sandbox.ContainerStatus) {
	t.Helper()
	n := newFakeNode()
	c := runningContainer("c", "/pod/c")
	n.containers = []*sandbox.ContainerStatus{c}
	n.sandboxes = []*sandbox.SandboxStatus{
		{ID: "pod", State: sandbox.SandboxReady, CgroupParent: "/pod", Containers: []string{"c"}},
	}
	s := start(Config{Source: n, Images: n, Period: time.Hour}, fakeCgroups(t, true, v2Files()))
	t.Cleanup(s.Close)
	return s, n, c
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s did not come to be", what)
		}
	}
}

func TestTheSamplerKeepsASampleOfEverythingThatLives(t *testing.T) {
	s, _, c := startFake(t)
	eventually(t, "the first samples", func() bool {
		return s.entry("c").last.Load() != nil && s.entry("pod").last.Load() != nil
	})
	first := s.Container(t.Context(), c, time.Hour)
	if first.CPU.Usage != 5e9 || first.Time.IsZero() {
		t.Errorf("got %+v", first.CPU)
	}
	if again := s.Container(t.Context(), c, time.Hour); again != first {
		t.Error("a second sample was taken although the first was good enough")
	}
	if fresh := s.Container(t.Context(), c, 0); fresh == first || !fresh.Time.After(first.Time) {
		t.Error("no sample was taken although a new one was asked for")
	}
}

func TestWhoGaveUpDoesNotWaitForASample(t *testing.T) {
	s, _, c := startFake(t)
	eventually(t, "the first round", func() bool { return s.entry("pod").last.Load() != nil })
	s.entry("c").sampling <- struct{}{} // as a sampler does that hangs in the kernel
	defer func() { <-s.entry("c").sampling }()
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan *Sample)
	go func() { got <- s.Container(ctx, c, 0) }()
	cancel()
	select {
	case sample := <-got:
		if sample != nil {
			t.Errorf("got %+v", sample)
		}
	case <-time.After(time.Minute):
		t.Error("the call does not end with its context")
	}
}

func TestAContainerThatDiedIsSkipped(t *testing.T) {
	s, n, c := startFake(t)
	gone := runningContainer("gone", "/pod/gone")
	n.set(func() { n.containers = append([]*sandbox.ContainerStatus{gone}, n.containers...) })
	s.sampleAll(true)
	if sample := s.Container(t.Context(), gone, AnyAge); sample != nil {
		t.Errorf("got %+v for a container without a cgroup", sample)
	}
	if s.Container(t.Context(), c, AnyAge) == nil {
		t.Error("the other container has no sample")
	}
	exited := *c
	exited.State = sandbox.ContainerExited
	if s.Container(t.Context(), &exited, AnyAge) != nil {
		t.Error("an exited container has a sample")
	}
	n.set(func() { n.containers = nil })
	s.sampleAll(true)
	s.mu.RLock()
	defer s.mu.RUnlock()
	if len(s.entries) != 1 {
		t.Errorf("%d entries are kept, want the sandbox's", len(s.entries))
	}
}

func TestASandboxWithoutACgroupUsedNothing(t *testing.T) {
	s, _, _ := startFake(t)
	empty := &sandbox.SandboxStatus{ID: "empty", State: sandbox.SandboxReady, CgroupParent: "/not/there"}
	sample := s.Sandbox(t.Context(), empty, AnyAge)
	if sample == nil || sample.CPU == nil || sample.Memory == nil || sample.CPU.Usage != 0 || sample.Time.IsZero() {
		t.Fatalf("got %+v", sample)
	}
	if sample.Interfaces != nil {
		t.Errorf("a sandbox on the host's network has interfaces %v", sample.Interfaces)
	}
	stopped := &sandbox.SandboxStatus{ID: "empty", State: sandbox.SandboxStopped}
	if s.Sandbox(t.Context(), stopped, AnyAge) != nil {
		t.Error("a stopped sandbox has a sample")
	}
}

func TestASandboxThatSharesItsCgroupIsTheSumOfItsContainers(t *testing.T) {
	s, _, c := startFake(t)
	s.Container(t.Context(), c, 0)
	sample := s.Sandbox(t.Context(), &sandbox.SandboxStatus{
		ID: "shared", State: sandbox.SandboxReady, Containers: []string{"c", "unknown"},
	}, 0)
	if sample.CPU.Usage != 5e9 || sample.Memory.WorkingSet != 8<<20 || sample.Processes != 3 {
		t.Errorf("got %+v, %+v and %d processes", sample.CPU, sample.Memory, sample.Processes)
	}
}

func TestTheRateIsOfTheLastTwoSamplesAndNotOfLess(t *testing.T) {
	e := &entry{}
	begin := time.Now()
	at := func(passed time.Duration, usage uint64) *Sample {
		s := &Sample{Time: begin.Add(passed), CPU: &CPU{Usage: usage}}
		e.rate(s)
		e.last.Store(s)
		return s
	}
	if s := at(0, 1e9); s.CPU.NanoCores != nil {
		t.Errorf("the first sample has the rate %d", *s.CPU.NanoCores)
	}
	if s := at(10*time.Second, 6e9); s.CPU.NanoCores == nil || *s.CPU.NanoCores != 5e8 {
		t.Errorf("got %v, want half a core", s.CPU.NanoCores)
	}
	if s := at(10*time.Second+time.Millisecond, 6e9+1e6); s.CPU.NanoCores == nil || *s.CPU.NanoCores != 5e8 {
		t.Errorf("got %v after a moment, want the rate before", s.CPU.NanoCores)
	}
	if s := at(20*time.Second, 26e9); *s.CPU.NanoCores != 2e9 {
		t.Errorf("got %d, want two cores", *s.CPU.NanoCores)
	}
	if s := at(30*time.Second, 1e9); *s.CPU.NanoCores != 0 {
		t.Errorf("got %d for a counter that went back, want 0", *s.CPU.NanoCores)
	}
	e.rate(&Sample{Time: begin.Add(time.Minute)}) // without CPU there is nothing to compute
}

func TestTheMaximumOfHugePagesIsRemembered(t *testing.T) {
	e := &entry{}
	for _, usage := range []uint64{2, 8, 4} {
		sample := &Sample{HugePages: []HugePages{{Size: "2MB", Usage: usage, Max: usage}}}
		e.complete(sample)
		e.last.Store(sample)
	}
	if got := e.last.Load().HugePages[0]; got.Usage != 4 || got.Max != 8 {
		t.Errorf("got %+v, want the maximum 8", got)
	}
}

// Two lists that are a second apart differ, whatever the period.
func TestAskingBringsANewerSampleSoon(t *testing.T) {
	s, _, c := startFake(t)
	first := s.Container(t.Context(), c, AnyAge)
	// The period is an hour.
	eventually(t, "a newer sample", func() bool { return s.Container(t.Context(), c, AnyAge).Time.After(first.Time) })
}

// Samples that nobody wants cost the node something, too.
func TestASamplerThatNobodyAsksRests(t *testing.T) {
	n := newFakeNode()
	n.containers = []*sandbox.ContainerStatus{runningContainer("c", "/pod/c")}
	const period = 50 * time.Millisecond
	s := start(Config{Source: n, Images: n, Period: period}, fakeCgroups(t, true, v2Files()))
	t.Cleanup(s.Close)
	last := func() time.Time {
		if sample := s.entry("c").last.Load(); sample != nil {
			return sample.Time
		}
		return time.Time{}
	}
	next := func() time.Time {
		before := last()
		eventually(t, "a sample", func() bool { return last() != before })
		return last()
	}
	first := next()
	if passed := next().Sub(first); passed < restPeriods*period {
		t.Errorf("the sampler slept for %s, expected at least %s", passed, restPeriods*period)
	}
	s.ask()
	next()
	if s.untilNext(0) != period || s.untilNext(restAfter-1) != period || s.untilNext(restAfter) != restPeriods*period {
		t.Error("it does not rest after three periods")
	}
}

// What was just started has its layer in the next list, and does not wait for the next round.
func TestAStartIsSampledAndMeasuredAtOnce(t *testing.T) {
	s, n, _ := startFake(t)
	<-n.measured // the round at start
	fresh := runningContainer("fresh", "/pod/c")
	n.set(func() { n.containers = append(slices.Clone(n.containers), fresh) }) // or the first round, if it is late, forgets it
	n.events <- sandbox.Event{Type: sandbox.EventCreated, ContainerID: "other", Containers: n.Containers()}
	n.events <- sandbox.Event{
		Type: sandbox.EventStarted, ContainerID: "fresh", Containers: n.Containers(),
	}
	if id := <-n.measured; id != "fresh" {
		t.Errorf("%s was measured", id)
	}
	eventually(t, "the sample", func() bool {
		sample := s.entry("fresh").last.Load()
		return sample != nil && sample.Layer != nil // another may be of that round
	})
	layer := s.Container(t.Context(), fresh, AnyAge).Layer
	if layer == nil || layer.Bytes != 8192 || layer.InodesUsed != 2 || layer.Mountpoint != layersMount || layer.Limit == 0 {
		t.Errorf("got the layer %+v", layer)
	}
}

// A sample gets its form once it is complete, and before anybody is given it.
func TestSamplesHaveTheirForm(t *testing.T) {
	c := runningContainer("c", "/pod/c")
	ready := &sandbox.SandboxStatus{ID: "s", State: sandbox.SandboxReady, Containers: []string{"c"}}
	n := newFakeNode()
	n.containers, n.sandboxes = []*sandbox.ContainerStatus{c}, []*sandbox.SandboxStatus{ready}
	form := func(id string, sample *Sample) Form {
		return Form{Subject: []byte(id), Usage: []byte(sample.Time.String())}
	}
	s := start(Config{
		Source: n, Images: n, Period: time.Hour,
		ContainerForm: func(st *sandbox.ContainerStatus, sample *Sample, _ Form) Form { return form(st.ID, sample) },
		SandboxForm:   func(st *sandbox.SandboxStatus, sample *Sample, _ Form) Form { return form(st.ID, sample) },
	}, fakeCgroups(t, true, v2Files()))
	t.Cleanup(s.Close)
	for id, sample := range map[string]*Sample{"c": s.Container(t.Context(), c, 0), "s": s.Sandbox(t.Context(), ready, 0)} {
		if sample == nil || string(sample.Form.Subject) != id || string(sample.Form.Usage) != sample.Time.String() {
			t.Errorf("%s: got %+v", id, sample)
		}
	}
}

// A form is made with that of the sample before, unless the status is another by now.
func TestFormsFollowOneAnother(t *testing.T) {
	n := newFakeNode()
	n.containers = []*sandbox.ContainerStatus{runningContainer("c", "/pod/c")}
	n.sandboxes = []*sandbox.SandboxStatus{{ID: "pod", State: sandbox.SandboxReady, CgroupParent: "/pod/c"}}
	type made struct {
		status any
		form   string
	}
	last, forms := map[string]made{}, 0
	var mu sync.Mutex
	next := func(status any, id string, before Form) Form {
		mu.Lock()
		defer mu.Unlock()
		want := ""
		if last[id].status == status {
			want = last[id].form
		}
		if string(before.Usage) != want {
			t.Errorf("%s: the form before was %q, want %q", id, before.Usage, want)
		}
		forms++
		last[id] = made{status, fmt.Sprint("form ", forms)}
		return Form{Usage: []byte(last[id].form)}
	}
	s := start(Config{
		Source: n, Images: n, Period: time.Hour,
		ContainerForm: func(st *sandbox.ContainerStatus, _ *Sample, before Form) Form { return next(st, st.ID, before) },
		SandboxForm:   func(st *sandbox.SandboxStatus, _ *Sample, before Form) Form { return next(st, st.ID, before) },
	}, fakeCgroups(t, true, v2Files()))
	t.Cleanup(s.Close)
	s.sampleAll(true)
	s.sampleAll(false)
	n.set(func() {
		c, p := *n.containers[0], *n.sandboxes[0]
		n.containers, n.sandboxes = []*sandbox.ContainerStatus{&c}, []*sandbox.SandboxStatus{&p}
	})
	s.sampleAll(false)
	s.sampleAll(true)
	mu.Lock()
	defer mu.Unlock()
	if forms < 8 {
		t.Errorf("%d forms were made in four rounds", forms)
	}
}

func TestOpenFilesAreCounted(t *testing.T) {
	listener, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	files := &Files{}
	files.addProcess(os.Getpid())
	if files.Open < 4 {
		t.Errorf("%d open files of this process, want 0, 1, 2 and more", files.Open)
	}
	files = &Files{}
	files.addProcess(1 << 30)
	if files.Open != 0 {
		t.Errorf("%d open files of no process", files.Open)
	}
}

func TestTheDeviceOfAMountIsFound(t *testing.T) {
	if got := mountSource("/proc/sys/kernel"); got != "proc" {
		t.Errorf("/proc/sys/kernel is on %q, want proc", got)
	}
	if got := mountSource(filepath.Join(t.TempDir(), "not", "there")); got == "" {
		t.Error("a directory below a mount is on nothing")
	}
}
