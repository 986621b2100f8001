package imageservice

import (
	"fmt"
	"math/rand/v2"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// BenchmarkPull pulls an image like real ones in small: one layer of big files, four of many small files, about 200 MB
// in 24,000 entries, half of it noise.
func BenchmarkPull(b *testing.B) {
	source := rand.NewChaCha8([32]byte{1})
	half := func(size int) string {
		data := make([]byte, size)
		source.Read(data[:size/2])
		return string(data)
	}
	var big [][2]string
	for i := range 100 {
		big = append(big, [2]string{fmt.Sprintf("big/%d", i), half(1 << 20)})
	}
	layers := []v1.Layer{layer(b, big...)}
	for l := range 4 {
		var many [][2]string
		for i := range 6000 {
			many = append(many, [2]string{fmt.Sprintf("l%d/d%d/f%d", l, i%60, i), half(4 << 10)})
		}
		layers = append(layers, layer(b, many...))
	}
	r := newRegistry(b)
	r.push(b, "real:1", makeImage(b, "", layers...))
	s := open(b)
	for b.Loop() {
		id := pullOK(b, s, r.host+"/real:1")
		b.StopTimer()
		check(b, s.Remove(b.Context(), named(id)))
		check(b, s.collect(scope(b.Context())))
		b.StartTimer()
	}
}
