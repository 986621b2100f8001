package keeperd

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/crilog"
)

// bellFIFO is a FIFO on a bell.
type bellFIFO struct {
	fd     int
	reader *os.File
	writer *os.File
	wake   chan struct{}
}

func newBellFIFO(t *testing.T, b *bell) *bellFIFO {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	writer, err := openFIFO(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = writer.Close() })
	reader, err := openReader(path)
	if err != nil {
		t.Fatal(err)
	}
	f := &bellFIFO{fd: int(reader.Fd()), reader: reader, writer: writer, wake: make(chan struct{}, 1)}
	if err := b.add(f.fd, f.wake); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.remove(f.fd)
		_ = reader.Close()
	})
	return f
}

func (f *bellFIFO) write(t *testing.T) {
	t.Helper()
	if _, err := f.writer.WriteString("x"); err != nil {
		t.Fatal(err)
	}
}

func (f *bellFIFO) rings(t *testing.T, why string) {
	t.Helper()
	select {
	case <-f.wake:
	case <-time.After(time.Minute):
		t.Fatal("no ring " + why)
	}
}

// TestBell needs no time for what does not happen: a second FIFO rings after the first would have.
func TestBell(t *testing.T) {
	b := newBell()
	f, later := newBellFIFO(t, b), newBellFIFO(t, b)
	quiet := func(why string) {
		t.Helper()
		later.write(t)
		later.rings(t, "of the second FIFO")
		if len(f.wake) != 0 {
			t.Fatal("it rings " + why)
		}
	}
	f.write(t)
	f.rings(t, "for the first write")
	f.write(t)
	f.rings(t, "for a write to a FIFO that is not empty")
	quiet("without a write")
	b.silence(f.fd, true)
	quiet("when it is made silent")
	f.write(t)
	quiet("though it is silent")
	b.silence(f.fd, false)
	f.rings(t, "for what was written before")
	b.silence(f.fd, true)
	_ = f.writer.Close()
	f.rings(t, "when the last writer has gone")
	quiet("again and again")
	b.remove(later.fd)
	later.write(t)
	b.silence(f.fd, false)
	f.rings(t, "for a FIFO without a writer")
	if len(later.wake) != 0 {
		t.Error("a removed FIFO rings")
	}
}

// TestBellWithAThread: Go's poller does not take an epoll instance that waits for others which wait for others, as deep as
// the kernel allows.
func TestBellWithAThread(t *testing.T) {
	create := func() int {
		fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	wait := func(outer, inner int) error {
		return unix.EpollCtl(outer, unix.EPOLL_CTL_ADD, inner, &unix.EpollEvent{Events: unix.EPOLLIN})
	}
	top := create()
	for wait(create(), top) == nil { // the kernel looks from there to the bottom, and a poller of ours is as Go's
		next := create()
		if err := wait(next, top); err != nil {
			t.Fatal(err)
		}
		top = next
	}
	fd, err := unix.FcntlInt(uintptr(top), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := &bell{fd: fd, wake: map[int32]chan<- struct{}{}} // the test's process keeps it, as a keeper does
	f := newBellFIFO(t, b)
	go b.run()
	for range 100 {
		f.write(t)
		f.rings(t, "for a write")
	}
}

// TestPumpWithoutABell: what cannot be waited for is looked at.
func TestPumpWithoutABell(t *testing.T) {
	dir := t.TempDir()
	path, logPath := filepath.Join(dir, "fifo"), filepath.Join(dir, "log")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	writer, err := openFIFO(path)
	if err != nil {
		t.Fatal(err)
	}
	reader, err := openReader(path)
	if err != nil {
		t.Fatal(err)
	}
	log, err := crilog.Open(logPath)
	if err != nil {
		t.Fatal(err)
	}
	pool := newPumpPool()
	pool.bell = &bell{fd: -1, wake: map[int32]chan<- struct{}{}}
	var reported atomic.Int32
	p := &pump{pool: pool, stream: crilog.Stdout, source: reader, log: log, report: func(error) { reported.Add(1) }}
	p.start(false)
	for _, line := range []string{"one\n", "two\n"} {
		if _, err := writer.WriteString(line); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			if b, _ := os.ReadFile(logPath); strings.HasSuffix(string(b), " F "+line) {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%q is not in the log", line)
			}
		}
	}
	_ = writer.Close()
	<-p.done
	if reported.Load() != 1 {
		t.Errorf("it was reported %d times", reported.Load())
	}
}
