package stats

import (
	"fmt"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/sandbox"
)

// What a list of 200 containers takes of the sampler, which has all of them, where the disk has room and where it has not.
func BenchmarkAListOfSamples(b *testing.B) {
	n := newFakeNode()
	n.measured = make(chan string, 1000)
	for i := range 200 {
		n.containers = append(n.containers, runningContainer(fmt.Sprintf("%064d", i), "/c"))
	}
	s := start(Config{Source: n, Images: n, Period: time.Hour}, &cgroups{root: b.TempDir()})
	b.Cleanup(s.Close)
	for _, st := range n.containers {
		s.entry(st.ID).last.Store(&Sample{Time: time.Now()})
	}
	for name, list := range map[string]struct {
		room       bool
		containers []*sandbox.ContainerStatus
	}{
		"room/nothing": {true, nil}, "room/containers": {true, n.containers},
		"full/nothing": {false, nil}, "full/containers": {false, n.containers},
	} {
		b.Run(name, func(b *testing.B) {
			if list.room {
				defer hang(s)() // no other look finds out
				s.disk.setLooked(time.Now().Add(time.Hour), true)
			}
			b.ReportAllocs()
			for b.Loop() {
				s.CatchUp(b.Context())
				for _, st := range list.containers {
					if s.Container(b.Context(), st, AnyAge) == nil {
						b.Fatal("a sample is missing")
					}
				}
			}
		})
	}
}
