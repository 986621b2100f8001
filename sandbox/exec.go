package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// TerminalSize is the size of a terminal in characters.
type TerminalSize struct{ Width, Height uint16 }

// ExecOptions says what to run in a container and where its streams go. Streams may be nil.
type ExecOptions struct {
	Args           []string
	Terminal       bool
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Resize gives sizes of the terminal; nil for none.
	Resize <-chan TerminalSize
}

// drainPoll is how often it is looked whether the streams of an exec that has ended are empty.
const drainPoll = 2 * time.Millisecond

// Exec runs a process in a running container and returns its exit code (128+n when killed by signal n). It returns when
// the process exits, after what it had written was copied, even if a child of it still holds the streams. When ctx
// ends first the whole process tree is killed and ctx's error returned. A command that cannot be run gives
// keeper.ErrStart.
func (m *Manager) Exec(ctx context.Context, id string, opts ExecOptions) (exitCode int32, err error) {
	c, err := m.findContainer(id)
	if err != nil {
		return 0, err
	}
	if len(opts.Args) == 0 {
		return 0, fmt.Errorf("exec in container %s: cmd is empty: %w", c.id, errdefs.ErrInvalidArgument)
	}
	if st := c.Status(); st.State != ContainerRunning {
		return 0, fmt.Errorf("exec in container %s: it is %s, expected running: %w", c.id, st.State,
			errdefs.ErrFailedPrecondition)
	}
	x, err := c.startExec(ctx, opts)
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	defer x.close()
	code, err := x.session.Wait(ctx)
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	if err := x.drain(ctx); err != nil {
		return 0, fmt.Errorf("exec in container %s: copy its output: %w", c.id, err)
	}
	return code, nil
}

// execution is an exec that goes on: the keeper's session and the copying of its streams.
type execution struct {
	session *keeper.ExecSession
	stdin   *os.File
	outputs []*os.File
	copying sync.WaitGroup

	mu  sync.Mutex
	err error
}

func (c *Container) startExec(ctx context.Context, opts ExecOptions) (*execution, error) {
	x := &execution{}
	req := keeper.ExecRequest{ID: c.id, Args: opts.Args, Terminal: opts.Terminal}
	if opts.Terminal {
		session, err := c.m.keeper.exec(ctx, req, [3]*os.File{})
		if err != nil {
			return nil, err
		}
		x.session = session
		if err := x.useTerminal(opts); err != nil {
			session.Close()
			return nil, err
		}
		return x, nil
	}
	p, err := openPipes(opts)
	if err != nil {
		return nil, err
	}
	x.session, err = c.m.keeper.exec(ctx, req, p.theirs)
	p.closeTheirs()
	if err != nil {
		p.closeOurs()
		return nil, err
	}
	x.stdin = p.stdin
	x.copyIn(opts.Stdin)
	x.copyOut(p.stdout, opts.Stdout)
	x.copyOut(p.stderr, opts.Stderr)
	return x, nil
}

// execPipes are the pipes of an exec without a terminal: theirs go to the process.
type execPipes struct {
	theirs                [3]*os.File
	stdin, stdout, stderr *os.File
}

func openPipes(opts ExecOptions) (*execPipes, error) {
	p := &execPipes{}
	err := p.open(opts)
	if err != nil {
		p.closeTheirs()
		p.closeOurs()
		return nil, fmt.Errorf("open the streams of an exec: %w", err)
	}
	return p, nil
}

func (p *execPipes) open(opts ExecOptions) (err error) {
	if opts.Stdin != nil {
		if p.theirs[0], p.stdin, err = openPipe(false); err != nil {
			return err
		}
	}
	if p.theirs[1], p.stdout, err = openPipe(true); err != nil {
		return err
	}
	p.theirs[2], p.stderr, err = openPipe(true)
	return err
}

// openPipe makes a pipe of which we read or write one end. That one is non-blocking, for Go's poller; the process's
// must not be, since programs do not expect EAGAIN from their streams.
func openPipe(weRead bool) (theirs, ours *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	our, their := fds[0], fds[1]
	if !weRead {
		our, their = their, our
	}
	if err := unix.SetNonblock(our, true); err != nil {
		_, _ = unix.Close(our), unix.Close(their)
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(their), "exec"), os.NewFile(uintptr(our), "exec"), nil
}

func (p *execPipes) closeTheirs() { closeFiles(p.theirs[:]...) }

func (p *execPipes) closeOurs() { closeFiles(p.stdin, p.stdout, p.stderr) }

func closeFiles(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}

// useTerminal copies between the streams and the master of the exec's terminal. The end of the input does not close
// the master, which is the output too.
func (x *execution) useTerminal(opts ExecOptions) error {
	master, err := pollable(x.session.Master)
	if err != nil {
		return fmt.Errorf("open the terminal of an exec: %w", err)
	}
	if opts.Stdin != nil {
		go func() { _, _ = io.Copy(master, opts.Stdin) }()
	}
	if opts.Resize != nil {
		go func() {
			for size := range opts.Resize {
				setTerminalSize(master, size)
			}
		}()
	}
	x.copyOut(master, opts.Stdout)
	return nil
}

// pollable makes a file that came from the keeper one that Go's poller knows, so that a read of it can be given a
// deadline. It consumes f.
func pollable(f *os.File) (*os.File, error) {
	if f == nil {
		return nil, errors.New("the keeper sent no descriptor")
	}
	defer f.Close()
	fd, err := keeper.Duplicate(f)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func setTerminalSize(master *os.File, size TerminalSize) {
	conn, err := master.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Control(func(fd uintptr) {
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
	})
}

// copyIn copies the input until it ends, and then closes the process's side. It is not waited for: a reader from the
// network ends when its connection does.
func (x *execution) copyIn(from io.Reader) {
	if from == nil {
		return
	}
	go func() {
		_, _ = io.Copy(x.stdin, from)
		_ = x.stdin.Close()
		// EPIPE: the process does not want more. What the client still sends must find a reader all the same: without one
		// it would hold up the other streams of its connection.
		_, _ = io.Copy(io.Discard, from)
	}()
}

// copyOut copies an output until it ends or drain says so. Output that nobody wants is read all the same, so that the
// process does not block.
func (x *execution) copyOut(from *os.File, to io.Writer) {
	if to == nil {
		to = io.Discard
	}
	x.outputs = append(x.outputs, from)
	x.copying.Go(func() {
		_, err := io.Copy(to, from)
		// EIO is how the master of a terminal says that nobody holds the other side; the deadline is drain's.
		if err != nil && !errors.Is(err, unix.EIO) && !errors.Is(err, os.ErrDeadlineExceeded) &&
			!errors.Is(err, os.ErrClosed) {
			x.mu.Lock()
			x.err = err
			x.mu.Unlock()
			_, _ = io.Copy(io.Discard, from)
		}
	})
}

// drain waits until what the process had written is copied. A child of it that holds the streams does not keep us:
// what is in the pipes when the process has exited is all that counts.
func (x *execution) drain(ctx context.Context) error {
	done := make(chan struct{})
	go func() { x.copying.Wait(); close(done) }()
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	for open := x.outputs; len(open) > 0; {
		select {
		case <-done:
			open = nil
			continue
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		var left []*os.File
		for _, f := range open {
			if pending(f) {
				left = append(left, f)
			} else {
				_ = f.SetReadDeadline(time.Now())
			}
		}
		open = left
	}
	select {
	case <-done:
	case <-ctx.Done():
		return ctx.Err()
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.err
}

// pending reports whether there are bytes to read.
func pending(f *os.File) bool {
	conn, err := f.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	_ = conn.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return err == nil && n > 0
}

// close ends the session, which kills what still runs when it was not waited for to its end.
func (x *execution) close() {
	x.session.Close()
	closeFiles(x.stdin)
	closeFiles(x.outputs...)
}
