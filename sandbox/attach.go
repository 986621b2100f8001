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

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// AttachOptions says which streams of a container a client wants. Streams may be nil.
type AttachOptions struct {
	// Terminal must be as in the container's configuration.
	Terminal       bool
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Resize gives sizes of the terminal; nil for none.
	Resize <-chan TerminalSize
}

// CanAttach returns nil if the container's streams can be had, with a terminal or not and with its input or not.
//
// Errors: errdefs.ErrFailedPrecondition when it does not run, errdefs.ErrInvalidArgument when it was made otherwise.
func (s *ContainerStatus) CanAttach(terminal, stdin bool) error {
	switch {
	case s.State != ContainerRunning:
		return fmt.Errorf("it is %s, expected running: %w", s.State, errdefs.ErrFailedPrecondition)
	case terminal != s.Config.GetTty():
		return fmt.Errorf("tty is %v, expected %v as in the container's configuration: %w", terminal, s.Config.GetTty(),
			errdefs.ErrInvalidArgument)
	case stdin && !s.Config.GetStdin():
		return fmt.Errorf("stdin is true, expected false: the container was made without stdin: %w",
			errdefs.ErrInvalidArgument)
	}
	return nil
}

// Attach connects a client to the streams of a running container, beside its log and any number of other clients, and
// returns when the container has exited and all its output was copied. The client gets what the container writes from
// now on. One that does not keep up is cut off with an error when it is keeper.AttachBacklog behind: the container and
// its log wait for nobody.
//
// The end of opts.Stdin ends the input of a container that was made with stdin_once, and so does the end of the attach;
// then no client has input any more. The input of other containers stays open: there, and with a terminal, the client
// has detached, and Attach returns.
//
// When the keeper dies the error is errdefs.ErrUnavailable. The container goes on and a new attach works as soon as
// there is another keeper; to go on without a word would hide what only the log has of the time between.
func (m *Manager) Attach(ctx context.Context, id string, opts AttachOptions) error {
	c, err := m.findContainer(id)
	if err != nil {
		return err
	}
	st := c.Status()
	if err := st.CanAttach(opts.Terminal, opts.Stdin != nil); err != nil {
		return fmt.Errorf("attach to container %s: %w", c.id, err)
	}
	ctx, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	a := &attachClient{c: c, opts: opts, leave: leave}
	a.once = opts.Stdin != nil && st.Config.GetStdinOnce() && !opts.Terminal
	defer a.close()
	err = a.run(ctx)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil && !errors.Is(err, errDetached) {
		return fmt.Errorf("attach to container %s: %w", c.id, err)
	}
	return nil
}

// errDetached ends an attach whose client has ended its input.
var errDetached = errors.New("client has detached")

// attachPause is the pause before a keeper that was lost is asked again to end an input.
const attachPause = 50 * time.Millisecond

// attachClient is one client.
type attachClient struct {
	c    *Container
	opts AttachOptions
	// once says that the container's input ends with this client.
	once bool
	// leave ends the attach with a reason.
	leave context.CancelCauseFunc
	// input is the container's end, or the terminal; nil if there is none.
	input *os.File
}

// run serves the client until the container has exited or ctx ends.
func (a *attachClient) run(ctx context.Context) error {
	o, err := openAttachPipes(a.opts)
	if err != nil {
		return fmt.Errorf("open pipes: %w", err)
	}
	defer closeFiles(o.ours[:]...)
	begin, cancel := context.WithTimeout(ctx, keeperTimeout)
	defer cancel()
	s, err := a.c.m.keeper.attach(begin, keeper.AttachRequest{
		ID: a.c.id, Stdin: a.opts.Stdin != nil, StdinOnce: a.once,
		Stdout: a.opts.Stdout != nil, Stderr: a.opts.Stderr != nil,
	}, o.pipes...)
	closeFiles(o.pipes...)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := a.useInput(s); err != nil {
		return err
	}
	copied := a.copyOut(o)
	if err := s.Wait(ctx); err != nil {
		return err
	}
	select {
	case <-copied:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// attachPipes are the pipes for stdout and stderr. pipes are the keeper's ends of those that are wanted.
type attachPipes struct {
	ours  [2]*os.File
	pipes []*os.File
}

func openAttachPipes(opts AttachOptions) (*attachPipes, error) {
	o := &attachPipes{}
	for i, to := range []io.Writer{opts.Stdout, opts.Stderr} {
		if to == nil {
			continue
		}
		theirs, ours, err := openPipe(true)
		if err != nil {
			closeFiles(append(o.pipes, o.ours[:]...)...)
			return nil, err
		}
		o.ours[i], o.pipes = ours, append(o.pipes, theirs)
	}
	return o, nil
}

// copyOut copies the outputs until the keeper closes them; then the channel is closed.
func (a *attachClient) copyOut(o *attachPipes) <-chan struct{} {
	var copying sync.WaitGroup
	for i, to := range []io.Writer{a.opts.Stdout, a.opts.Stderr} {
		if to == nil {
			continue
		}
		copying.Go(func() {
			if _, err := io.Copy(to, o.ours[i]); err != nil && !errors.Is(err, os.ErrClosed) {
				a.leave(fmt.Errorf("copy output: %w", err))
			}
		})
	}
	done := make(chan struct{})
	go func() { copying.Wait(); close(done) }()
	return done
}

// useInput takes the input that the session brings, and starts to use it.
func (a *attachClient) useInput(s *keeper.AttachSession) error {
	if s.Input == nil {
		return nil
	}
	input, err := pollable(s.Input)
	if err != nil {
		return fmt.Errorf("open input: %w", err)
	}
	a.input = input
	if a.opts.Resize != nil && s.Terminal {
		go func() {
			for size := range a.opts.Resize {
				setTerminalSize(input, size)
			}
		}()
	}
	if a.opts.Stdin != nil {
		a.c.inputs.add(input)
		go a.copyIn(input)
	}
	return nil
}

// copyIn copies the client's input until it ends or the container's does.
func (a *attachClient) copyIn(input *os.File) {
	_, _ = io.Copy(input, a.opts.Stdin)
	if !a.once {
		a.leave(errDetached)
		return
	}
	a.endInput()
	// A connection of several streams needs a reader for each.
	_, _ = io.Copy(io.Discard, a.opts.Stdin)
}

// endInput ends the input of a container that was made with stdin_once, for all clients.
func (a *attachClient) endInput() {
	a.c.inputs.end()
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), keeperTimeout)
		defer cancel()
		// The keeper that takes the place of a dead one holds the input open too. Of any other error the cause is that
		// the container has exited: it has no input to end.
		for errors.Is(a.c.m.keeper.closeStdin(ctx, a.c.id), errdefs.ErrUnavailable) && ctx.Err() == nil {
			time.Sleep(attachPause)
		}
	}()
}

func (a *attachClient) close() {
	if a.once {
		a.endInput()
	}
	if a.input != nil {
		a.c.inputs.remove(a.input)
		_ = a.input.Close()
	}
}

// attachInputs are the write ends that the clients have of one container's input. With stdin_once all have to be closed
// for the container to see the end.
type attachInputs struct {
	mu    sync.Mutex
	open  map[*os.File]struct{}
	ended bool
}

// add registers a write end, or closes it if the input has ended.
func (i *attachInputs) add(f *os.File) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.ended {
		_ = f.Close()
		return
	}
	if i.open == nil {
		i.open = map[*os.File]struct{}{}
	}
	i.open[f] = struct{}{}
}

func (i *attachInputs) remove(f *os.File) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.open, f)
}

// end closes all write ends, and those that come later.
func (i *attachInputs) end() {
	i.mu.Lock()
	defer i.mu.Unlock()
	for f := range i.open {
		_ = f.Close()
	}
	i.open, i.ended = nil, true
}
