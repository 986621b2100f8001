package keeperd

import (
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// A bell tells pumps that there is something in their FIFOs. It is used in place of Go's poller because it can be silenced:
// a FIFO that is polled wakes whoever waits for it at each write, and not only when it was empty (poll_usage in the
// kernel's pipe_write). That is a thread woken for every few kilobytes of a flood whose pump is at work anyway.
type bell struct {
	fd int // of epoll(7); -1 if there is none

	mu   sync.Mutex
	wake map[int32]chan<- struct{} // by the FIFO's descriptor
}

// What a bell rings for. Even a silent one rings when the last writer has gone, and once: a pump may be held up by a disk.
const (
	silent = unix.EPOLLET
	loud   = unix.EPOLLET | unix.EPOLLIN
)

func newBell() *bell {
	b := &bell{wake: map[int32]chan<- struct{}{}}
	b.fd, _ = unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if b.fd >= 0 {
		go b.run()
	}
	return b
}

// add makes the bell ring for a FIFO: wake, which has room for one, gets a value after each write. The descriptor must be
// removed before it is closed.
func (b *bell) add(fd int, wake chan<- struct{}) error {
	b.mu.Lock()
	b.wake[int32(fd)] = wake
	b.mu.Unlock()
	return os.NewSyscallError("epoll_ctl", b.control(unix.EPOLL_CTL_ADD, fd, loud))
}

func (b *bell) remove(fd int) {
	_ = b.control(unix.EPOLL_CTL_DEL, fd, 0)
	b.mu.Lock()
	delete(b.wake, int32(fd))
	b.mu.Unlock()
}

// silence makes a bell silent for a FIFO, or lets it ring again: at once if there is something already.
func (b *bell) silence(fd int, on bool) {
	events := uint32(loud)
	if on {
		events = silent
	}
	_ = b.control(unix.EPOLL_CTL_MOD, fd, events)
}

func (b *bell) control(operation, fd int, events uint32) error {
	return unix.EpollCtl(b.fd, operation, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
}

// run waits in Go's poller, which takes no thread, or with one where that does not take it.
func (b *bell) run() {
	_ = unix.SetNonblock(b.fd, true)
	file := os.NewFile(uintptr(b.fd), "bell")
	defer runtime.KeepAlive(file)
	var events [64]unix.EpollEvent
	wait := func(timeout int) (more bool) {
		n, err := unix.EpollWait(b.fd, events[:], timeout)
		for _, e := range events[:max(n, 0)] {
			b.ring(e.Fd)
		}
		return n > 0 || err == unix.EINTR
	}
	if raw, err := file.SyscallConn(); err == nil {
		_ = raw.Read(func(uintptr) bool {
			for wait(0) {
			}
			return false
		})
	}
	for wait(-1) {
	}
}

func (b *bell) ring(fd int32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case b.wake[fd] <- struct{}{}: // a nil channel takes nothing: it was removed
	default:
	}
}
