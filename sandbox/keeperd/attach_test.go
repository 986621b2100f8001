package keeperd_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// client is an attached client that collects what it gets.
type client struct {
	*keeper.AttachSession
	streams []*os.File // read ends

	mu   sync.Mutex
	got  [2]bytes.Buffer
	done sync.WaitGroup
}

// attach connects a client; one that is lazy does not read.
func (c *container) attach(req keeper.AttachRequest, lazy bool) *client {
	c.t.Helper()
	cl := &client{}
	req.ID = c.ID
	var pipes []*os.File
	for _, wanted := range []bool{req.Stdout, req.Stderr} {
		if !wanted {
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			c.t.Fatal(err)
		}
		defer w.Close()
		pipes, cl.streams = append(pipes, w), append(cl.streams, r)
	}
	var err error
	if cl.AttachSession, err = c.client.Attach(deadline(c.t), req, pipes...); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		cl.Close()
		keeper.CloseFiles(append(cl.streams, cl.Input))
	})
	for i, r := range cl.streams {
		if lazy {
			continue
		}
		cl.done.Go(func() {
			buf := make([]byte, 64<<10)
			for {
				n, err := r.Read(buf)
				cl.mu.Lock()
				cl.got[i].Write(buf[:n])
				cl.mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	return cl
}

func (cl *client) output(i int) string {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	return cl.got[i].String()
}

func withStdin(r *keeper.StartRequest) { r.Stdin = true }

func TestAttachedClientsGetWhatTheLogGets(t *testing.T) {
	c := newNode(t).run(withStdin, "sh", "-c", `echo before; while read l; do echo "out $l"; echo "err $l" >&2; done`)
	c.eventually("first line", func() bool { return c.output("stdout") == "before\n" })
	first := c.attach(keeper.AttachRequest{Stdin: true, Stdout: true, Stderr: true}, false)
	_, _ = first.Input.WriteString("1\n")
	c.eventually("first client", func() bool { return first.output(0) == "out 1\n" && first.output(1) == "err 1\n" })
	second := c.attach(keeper.AttachRequest{Stdout: true}, false)
	_, _ = first.Input.WriteString("2\n")
	c.eventually("second client", func() bool { return second.output(0) == "out 2\n" })
	c.eventually("first client", func() bool { return first.output(0) == "out 1\nout 2\n" })
	c.eventually("log", func() bool { return c.output("stdout") == "before\nout 1\nout 2\n" })

	second.Close()
	if err := first.Input.Close(); err != nil {
		t.Fatal(err)
	}
	third := c.attach(keeper.AttachRequest{Stdin: true}, false)
	_, _ = third.Input.WriteString("3\n")
	c.eventually("a client without outputs has input", func() bool { return strings.HasSuffix(first.output(0), "out 3\n") })
	if err := c.client.Kill(deadline(t), keeper.KillRequest{ID: c.ID, All: true}); err != nil {
		t.Fatal(err)
	}
	for _, cl := range []*client{first, third} {
		if err := cl.Wait(deadline(t)); err != nil {
			t.Errorf("at the exit: %v", err)
		}
		cl.done.Wait()
	}
	if s, _ := keeper.ReadStatus(c.Dir); !s.Exited() {
		t.Error("an attach ended before the status told of the exit")
	}
}

func TestAttachGetsEverythingBeforeTheExit(t *testing.T) {
	c := newNode(t).run(withStdin, "sh", "-c", "read x; head -c 5000000 /dev/zero | tr '\\0' z; printf end")
	cl := c.attach(keeper.AttachRequest{Stdin: true, Stdout: true}, false)
	_, _ = cl.Input.WriteString("go\n")
	if err := cl.Wait(deadline(t)); err != nil {
		t.Fatal(err)
	}
	cl.done.Wait()
	if got := cl.output(0); len(got) != 5000003 || !strings.HasSuffix(got, "zend") {
		t.Errorf("got %d bytes", len(got))
	}
}

func TestPromptWithoutNewlineIsSeenOnce(t *testing.T) {
	c := newNode(t).run(withStdin, "sh", "-c", "read x; printf 'name? '; read x; printf 'hello '; echo $x; sleep 1000")
	cl := c.attach(keeper.AttachRequest{Stdin: true, Stdout: true}, false)
	_, _ = cl.Input.WriteString("go\n")
	c.eventually("prompt", func() bool { return cl.output(0) == "name? " })
	late := c.attach(keeper.AttachRequest{Stdout: true}, false)
	_, _ = cl.Input.WriteString("you\n")
	c.eventually("answer", func() bool { return cl.output(0) == "name? hello you\n" })
	c.eventually("a late client has the new output only", func() bool { return late.output(0) == "hello you\n" })
}

func TestSlowClientHoldsUpNobody(t *testing.T) {
	const size = 40 << 20
	c := newNode(t).run(withStdin, "sh", "-c", fmt.Sprintf("read x; yes | head -c %d; sleep 1000", size))
	lazy := c.attach(keeper.AttachRequest{Stdin: true, Stdout: true}, true)
	_, _ = lazy.Input.WriteString("go\n")
	err := lazy.Wait(deadline(t))
	if !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "behind") {
		t.Errorf("a client that does not read: %v", err)
	}
	info, err := os.Stat(c.Dir + "/0.log")
	for err == nil && info.Size() < size {
		before := info.Size()
		c.eventually("the log goes on", func() bool {
			info, err = os.Stat(c.Dir + "/0.log")
			return err != nil || info.Size() > before
		})
	}
	if err != nil {
		t.Error(err)
	}
}

func TestAttachToTerminal(t *testing.T) {
	c := newNode(t).run(func(r *keeper.StartRequest) { r.Stdin, r.Spec.Process.Terminal = true, true },
		"sh", "-c", "while read l; do stty size; done")
	cl := c.attach(keeper.AttachRequest{Stdin: true, Stdout: true}, false)
	if !cl.Terminal {
		t.Fatal("no terminal")
	}
	resize := func(rows uint16) {
		raw, _ := cl.Input.SyscallConn()
		_ = raw.Control(func(fd uintptr) {
			_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: 99})
		})
		_, _ = cl.Input.WriteString("\n")
	}
	resize(33)
	c.eventually("size", func() bool { return strings.Contains(cl.output(0), "33 99") })
	c.crash()
	if err := cl.Wait(deadline(t)); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("after the keeper's death: %v", err)
	}
	c.spawn()
	if _, err := c.client.Attach(deadline(t), keeper.AttachRequest{ID: c.ID, Stdin: true}); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("before the terminal was handed over: %v", err)
	}
	if err := c.client.Adopt(deadline(t), c.ID, c.proc); err != nil {
		t.Fatal(err)
	}
	if err := c.client.Settle(deadline(t)); err != nil {
		t.Fatal(err)
	}
	cl = c.attach(keeper.AttachRequest{Stdin: true, Stdout: true}, false)
	resize(44)
	c.eventually("size, by another keeper", func() bool { return strings.Contains(cl.output(0), "44 99") })
}

func TestInputOutlivesAKeeper(t *testing.T) {
	c := newNode(t).run(withStdin, "cat")
	cl := c.attach(keeper.AttachRequest{Stdin: true, Stdout: true}, false)
	_, _ = cl.Input.WriteString("one\n")
	c.eventually("echo", func() bool { return cl.output(0) == "one\n" })
	c.crash()
	_, _ = cl.Input.WriteString("two\n")
	c.spawn()
	if err := c.client.Settle(deadline(t)); err != nil {
		t.Fatal(err)
	}
	next := c.attach(keeper.AttachRequest{Stdin: true, Stdout: true}, false)
	_, _ = cl.Input.WriteString("three\n")
	_, _ = next.Input.WriteString("four\n")
	c.eventually("echo by another keeper", func() bool { return strings.HasSuffix(next.output(0), "three\nfour\n") })
	c.eventually("log", func() bool { return c.output("stdout") == "one\ntwo\nthree\nfour\n" })
}

func TestInputEndsWithTheFirstAttach(t *testing.T) {
	once := func(r *keeper.StartRequest) { r.Stdin, r.StdinOnce = true, true }
	c := newNode(t).run(once, "sh", "-c", "cat; sleep 1; echo over; sleep 1000")
	watcher := c.attach(keeper.AttachRequest{Stdout: true, StdinOnce: true}, false)
	watcher.Close() // had no input, so it ends none
	cl := c.attach(keeper.AttachRequest{Stdin: true, StdinOnce: true, Stdout: true}, false)
	_, _ = cl.Input.WriteString("some\n")
	c.eventually("echo", func() bool { return cl.output(0) == "some\n" })
	_ = cl.Input.Close()
	time.Sleep(50 * time.Millisecond)
	if strings.Contains(c.output("stdout"), "over") {
		t.Error("the input ended while the client is there")
	}
	cl.Close()
	c.eventually("the input has ended", func() bool { return c.output("stdout") == "some\nover\n" })
	_, err := c.client.Attach(deadline(t), keeper.AttachRequest{ID: c.ID, Stdin: true, StdinOnce: true})
	if !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "ended") {
		t.Errorf("input after its end: %v", err)
	}
}

func TestAttachToWhatDoesNotRun(t *testing.T) {
	n := newNode(t)
	_, err := n.client.Attach(deadline(t), keeper.AttachRequest{ID: strings.Repeat("a", 64)})
	if !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("unknown container: %v", err)
	}
	c := n.run(nil, "true")
	c.wait()
	c.eventually("not running", func() bool {
		_, err := n.client.Attach(deadline(t), keeper.AttachRequest{ID: c.ID})
		return errors.Is(err, errdefs.ErrFailedPrecondition)
	})
	plain := n.run(nil, "sleep", "1000")
	if _, err = n.client.Attach(deadline(t), keeper.AttachRequest{ID: plain.ID, Stdin: true}); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("input of a container without: %v", err)
	}
}
