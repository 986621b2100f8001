package main

import (
	"slices"
	"sync"
	"time"
)

// Figure is one result. Of all units but 1/s and MB/s less is better.
type Figure struct {
	Key   string  `json:"key"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
}

// latencies are how long calls took. Its methods may be called from several goroutines.
type latencies struct {
	mu     sync.Mutex
	values []time.Duration
}

// time calls action and adds how long it took, unless it failed.
func (l *latencies) time(action func() error) error {
	start := time.Now()
	if err := action(); err != nil {
		return err
	}
	took := time.Since(start)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.values = append(l.values, took)
	return nil
}

// figures are the quantiles in milliseconds.
func (l *latencies) figures(key string) []Figure {
	l.mu.Lock()
	defer l.mu.Unlock()
	slices.Sort(l.values)
	var figures []Figure
	for _, q := range []struct {
		name string
		at   float64
	}{{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}} {
		figures = append(figures, Figure{key + " " + q.name, milliseconds(quantile(l.values, q.at)), "ms"})
	}
	return figures
}

// quantile is the smallest of the sorted values that at least the part q of all do not exceed; 0 if there is none.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	n := int(q*float64(len(sorted)) + 0.999999)
	return sorted[min(max(n, 1), len(sorted))-1]
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
}
