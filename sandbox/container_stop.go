package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/sandbox/keeper"
	"github.com/gantry-cri/gantry/sandbox/spec"
)

const (
	// killTimeout is how long a killed process may take to go; after that it is in the kernel's hands (D state).
	killTimeout = 30 * time.Second
	// killAgain is the time between two SIGKILLs: a fork bomb may outrun the first.
	killAgain = time.Second
)

// ending is a stop that goes on. Its deadline may only shrink.
type ending struct {
	deadline time.Time
	// shorter is told when the deadline has shrunk.
	shorter chan struct{}
	// done is closed when the stop gave up; err says why. A stop that succeeds is seen by Container.exited.
	done chan struct{}
	err  error
}

// StopContainer sends the stop signal, waits up to timeout and kills. It returns when the process is gone. An unknown
// id is no error; of several calls the shortest timeout counts. Giving up on a call does not end the stop.
func (m *Manager) StopContainer(ctx context.Context, id string, timeout time.Duration) error {
	c, err := m.findContainer(id)
	if err != nil {
		if gone(err) {
			return nil
		}
		return err
	}
	if timeout < 0 {
		return fmt.Errorf("stop container %s: timeout %s: expected zero or more: %w", c.id, timeout,
			errdefs.ErrInvalidArgument)
	}
	if err := c.stop(ctx, timeout); err != nil {
		return fmt.Errorf("stop container %s: %w", c.id, err)
	}
	return nil
}

// stop stops a container that runs; of one that was not started there is nothing to stop.
func (c *Container) stop(ctx context.Context, timeout time.Duration) error {
	if timeout == 0 {
		c.cancel() // what hangs in a start is not waited for
	}
	_ = c.making.wait(ctx)
	_ = c.starting.wait(ctx)
	if err := ctx.Err(); err != nil {
		return err
	}
	switch c.Status().State {
	case ContainerRunning:
	case ContainerUnknown:
		return c.deleteProcess(ctx)
	default:
		return nil
	}
	e := c.beginEnding(time.Now().Add(timeout), timeout > 0)
	select {
	case <-c.exited:
		return nil
	case <-e.done:
		return e.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// beginEnding starts the stop, or shortens the one that goes on.
func (c *Container) beginEnding(deadline time.Time, graceful bool) *ending {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.ending; e != nil {
		if deadline.Before(e.deadline) {
			e.deadline = deadline
			select {
			case e.shorter <- struct{}{}:
			default: // it has not yet taken in the one before, and will read the deadline then
			}
		}
		return e
	}
	e := &ending{deadline: deadline, shorter: make(chan struct{}, 1), done: make(chan struct{})}
	c.ending = e
	go c.end(e, graceful)
	return e
}

// end carries a stop out.
func (c *Container) end(e *ending, graceful bool) {
	defer func() {
		c.mu.Lock()
		c.ending = nil
		c.mu.Unlock()
		close(e.done)
	}()
	if graceful && c.signalAndWait(e) {
		return
	}
	e.err = c.killAndWait()
}

// signalAndWait sends the stop signal and waits for the exit up to the deadline, which may shrink meanwhile. It
// reports whether the process is gone.
func (c *Container) signalAndWait(e *ending) bool {
	n, err := spec.SignalNumber(c.Status().StopSignal)
	if err == nil {
		ctx, cancel := background(killTimeout)
		err = c.m.keeper.kill(ctx, keeper.KillRequest{ID: c.id, Signal: n})
		cancel()
	}
	if err != nil {
		// The grace goes on: a keeper that is being replaced must not turn a stop into a kill.
		klog.ErrorS(err, "Stop signal could not be sent", "container", c.id, "signal", c.Status().StopSignal)
	}
	for {
		c.mu.Lock()
		left := time.Until(e.deadline)
		c.mu.Unlock()
		timer := time.NewTimer(left)
		select {
		case <-c.exited:
			timer.Stop()
			return true
		case <-e.shorter:
			timer.Stop()
		case <-timer.C:
			return false
		}
	}
}

// killAndWait kills every process of the container until they are gone.
func (c *Container) killAndWait() error {
	ctx, cancel := background(killTimeout)
	defer cancel()
	for {
		err := c.m.keeper.kill(ctx, keeper.KillRequest{ID: c.id, All: true})
		timer := time.NewTimer(killAgain)
		select {
		case <-c.exited:
			timer.Stop()
			return nil
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			if err == nil || errors.Is(err, context.DeadlineExceeded) {
				err = fmt.Errorf("process %d is still there %s after SIGKILL; it hangs in the kernel", c.Status().PID, killTimeout)
			}
			return err
		}
	}
}

// RemoveContainer removes a container, killing it first. It is idempotent; an unknown id is no error.
func (m *Manager) RemoveContainer(ctx context.Context, id string) error {
	c, err := m.findContainer(id)
	if err != nil {
		if gone(err) {
			return nil
		}
		return err
	}
	if err := c.removing.do(ctx, c.remove); err != nil {
		return fmt.Errorf("remove container %s: %w", c.id, err)
	}
	return nil
}

// remove is the one remover of containers: for a make that failed, for the API and for recovery. It is idempotent and
// safe on half-made containers; it tries every step and deletes the record last, so that what failed can be retried.
func (c *Container) remove() error {
	ctx, cancel := background(teardownTimeout)
	defer cancel()
	if c.Status().State != ContainerCreating { // a make that failed calls this itself
		if err := c.stop(ctx, 0); err != nil {
			return err
		}
		if err := c.transition(ContainerRemoving, nil); err != nil {
			return err
		}
	}
	var errs []error
	if c.mayHaveProcess() {
		errs = append(errs, c.deleteProcess(ctx))
	}
	if err := c.m.config.Images.Release(ctx, c.id); err != nil {
		errs = append(errs, fmt.Errorf("release root filesystem: %w", err))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := removeDir(c.dir(), containerRecord); err != nil {
		return err
	}
	c.m.keeper.drop(c.id)
	c.s.dropContainer(c)
	return nil
}

// mayHaveProcess reports whether the keeper may know the container: a start was tried, now or by an earlier daemon.
func (c *Container) mayHaveProcess() bool {
	st := c.Status()
	return !st.Started.IsZero() || !st.Finished.IsZero() || c.startTried.Load()
}

// deleteProcess makes the keeper remove all that is left of the container's process.
func (c *Container) deleteProcess(ctx context.Context) error {
	err := c.m.keeper.delete(ctx, keeper.DeleteRequest{
		ID:            c.id,
		CgroupsPath:   c.m.cgroupsPath(c.s.Status().CgroupParent, c.id),
		SystemdCgroup: c.m.config.CgroupDriver == DriverSystemd,
	})
	if err != nil {
		return fmt.Errorf("delete process: %w", err)
	}
	return nil
}
