package keeperd

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/crilog"
)

// A pump moves the output of a container into its log, so that a keeper that is killed at any moment loses none of it:
// what is in the FIFO is copied with tee(2), written to the log, and only then taken out of the FIFO. A kill between
// the last two writes those records twice, once by each keeper.
//
// An unterminated line stays in the FIFO for a moment, so that a line that comes in pieces is one record, and is then
// written as a P record: a reader of the log puts it together. It must not stay for long. A write that finds the FIFO
// not empty and fills it wakes no reader before it sleeps (the kernel's pipe_write wakes one only if the pipe was
// empty), so as long as something is left in it the FIFO is looked at, not waited for.
//
// A terminal cannot be tee'd: what is read from it is written at once, and a kill between the two loses it.
type pump struct {
	pool   *pumpPool
	stream crilog.Stream
	source *os.File // the read end of a FIFO, or the master of a terminal
	log    *crilog.Writer
	taps   taps // attached clients
	report func(error)
	done   chan struct{}
	wake   chan struct{} // has room for one: there may be something to do

	stopping atomic.Bool
	tail     int       // bytes of an unterminated line at the head of the FIFO
	flush    bool      // it has rested long enough
	last     time.Time // when the last step ended
	hot      bool      // it came soon after the one before
	silent   bool      // the bell is
	grown    bool      // the FIFO has hotSize
}

const (
	// pipeSize is the size of a FIFO, hotSize that of one which was seen to fill, and of the scratch pipes. Twice as much
	// takes a quarter more of CPU time: it does not stay in the processor's cache.
	pipeSize = 64 << 10
	hotSize  = 256 << 10
	// writeSize is how much becomes records and is written at a time: it is still in the processor's cache then. There is
	// always a record in so much.
	writeSize = 2 * crilog.MaxContent
	// scratches bounds the pumps that move data at one time, and those that hold a thread to gather it.
	scratches = 4
	// firstRest is how soon a FIFO with an unterminated line is looked at again; each rest is twice the last. After
	// lastRest, an eighth of a second in all, the line is written as it is.
	firstRest = 250 * time.Microsecond
	lastRest  = 64 * time.Millisecond
	// A stream is hot when its steps follow each other within gatherWithin. It is taken in larger pieces: the FIFO is
	// given gatherFor to fill, which at 100 MB/s is 100 KB. Without that a reader as fast as the writer takes each write
	// by itself, with six system calls, and the writer has to wake it each time.
	gatherWithin = 5 * time.Millisecond
	gatherFor    = time.Millisecond
	// stopPatience is how long a write to a dead disk may keep an exit from being recorded.
	stopPatience = 5 * time.Second
)

// pumpPool has what a pump needs only while it moves data.
type pumpPool struct {
	scratch chan *scratch
	threads chan struct{} // a token for each that gather holds
	bell    *bell
	null    int
}

type scratch struct {
	read, write int
	buf         []byte
}

func newPumpPool() *pumpPool {
	p := &pumpPool{scratch: make(chan *scratch, scratches), threads: make(chan struct{}, scratches), bell: newBell(), null: -1}
	p.null, _ = unix.Open(os.DevNull, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	for range scratches {
		p.scratch <- nil // made when first used
	}
	return p
}

func (p *pumpPool) get() (*scratch, error) {
	s := <-p.scratch
	if s != nil {
		return s, nil
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		p.scratch <- nil
		return nil, err
	}
	size, err := unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, hotSize)
	if err != nil {
		size = pipeSize
	}
	return &scratch{read: fds[0], write: fds[1], buf: make([]byte, size)}, nil
}

// put gives a scratch back. One with bytes left in it would garble the next log: it is thrown away.
func (p *pumpPool) put(s *scratch, clean bool) {
	if !clean {
		_ = unix.Close(s.read)
		_ = unix.Close(s.write)
		s = nil
	}
	p.scratch <- s
}

// start runs the pump until the source ends or stop is called.
func (p *pump) start(terminal bool) {
	p.done, p.wake = make(chan struct{}), make(chan struct{}, 1)
	go func() {
		defer close(p.done)
		defer p.source.Close()
		defer p.taps.end()
		if terminal {
			p.runTerminal()
		} else {
			p.runFIFO()
		}
	}()
}

// stop ends the pump, at the latest after the given time, with everything written that was there by then.
func (p *pump) stop(after time.Duration) {
	select {
	case <-p.done:
		return
	case <-time.After(after):
	}
	p.stopping.Store(true)
	select {
	case p.wake <- struct{}{}:
	default:
	}
	_ = p.source.SetReadDeadline(time.Unix(1, 0)) // for a terminal; a FIFO has none
	select {
	case <-p.done:
	case <-time.After(stopPatience):
		p.report(errors.New("a write hangs: an exit does not wait for it"))
	}
}

func (p *pump) runFIFO() {
	fd := int(p.source.Fd())
	var look <-chan time.Time
	if err := p.pool.bell.add(fd, p.wake); err != nil {
		p.report(err)
		ticker := time.NewTicker(lastRest) // a container must not be stopped by its log for that
		defer ticker.Stop()
		look = ticker.C
	}
	defer p.pool.bell.remove(fd)
	var rest time.Duration // how long an unterminated line is left alone
	over := time.NewTimer(rest)
	defer over.Stop()
	for {
		stopping := p.stopping.Load()
		moved, end := p.step(fd)
		if end || stopping && !moved {
			return
		}
		p.hot = p.hot && moved // what waits has to hear the bell
		if p.silent != p.hot {
			p.silent = p.hot
			p.pool.bell.silence(fd, p.silent)
		}
		switch {
		case p.tail == 0:
			over.Stop()
		case moved:
			rest = firstRest
			over.Reset(rest)
		}
		if moved {
			continue
		}
		select {
		case <-p.wake:
		case <-look:
		case <-over.C:
			rest *= 2
			p.flush = rest > lastRest
			over.Reset(rest)
		}
	}
}

// step moves what is in the FIFO. moved is false when there is nothing new; end is true when all of it is logged and no
// writer is left.
func (p *pump) step(fd int) (moved, end bool) {
	count, hup, err := pending(fd)
	if err != nil {
		return false, true
	}
	if p.hot && count < pipeSize/2 && !hup && !p.stopping.Load() {
		if count, hup, err = p.gather(fd); err != nil {
			return false, true
		}
		if count >= pipeSize/2 && !p.grown {
			_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, hotSize) // it works as it is, too
			p.grown = true
		}
	}
	if count == 0 {
		p.tail = 0
		return false, hup
	}
	force := hup || p.flush || p.stopping.Load()
	if count == p.tail && !force {
		return false, false
	}
	s, err := p.pool.get()
	if err != nil {
		p.report(fmt.Errorf("make scratch pipe: %w", err))
		time.Sleep(time.Second)
		return true, false
	}
	n, err := copyOut(fd, s)
	if err != nil || n == 0 {
		p.pool.put(s, err == nil)
		return false, err == nil && hup // EAGAIN: the container reads its own output
	}
	p.taps.offer(s.buf[min(p.tail, n):n])
	done := 0
	for wrote := -1; wrote != 0 && done < n; done += wrote {
		wrote = p.append(s.buf[done:min(done+writeSize, n)], false)
		p.discard(fd, wrote)
	}
	if done == 0 && (force || n < count) {
		done = p.append(s.buf[:n], true)
		p.discard(fd, done)
	}
	p.pool.put(s, true)
	now := time.Now()
	p.tail, p.flush, p.hot, p.last = n-done, false, now.Sub(p.last) < gatherWithin, now
	return true, false
}

// gather waits for more and returns how much there is then. A few may hold a thread for that: a timer of Go's costs a
// third more, by what it makes the scheduler do.
func (p *pump) gather(fd int) (count int, hup bool, err error) {
	select {
	case p.pool.threads <- struct{}{}:
		_ = unix.Nanosleep(&unix.Timespec{Nsec: int64(gatherFor)}, nil)
		<-p.pool.threads
	default:
		time.Sleep(gatherFor)
	}
	return pending(fd)
}

// pending returns how much is in the FIFO and whether no writer is left. It asks for the second first: then the count
// is final, and a writer that writes and ends in between is not taken for one that wrote nothing.
func pending(fd int) (count int, hup bool, err error) {
	hup = hungUp(fd)
	count, err = unix.IoctlGetInt(fd, unix.TIOCINQ)
	return count, hup, err
}

func (p *pump) append(data []byte, final bool) int {
	n, err := p.log.Append(p.stream, data, final)
	if err != nil {
		p.report(err)
	}
	return n
}

// copyOut copies what the FIFO holds into s.buf and leaves it in the FIFO. On error the scratch is not clean.
func copyOut(fd int, s *scratch) (int, error) {
	n64, err := unix.Tee(fd, s.write, len(s.buf), unix.SPLICE_F_NONBLOCK)
	n := int(n64)
	if err == unix.EAGAIN || n <= 0 {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	for got := 0; got < n; {
		m, err := unix.Read(s.read, s.buf[got:n])
		if err == unix.EINTR {
			continue
		}
		if err != nil || m == 0 {
			return 0, fmt.Errorf("read scratch pipe: %d of %d bytes: %w", got, n, err)
		}
		got += m
	}
	return n, nil
}

// discard takes n bytes out of the FIFO.
func (p *pump) discard(fd, n int) {
	for n > 0 {
		m, err := unix.Splice(fd, nil, p.pool.null, nil, n, unix.SPLICE_F_NONBLOCK)
		if err == unix.EINTR {
			continue
		}
		if err != nil || m <= 0 {
			return
		}
		n -= int(m)
	}
}

func hungUp(fd int) bool {
	poll := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n > 0 && poll[0].Revents&unix.POLLHUP != 0
}

// runTerminal reads until the slave side is closed by all (EIO).
func (p *pump) runTerminal() {
	buf := make([]byte, 0, 4<<10)
	for {
		if cap(buf)-len(buf) < 1<<10 {
			buf = append(make([]byte, 0, 2*cap(buf)), buf...)
		}
		n, err := p.source.Read(buf[len(buf):cap(buf)])
		p.taps.offer(buf[len(buf) : len(buf)+n])
		buf = buf[:len(buf)+n]
		if len(buf) > 0 {
			done := p.append(buf, err != nil)
			buf = buf[:copy(buf, buf[done:])]
		}
		if err != nil {
			return
		}
	}
}
