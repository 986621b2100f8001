package keeperd_test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/profiles/seccomp"

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

func TestTimes(t *testing.T) {
	if os.Getenv("GANTRY_TIMES") == "" {
		t.Skip("prints times; set GANTRY_TIMES=1")
	}
	n := newNode(t)
	var start, exec, exit, del []time.Duration
	c := n.run(nil, "sleep", "1000")
	for range 40 {
		t0 := time.Now()
		if _, code := c.exec("true"); code != 0 {
			t.Fatal(code)
		}
		exec = append(exec, time.Since(t0))
	}
	for range 40 {
		c := n.container(nil, "sleep", "1000")
		t0 := time.Now()
		c.begin()
		t1 := time.Now()
		if err := n.client.Kill(deadline(t), keeper.KillRequest{ID: c.ID, Signal: 9}); err != nil {
			t.Fatal(err)
		}
		c.wait()
		t2 := time.Now()
		c.delete()
		start, exit, del = append(start, t1.Sub(t0)), append(exit, t2.Sub(t1)), append(del, time.Since(t2))
	}
	for name, d := range map[string][]time.Duration{"start": start, "exec": exec, "kill to exited": exit, "delete": del} {
		slices.Sort(d)
		t.Logf("%s: p50 %v p90 %v max %v", name, d[len(d)/2], d[len(d)*9/10], d[len(d)-1])
	}
}

func TestMemory(t *testing.T) {
	if os.Getenv("GANTRY_TIMES") == "" {
		t.Skip("prints sizes; set GANTRY_TIMES=1")
	}
	n := newNode(t)
	pid := n.pid()
	read := func(when string) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			t.Fatal(err)
		}
		fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		t.Logf("%s: %d descriptors, %d threads, %s", when, len(fds), len(threads),
			strings.Join(strings.Fields(strings.Join(strings.Split(string(b), "\n")[1:5], " ")), " "))
	}
	read("empty")
	for i := range 100 {
		n.run(nil, "sleep", "1000")
		if i == 0 {
			read("1 container")
		}
	}
	read("100 containers")
	time.Sleep(3 * time.Second)
	read("3 s later")
}

func TestFloodCost(t *testing.T) {
	if os.Getenv("GANTRY_TIMES") == "" {
		t.Skip("prints times; set GANTRY_TIMES=1")
	}
	n := newNode(t)
	line := strings.Repeat("y", 99)
	c := n.run(nil, "sh", "-c", "yes "+line+" | dd bs=64k count=1600 iflag=fullblock")
	s := c.wait()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.pid()))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b))
	t.Logf("%.0f MB/s; keeper used %s+%s ticks for 105 MB", 105/s.Finished.Sub(s.Started).Seconds(), f[13], f[14])
}

// cpuTime is that of the keeper and of the children it waited for.
func (n *node) cpuTime() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.pid()))
	if err != nil {
		n.t.Fatal(err)
	}
	const tick = 10 * time.Millisecond // USER_HZ
	total := time.Duration(0)
	for _, f := range strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))[11:15] {
		ticks, _ := strconv.Atoi(f)
		total += time.Duration(ticks) * tick
	}
	return total
}

// BenchmarkExec runs true in a container with the default seccomp profile's three architectures.
func BenchmarkExec(b *testing.B) {
	for _, program := range []string{"stage", "libcontainer"} {
		for _, parallel := range []int{1, 16} {
			b.Run(fmt.Sprintf("%s-%d", program, parallel), func(b *testing.B) {
				n := &node{t: b, dir: b.TempDir()}
				if program == "libcontainer" {
					n.program = plainKeeper(b, "-plain-exec")
				}
				n.spawn()
				b.Cleanup(n.shutdown)
				c := n.run(defaultFilter, "sleep", "1000")
				c.exec("true")
				before := n.cpuTime()
				b.ResetTimer()
				var left atomic.Int64
				left.Store(int64(b.N))
				var wg sync.WaitGroup
				for range parallel {
					wg.Go(func() {
						for left.Add(-1) >= 0 {
							if _, code := c.exec("true"); code != 0 {
								b.Errorf("exit code %d", code)
							}
						}
					})
				}
				wg.Wait()
				b.StopTimer()
				b.ReportMetric(float64((n.cpuTime()-before).Microseconds())/1000/float64(b.N), "cpu-ms/op")
			})
		}
	}
}

// defaultFilter gives a container the profile that RuntimeDefault means.
func defaultFilter(r *keeper.StartRequest) {
	profile, err := seccomp.GetDefaultProfile(r.Spec)
	if err != nil {
		panic(err)
	}
	r.Spec.Linux.Seccomp = profile
}
