package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestQuantileIsAValueThatWasMeasured(t *testing.T) {
	var sorted []time.Duration
	for i := 1; i <= 100; i++ {
		sorted = append(sorted, time.Duration(i))
	}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 50, 0.9: 90, 0.99: 99, 1: 100} {
		if got := quantile(sorted, q); got != want {
			t.Errorf("quantile %v is %d, expected %d", q, got, want)
		}
	}
	if got := quantile(sorted[:3], 0.99); got != 3 {
		t.Errorf("of three values the 99th percentile is %d, expected the largest", got)
	}
	if got := quantile(nil, 0.5); got != 0 {
		t.Errorf("of nothing: %d", got)
	}
}

func TestWhatFailedHasNoLatency(t *testing.T) {
	var l latencies
	if err := l.time(func() error { return errors.New("no") }); err == nil {
		t.Error("the error is lost")
	}
	_ = l.time(func() error { time.Sleep(time.Millisecond); return nil })
	if len(l.values) != 1 || l.values[0] < time.Millisecond {
		t.Errorf("got %v", l.values)
	}
}

func TestParallelStopsAfterAnErrorAndTellsOfIt(t *testing.T) {
	var now, most, calls atomic.Int64
	err := parallel(50, 3, func(int) error {
		calls.Add(1)
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		defer now.Add(-1)
		time.Sleep(time.Millisecond)
		return nil
	})
	if err != nil || calls.Load() != 50 || most.Load() > 3 {
		t.Errorf("%v, %d calls, %d at a time", err, calls.Load(), most.Load())
	}
	calls.Store(0)
	err = parallel(50, 1, func(i int) error {
		calls.Add(1)
		if i == 4 {
			return errors.New("the fifth")
		}
		return nil
	})
	if err == nil || calls.Load() != 5 {
		t.Errorf("%v after %d calls", err, calls.Load())
	}
}

func TestRatioIsOfThePairs(t *testing.T) {
	r := &Report{Targets: []string{"a", "b"}}
	// In the second round the machine was ten times slower: that hits both, and not the ratio.
	r.add("a", []Figure{{"start", 100, "ms"}})
	r.add("b", []Figure{{"start", 50, "ms"}})
	r.add("b", []Figure{{"start", 500, "ms"}})
	r.add("a", []Figure{{"start", 1000, "ms"}})
	r.add("a", []Figure{{"start", 100, "ms"}, {"only a", 1, "ms"}})
	r.add("b", []Figure{{"start", 51, "ms"}})
	if ratio, ok := r.Rows[0].ratio("a", "b"); !ok || ratio != 0.5 {
		t.Errorf("ratio is %v, %v", ratio, ok)
	}
	var table bytes.Buffer
	if err := r.print(&table); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"b / a", "0.50", "only a  ms    1.00  -"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, table.String())
		}
	}
}

func TestCPUTimeOfCgroupsOfBothVersions(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("v1-a/cpuacct.usage", "1500000000\n")
	write("v2-a/cpu.stat", "usage_usec 250000\nuser_usec 1\n")
	write("v2-b/cpu.stat", "usage_usec 250000\n")
	a := account{cgroups: []string{dir + "/v1-*", dir + "/v2-*", dir + "/none-*"}}
	if got, err := a.cpu(); err != nil || got != 2*time.Second {
		t.Errorf("got %v, %v, expected 2 s", got, err)
	}
	write("bad/cpu.stat", "nothing\n")
	if _, err := cgroupCPU(filepath.Join(dir, "bad")); err == nil {
		t.Error("a file without the time was read")
	}
}

func TestTimeOfTheMachineIsAllButIdleness(t *testing.T) {
	file := filepath.Join(t.TempDir(), "stat")
	if err := os.WriteFile(file, []byte("cpu  10 20 30 4000 5000 60 70 0 0 0\ncpu0 1 2 3\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := machineCPU(file); err != nil || got != 190*clockTick {
		t.Errorf("got %v, %v", got, err)
	}
}

// A process that works is seen by its own account and by the machine's.
func TestMeasureSeesAProcessThatWorks(t *testing.T) {
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	a := account{names: []string{strings.TrimSpace(string(comm))}}
	s, err := a.measure(func() error {
		for before := processCPU(os.Getpid()); processCPU(os.Getpid()) < before+20*clockTick; {
		}
		return nil
	})
	if err != nil || s.cpu < 20*clockTick || s.machine < 15*clockTick || s.wall <= 0 {
		t.Errorf("got %+v, %v", s, err)
	}
	sizes, err := weigh(a.names)
	if err != nil || sizes[a.names[0]] < 1000 {
		t.Errorf("this process weighs %v KiB, %v", sizes, err)
	}
}

func TestNumbers(t *testing.T) {
	if got, err := numbers("levels", "1,20,300"); err != nil || len(got) != 3 || got[2] != 300 {
		t.Errorf("got %v, %v", got, err)
	}
	for _, text := range []string{"0", "5,5", "a", "3,2"} {
		if _, err := numbers("levels", text); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// A log that is written faster than it is looked at has no cost for a megabyte: a division by nothing is no JSON.
func TestAWholeLogHasNoCost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, make([]byte, 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	figures, err := new(target).logCost(t.Context(), path, 1000)
	if err != nil || len(figures) > 0 {
		t.Errorf("got %v, %v", figures, err)
	}
}
