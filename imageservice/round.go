package imageservice

import (
	"context"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

// rounds runs one kind of cleaning in the background, one round at a time, whenever somebody asks. Its methods may be
// called from several goroutines.
type rounds struct {
	asked chan struct{}

	mu sync.Mutex
	// next is closed when the round ends that begins next.
	next chan struct{}
}

func newRounds() *rounds { return &rounds{asked: make(chan struct{}, 1), next: make(chan struct{})} }

// soon asks for a round that begins after this. It never blocks; what it returns is closed when that round has ended.
func (r *rounds) soon() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case r.asked <- struct{}{}:
	default: // who asked before gets the same one
	}
	return r.next
}

// begin returns what is to be closed when the round ends that begins now.
func (r *rounds) begin() chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	ends := r.next
	r.next = make(chan struct{})
	return ends
}

// repeat runs do for each round until the service is closed.
func (s *Service) repeat(r *rounds, do func(context.Context) error) {
	s.work.Go(func() {
		for {
			select {
			case <-s.ctx.Done():
				return
			case <-r.asked:
			}
			ends := r.begin()
			ctx, cancel := context.WithTimeout(s.ctx, background)
			if err := do(ctx); err != nil && s.ctx.Err() == nil {
				klog.ErrorS(err, "Cleaning the image store failed")
			}
			cancel()
			close(ends)
		}
	})
}

// freePatience is how long a removal waits for its space to be free: a round may have somebody else's millions of files.
const freePatience = 10 * time.Second

// wait waits for the end of a round, but not beyond freePatience, ctx or the service: the space comes free then, too,
// only later.
func (s *Service) wait(ctx context.Context, ends <-chan struct{}) {
	select {
	case <-ends:
	case <-ctx.Done():
	case <-s.ctx.Done():
	case <-time.After(freePatience):
	}
}
