package stats

import (
	"math"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func wantPressure() *Pressure {
	return &Pressure{
		Some: Stall{Avg10: 1.5, Avg60: 2, Avg300: 0.25, Total: 7_000_000_000},
		Full: Stall{Avg10: 0.5, Total: 3_000_000_000},
	}
}

// wantSample is what both versions of the files say.
func wantSample() *Sample {
	swap := uint64(32 << 20)
	return &Sample{
		CPU: &CPU{
			Usage: 5e9, User: 3e9, System: 2e9, Periods: 10, ThrottledPeriods: 4, Throttled: 2e9,
			Period: 100000, Quota: 20000, Shares: 1024, Pressure: wantPressure(),
		},
		Memory: &Memory{
			Usage: 10 << 20, WorkingSet: 8 << 20, MaxUsage: 20 << 20, RSS: 4 << 20, Cache: 6 << 20, MappedFile: 8192,
			ActiveFile: 1 << 20, InactiveFile: 2 << 20,
			Kernel: 4096, PageFaults: 60, MajorPageFaults: 2, OwnPageFaults: 50, OwnMajorPageFaults: 1, FailCount: 3,
			OOMKills: 2, Limit: 64 << 20, Swap: &Swap{Usage: 12288, Limit: &swap}, Pressure: wantPressure(),
		},
		IO: &IO{
			Devices: []Device{
				{Major: 8, Name: "/dev/sda", ReadBytes: 4096, WriteBytes: 8192, Reads: 1, Writes: 2},
				{Major: 8, Minor: 16, Reads: 9},
			},
			Pressure: wantPressure(),
		},
		Tasks:     &Tasks{Threads: 7},
		HugePages: []HugePages{{Size: "2MB", Usage: 2 << 20, Max: 4 << 20}},
		Processes: 3,
	}
}

func wantV2Sample() *Sample {
	want := wantSample()
	want.CPU.Shares = 305 // libcontainer gives a weight of 39 to 295 to 305 shares
	want.Memory.OwnPageFaults, want.Memory.OwnMajorPageFaults = 60, 2
	want.HugePages[0].Max = 2 << 20
	return want
}

func TestACgroupIsReadInBothVersions(t *testing.T) {
	for _, test := range []struct {
		name    string
		unified bool
		files   contents
		want    *Sample
	}{
		{"v1", false, v1Files(), wantSample()},
		{"v2", true, v2Files(), wantV2Sample()},
	} {
		got, ok := fakeCgroups(t, test.unified, test.files).read(newReader(), "/pod/c")
		if !ok {
			t.Errorf("%s: there is no cgroup", test.name)
		}
		checkSample(t, test.name, got, test.want)
	}
}

func checkSample(t *testing.T, name string, got, want *Sample) {
	t.Helper()
	g, w := reflect.ValueOf(*got), reflect.ValueOf(*want)
	for i := range g.NumField() {
		if !reflect.DeepEqual(g.Field(i).Interface(), w.Field(i).Interface()) {
			t.Errorf("%s: %s is %+v, want %+v", name, g.Type().Field(i).Name, show(g.Field(i)), show(w.Field(i)))
		}
	}
}

func show(v reflect.Value) any {
	if v.Kind() == reflect.Pointer && !v.IsNil() {
		return v.Elem().Interface()
	}
	return v.Interface()
}

func TestAMissingFileLeavesOutItsFiguresAlone(t *testing.T) {
	for _, test := range []struct {
		name    string
		unified bool
		files   contents
		missing []string
		change  func(*Sample)
	}{
		{"no cpuacct", false, v1Files(), []string{"cpuacct/pod/c"}, func(s *Sample) { s.CPU = nil }},
		{"no cpu", false, v1Files(), []string{"cpu/pod/c"}, func(s *Sample) {
			s.CPU = &CPU{Usage: 5e9, User: 3e9, System: 2e9, Pressure: wantPressure()}
		}},
		{"no memory", false, v1Files(), []string{"memory/pod/c"}, func(s *Sample) { s.Memory = nil }},
		{"no swap accounting", false, v1Files(), []string{"memory/pod/c/memory.memsw.limit_in_bytes"},
			func(s *Sample) { s.Memory.Swap = nil }},
		{"no blkio", false, v1Files(), []string{"blkio"}, func(s *Sample) { s.IO.Devices = nil }},
		{"no blkio and no pressure", false, v1Files(), []string{"blkio", "unified"}, func(s *Sample) {
			s.IO, s.CPU.Pressure, s.Memory.Pressure = nil, nil, nil
		}},
		{"no pids: another controller tells of processes", false, v1Files(), []string{"pids"}, func(s *Sample) {
			s.Tasks, s.Processes = nil, 0
		}},
		{"no hugetlb", false, v1Files(), []string{"hugetlb"}, func(s *Sample) { s.HugePages = nil }},
		{"v2 without cpu controller", true, v2Files(), []string{"pod/c/cpu.max", "pod/c/cpu.weight"}, func(s *Sample) {
			s.CPU.Period, s.CPU.Quota, s.CPU.Shares = 0, 0, 0
		}},
		{"v2 without memory", true, v2Files(), []string{"pod/c/memory.current"}, func(s *Sample) { s.Memory = nil }},
		{"v2 without peak", true, v2Files(), []string{"pod/c/memory.peak"},
			func(s *Sample) { s.Memory.MaxUsage = 10 << 20 }},
		{"v2 without swap", true, v2Files(), []string{"pod/c/memory.swap.current", "pod/c/memory.swap.max"},
			func(s *Sample) { s.Memory.Swap = nil }},
		{"v2 without io", true, v2Files(), []string{"pod/c/io.stat"}, func(s *Sample) { s.IO.Devices = nil }},
	} {
		c := fakeCgroups(t, test.unified, test.files)
		for _, path := range test.missing {
			if err := os.RemoveAll(filepath.Join(c.root, path)); err != nil {
				t.Fatal(err)
			}
		}
		want := wantSample()
		if test.unified {
			want = wantV2Sample()
		}
		test.change(want)
		got, ok := c.read(newReader(), "/pod/c")
		if !ok {
			t.Errorf("%s: there is no cgroup", test.name)
		}
		checkSample(t, test.name, got, want)
	}
}

func TestACgroupThatIsGoneGivesNoSample(t *testing.T) {
	for _, unified := range []bool{false, true} {
		files := v1Files()
		if unified {
			files = v2Files()
		}
		if s, ok := fakeCgroups(t, unified, files).read(newReader(), "/pod/gone"); ok {
			t.Errorf("v2 %t: a cgroup that is not there gave %+v", unified, s)
		}
	}
}

// What is torn or of another form is left out: no figure is better than a wrong one.
func TestTornContentIsNoFigure(t *testing.T) {
	torn := []string{"", "\n", "12x", "-5", "99999999999999999999999", "usage_usec", "usage_usec \n", "a b c d\n", "\x00\xff 1",
		"8:0 rbytes=", "8: rbytes=1", "some avg10=x total=1\n", "some avg10=0.1"}
	for _, unified := range []bool{false, true} {
		files := v1Files()
		if unified {
			files = v2Files()
		}
		c, r := fakeCgroups(t, unified, files), newReader()
		for path, whole := range files {
			for _, text := range torn {
				contents{path: text}.write(t, c.root)
				s, _ := c.read(r, "/pod/c")
				if s.CPU != nil && s.CPU.Usage != 0 && s.CPU.Usage != 5e9 {
					t.Errorf("%s with %q: CPU usage %d", path, text, s.CPU.Usage)
				}
				if s.Memory != nil && s.Memory.WorkingSet > s.Memory.Usage {
					t.Errorf("%s with %q: working set %d of %d", path, text, s.Memory.WorkingSet, s.Memory.Usage)
				}
			}
			contents{path: whole}.write(t, c.root)
		}
	}
}

func TestUnlimitedIsZero(t *testing.T) {
	c := fakeCgroups(t, false, v1Files())
	contents{
		"memory/pod/c/memory.limit_in_bytes":       "9223372036854771712\n",
		"memory/pod/c/memory.memsw.limit_in_bytes": "9223372036854771712\n",
		"cpu/pod/c/cpu.cfs_quota_us":               "-1\n",
	}.write(t, c.root)
	s, _ := c.read(newReader(), "/pod/c")
	if s.Memory.Limit != 0 || s.Memory.Swap.Limit != nil || s.CPU.Quota != 0 {
		t.Errorf("limits %d, %v and %d, want none", s.Memory.Limit, s.Memory.Swap.Limit, s.CPU.Quota)
	}
	c = fakeCgroups(t, true, v2Files())
	contents{"pod/c/memory.max": "max\n", "pod/c/memory.swap.max": "max\n", "pod/c/cpu.max": "max 100000\n"}.write(t, c.root)
	s, _ = c.read(newReader(), "/pod/c")
	if s.Memory.Limit != 0 || s.Memory.Swap.Limit != nil || s.CPU.Quota != 0 || s.CPU.Period != 100000 {
		t.Errorf("v2: limits %d, %v and %d, want none", s.Memory.Limit, s.Memory.Swap.Limit, s.CPU.Quota)
	}
}

func TestOldKernelsCountBlockIOElsewhere(t *testing.T) {
	files := v1Files()
	for _, name := range []string{"io_service_bytes", "io_serviced"} {
		path := "blkio/pod/c/blkio.throttle." + name
		files[path] = files[path+"_recursive"]
		delete(files, path+"_recursive")
	}
	s, _ := fakeCgroups(t, false, files).read(newReader(), "/pod/c")
	checkSample(t, "old names", s, wantSample())
}

func TestNumbers(t *testing.T) {
	for text, want := range map[string]uint64{"0": 0, "18446744073709551615": math.MaxUint64, "007": 7} {
		got, ok := number([]byte(text))
		if text == "18446744073709551615" {
			// The very largest numbers are refused with those that are too large; nothing counts so far.
			if ok && got != want {
				t.Errorf("%s is %d", text, got)
			}
			continue
		}
		if !ok || got != want {
			t.Errorf("%s is %d (%t), want %d", text, got, ok, want)
		}
	}
}

func TestLargeFilesAreReadWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "large")
	content := make([]byte, 100_000)
	for i := range content {
		content[i] = byte(i)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := newReader().read(path)
	if err != nil || !reflect.DeepEqual(got, content) {
		t.Errorf("%d bytes of %d (%v)", len(got), len(content), err)
	}
}

// The pairs are what libcontainer makes of the shares.
func TestSharesOfAWeight(t *testing.T) {
	for weight, want := range map[uint64]uint64{1: 2, 100: 1024, 10000: 262144} {
		if got := sharesOf(weight); got != want {
			t.Errorf("weight %d: %d shares, expected %d", weight, got, want)
		}
	}
	for shares, weight := range map[uint64]uint64{512: 59, 2048: 174} {
		if got := float64(sharesOf(weight)); got < 0.95*float64(shares) || got > 1.05*float64(shares) {
			t.Errorf("weight %d: %.0f shares, expected about %d", weight, got, shares)
		}
	}
}
