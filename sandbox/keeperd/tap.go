package keeperd

import (
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// A tap copies one output of a container to one attached client, by a pipe. It takes what it is offered at once and
// writes it in a goroutine of its own, so that a client that does not read holds up nobody; what it may have to keep
// for one is bounded.
type tap struct {
	pipe *os.File
	// wake has room for one: there is something to write, or nothing will follow.
	wake chan struct{}
	// done is closed when everything is written, or never will be, and the pipe is closed.
	done chan struct{}
	// onBehind is called when the client is cut off.
	onBehind func()

	mu      sync.Mutex
	pending []byte
	backlog int // bytes that were offered and are not in the pipe: pending, and what is being written
	ended   bool
}

// tapPiece is how much is written at once, and how large a buffer may be that is kept for the next time.
const tapPiece = 64 << 10

// newTap starts a tap into a pipe of another process, of which it makes its own copy.
func newTap(pipe *os.File, onBehind func()) (*tap, error) {
	fd, err := dup(pipe)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	t := &tap{
		pipe: os.NewFile(uintptr(fd), "tap"), onBehind: onBehind,
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	go t.run()
	return t, nil
}

// offer copies data. A client that would be too far behind then is cut off.
func (t *tap) offer(data []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return
	}
	if t.backlog+len(data) > keeper.AttachBacklog {
		t.cutLocked()
		t.onBehind()
		return
	}
	t.pending = append(t.pending, data...)
	t.backlog += len(data)
	t.wakeLocked()
}

// end lets the tap write what it has and then close the pipe.
func (t *tap) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	t.wakeLocked()
}

// cut closes the pipe at once.
func (t *tap) cut() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cutLocked()
}

func (t *tap) cutLocked() {
	t.ended, t.pending = true, nil
	_ = t.pipe.Close() // a write that waits returns
	t.wakeLocked()
}

func (t *tap) wakeLocked() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

func (t *tap) run() {
	defer close(t.done)
	defer t.pipe.Close()
	var spare []byte
	for range t.wake {
		for {
			data, ended := t.take(spare)
			spare = nil // it is the tap's now
			if len(data) == 0 && ended {
				return
			}
			if len(data) == 0 {
				break
			}
			if !t.write(data) {
				t.cut() // nobody reads: the client is gone
				return
			}
			if cap(data) <= tapPiece {
				spare = data[:0]
			}
		}
	}
}

// take returns what is to be written and puts spare in its place.
func (t *tap) take(spare []byte) (data []byte, ended bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	data, t.pending = t.pending, spare
	return data, t.ended
}

func (t *tap) write(data []byte) bool {
	for piece := range slices.Chunk(data, tapPiece) {
		if _, err := t.pipe.Write(piece); err != nil {
			return false
		}
		t.mu.Lock()
		t.backlog -= len(piece)
		t.mu.Unlock()
	}
	return true
}

// taps are those of one output.
type taps struct {
	mu    sync.Mutex
	list  []*tap
	ended bool
}

// offer copies data to all.
func (ts *taps) offer(data []byte) {
	if len(data) == 0 {
		return
	}
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for _, t := range ts.list {
		t.offer(data)
	}
}

// add makes a tap one of them; when the output has ended, so does the tap.
func (ts *taps) add(t *tap) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.ended {
		t.end()
		return
	}
	ts.list = append(ts.list, t)
}

func (ts *taps) remove(t *tap) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.list = slices.DeleteFunc(ts.list, func(other *tap) bool { return other == t })
}

// end ends all, and those that are still to come.
func (ts *taps) end() {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for _, t := range ts.list {
		t.end()
	}
	ts.list, ts.ended = nil, true
}
