package keeperd

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// slots bounds how many starts and execs are set up at one time: more than two per core give no throughput, only
// latency. A slot is lent for a while only: what hangs on a dead disk must not stop the rest.
type slots struct {
	free chan struct{}
}

// slotLease is how long a slot is held at most.
const slotLease = 10 * time.Second

func newSlots() *slots {
	s := &slots{free: make(chan struct{}, 2*runtime.NumCPU())}
	for range cap(s.free) {
		s.free <- struct{}{}
	}
	return s
}

// do runs f in a slot.
func (s *slots) do(ctx context.Context, f func() error) error {
	select {
	case <-s.free:
	case <-ctx.Done():
		return fmt.Errorf("wait for a turn: %w", ctx.Err())
	}
	var once sync.Once
	back := func() { once.Do(func() { s.free <- struct{}{} }) }
	timer := time.AfterFunc(slotLease, back)
	defer func() {
		timer.Stop()
		back()
	}()
	return f()
}

// dup duplicates a descriptor.
func dup(f *os.File) (int, error) { return keeper.Duplicate(f) }

// duplicateAll duplicates files for a reply, so that an exit that closes the originals does not matter to it.
func duplicateAll(files []*os.File) (copies []*os.File) {
	for _, f := range files {
		if fd, err := keeper.Duplicate(f); err == nil {
			copies = append(copies, os.NewFile(uintptr(fd), f.Name()))
		}
	}
	return copies
}
