package keeperd

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/crilog"
	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// handleAttach connects a client to a container's streams until the container has exited or the client is gone. Output
// comes by taps on the pumps, so the log does not know of clients. Input does not pass through the keeper: the client
// gets the container's end of it.
func (k *Keeper) handleAttach(ctx context.Context, call *keeper.Call) error {
	var req keeper.AttachRequest
	if err := call.Decode(&req); err != nil {
		return err
	}
	c, err := k.running(req.ID)
	if err != nil {
		return err
	}
	if c.out == nil {
		return keeper.Errorf(keeper.KindState, "attach: %s is a pod init", req.ID)
	}
	input, err := k.attachInput(c, req.Stdin)
	if err != nil {
		return err
	}
	defer keeper.CloseFiles(input)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	taps, err := c.out.tap(&req, call.Files, func() { cancel(errBehind) })
	defer untap(taps)
	if err != nil {
		return err
	}
	if req.Stdin && req.StdinOnce && !c.terminal {
		defer k.endStdin(c)
	}
	keeper.CloseFiles(call.Files)
	if err := call.Reply(keeper.AttachStarted{Terminal: c.terminal}, input...); err != nil {
		return err
	}
	// Only the client has it now: with it the container's input may have to end.
	keeper.CloseFiles(input)
	if err := awaitTaps(ctx, c, taps); err != nil {
		return err
	}
	return call.Reply(keeper.AttachEnded{})
}

// attachInput returns the terminal's master, or the write end of the container's input if it is wanted.
func (k *Keeper) attachInput(c *container, stdin bool) ([]*os.File, error) {
	if c.terminal {
		master := c.out.terminal()
		if master == nil {
			return nil, keeper.Errorf(keeper.KindState, "attach: the terminal of %s is not with this keeper yet", c.id)
		}
		fd, err := dup(master)
		if err != nil {
			return nil, err
		}
		return []*os.File{os.NewFile(uintptr(fd), "terminal")}, nil
	}
	if !stdin {
		return nil, nil
	}
	fd, err := unix.Open(k.layout.fifo(c.id, "stdin"), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case err == unix.ENOENT || err == unix.ENXIO:
		return nil, keeper.Errorf(keeper.KindState, "attach: container %s has no standard input, or it has ended", c.id)
	case err != nil:
		return nil, &os.PathError{Op: "open", Path: "stdin", Err: err}
	}
	return []*os.File{os.NewFile(uintptr(fd), "stdin")}, nil
}

// tapped is a tap and the taps that it is one of.
type tapped struct {
	tap  *tap
	from *taps
}

// tap connects pipes to the outputs that a request names, in their order. What it returns is also to be undone on
// error.
func (o *output) tap(req *keeper.AttachRequest, pipes []*os.File, onBehind func()) (list []tapped, err error) {
	for _, s := range []struct {
		wanted bool
		stream crilog.Stream
	}{{req.Stdout, crilog.Stdout}, {req.Stderr, crilog.Stderr}} {
		if !s.wanted {
			continue
		}
		from := o.tapsOf(s.stream)
		if from == nil || len(pipes) == 0 {
			return list, keeper.Errorf(keeper.KindState, "attach: no %s, or no pipe for it", s.stream)
		}
		t, err := newTap(pipes[0], onBehind)
		if err != nil {
			return list, err
		}
		list, pipes = append(list, tapped{t, from}), pipes[1:]
		from.add(t)
	}
	return list, nil
}

func (o *output) tapsOf(stream crilog.Stream) *taps {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range o.pumps {
		if p.stream == stream {
			return &p.taps
		}
	}
	return nil
}

func untap(list []tapped) {
	for _, t := range list {
		t.from.remove(t.tap)
		t.tap.cut()
	}
}

// awaitTaps waits until the container has exited and its clients have everything.
func awaitTaps(ctx context.Context, c *container, list []tapped) error {
	for _, t := range list {
		select {
		case <-t.tap.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	select {
	case <-c.gone:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

var errBehind = keeper.Errorf(keeper.KindState,
	"attach: the client is more than %d MiB behind the container's output and was cut off", keeper.AttachBacklog>>20)
