package keeperd

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencontainers/runc/libcontainer"

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// state is where a container is in its life. Only the functions named here change it.
//
//	           start                    exit
//	starting ---------> running ---------------------> exited --> (removed from the table)
//	    |    (enrol)       ^                 (finish)     ^
//	    |                  | adoptLive                    |
//	    +---- remove       +-- found on disk -- lost -----+
//	     (start failed)         by a new keeper   adopt or settle
type state int

const (
	stateStarting state = iota
	stateRunning
	stateLost   // died while no keeper lived: its exit code comes with the daemon's pidfd, or was noted
	stateExited // its status.json is final
)

// container is a container or a pod init. The fields up to enrolled are set before it is closed and constant then.
type container struct {
	id string
	// dir is the record directory, where status.json goes.
	dir string
	// give cancels the start, watch takes the time of its steps.
	give  context.CancelFunc
	watch stopwatch

	pid       int
	startTime uint64
	pidfd     *os.File // nil when lost and not adopted
	status    keeper.Status
	cgroup    cgroup
	terminal  bool
	// reap waits for a child that has exited; nil for a process that is not our child.
	reap func() (unix.WaitStatus, error)
	out  *output // nil for a pod init

	// enrolled is closed when the start ended, well or not.
	enrolled chan struct{}
	// gone is closed when the exit is recorded and told, and the cgroup removed.
	gone chan struct{}

	// burial makes sure that a lost container is finished once.
	burial sync.Once

	// capturing is set while a checkpoint has the container.
	capturing atomic.Bool

	// state is guarded by Keeper.mu.
	state state

	// execs is how commands are started in it.
	execs execTemplate

	// handle is libcontainer's object, nil until the first exec that needs it: it holds the whole configuration, and most
	// containers never need it again. Its methods take a lock of its own, for as long as an exec needs to start.
	handleMu sync.Mutex
	handle   *libcontainer.Container
}

func newContainer(id, dir string) *container {
	return &container{id: id, dir: dir, give: func() {}, enrolled: make(chan struct{}), gone: make(chan struct{})}
}

// descriptors returns what the daemon is to keep of a live container; the files past the returned pidfd and master are
// opened here and the caller's to close.
func (k *Keeper) descriptors(c *container) (send, own []*os.File) {
	send = []*os.File{c.pidfd}
	if c.out == nil {
		return send, nil
	}
	if c.terminal {
		if master := c.out.terminal(); master != nil {
			send = append(send, master)
		}
		return send, nil
	}
	own = k.readEnds(c.id)
	return append(send, own...), own
}

// stateOf reads the state.
func (k *Keeper) stateOf(c *container) state {
	k.mu.Lock()
	defer k.mu.Unlock()
	return c.state
}

// running returns a container that runs; the error has KindNotFound or KindState.
func (k *Keeper) running(id string) (*container, error) {
	c, err := k.find(id)
	if err != nil {
		return nil, err
	}
	if s := k.stateOf(c); s != stateRunning {
		return nil, keeper.Errorf(keeper.KindState, "container %s is not running", id)
	}
	return c, nil
}

// enrol makes a container that has a process a running one, and waits for its exit from then on.
func (k *Keeper) enrol(c *container) {
	k.mu.Lock()
	c.state = stateRunning
	k.mu.Unlock()
	close(c.enrolled)
	go k.await(c)
}

// await waits for the exit, in the netpoller, and does all that follows from it.
func (k *Keeper) await(c *container) {
	if err := awaitExit(context.Background(), c.pidfd); err != nil {
		// A pidfd that cannot be polled: look every now and then.
		k.log.printf("wait for %s: %v", c.id, err)
		for {
			if s, err := readStat(c.pid); err != nil || s.startTime != c.startTime || s.state == 'Z' {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	finished := time.Now()
	code := k.collect(c)
	k.finish(c, code, finished)
}

const (
	// unknownExit is the exit code that is told of a process of which nobody could learn it; unknownExitText tells it from
	// a process that exits with that code.
	unknownExit     = 255
	unknownExitText = "the exit code could not be learned: nobody watched when the process ended"
	// noCode stands for it until then.
	noCode = -1
)

// collect reaps the process and returns its exit code, or noCode.
func (k *Keeper) collect(c *container) int32 {
	if c.reap == nil {
		status, ok := k.exitOf(c.pidfd, c.pid, c.startTime)
		if !ok {
			k.log.printf("exit code of %s is not to be had: its parent was another keeper, without a reaper", c.id)
			return noCode
		}
		return codeOf(status)
	}
	k.noteEnd(c)
	status, err := c.reap()
	k.host.disown(c.pid)
	if err != nil {
		k.log.printf("reap %s: %v", c.id, err)
		return noCode
	}
	return codeOf(status)
}

const (
	// killPatience is how long processes may take to die of SIGKILL.
	killPatience = 5 * time.Second
	// drainPatience is how long output may still come from processes that are not in the container's cgroup.
	drainPatience = time.Second
)

// finish records the exit of a process, tells of it, and releases what it had. Order matters: the OOM count is read
// while the cgroup is there, leftovers are killed so that the output ends, the log is complete before the status says
// exited, and the status is on disk before anybody is told.
func (k *Keeper) finish(c *container, code int32, finished time.Time) {
	status := c.status
	status.Finished, status.ExitCode = finished, code
	if code == noCode {
		status.ExitCode, status.Error = unknownExit, unknownExitText
	}
	// Whatever the exit code: a first process that ends well although a child was killed has not done its work, and the
	// kubelet counts on being told so of an init container (kubernetes#104650).
	status.OOMKilled = k.oom.close(c.cgroup.counter()) > 0
	if err := killTree(c.cgroup.tree(), killPatience); err != nil {
		k.log.printf("after the exit of %s: %v", c.id, err)
	}
	if c.out != nil {
		c.out.close(drainPatience)
	}
	if err := keeper.WriteStatus(c.dir, &status); err != nil && !os.IsNotExist(err) {
		k.log.printf("exit of %s: %v", c.id, err)
	}
	k.mu.Lock()
	c.state, c.status = stateExited, status
	k.tellLocked(keeper.WatchEvent{Exited: &keeper.WatchExit{ID: c.id, Status: status}})
	k.mu.Unlock()
	if err := k.release(c); err != nil {
		k.log.printf("clean up after %s: %v", c.id, err)
	}
	close(c.gone)
	k.leaveIfAsked()
}

// leaveIfAsked shuts down if a SIGTERM came, nothing lives, and no daemon counts on the keeper. It is called whenever
// one of these may have become true.
func (k *Keeper) leaveIfAsked() {
	k.mu.Lock()
	leaving := k.leaving && len(k.watchers) == 0
	k.mu.Unlock()
	if leaving && k.closeDown() == nil { // refused while another lives, whose exit comes here again
		_ = k.listener.Close()
	}
}

// release gives back what only a live container needs. What fails here is tried again by remove.
func (k *Keeper) release(c *container) error {
	if c.pidfd != nil {
		_ = c.pidfd.Close()
	}
	c.handleMu.Lock()
	defer c.handleMu.Unlock()
	handle := c.handle
	c.handle = nil
	if handle == nil {
		var err error
		if handle, err = libcontainer.Load(k.layout.libcontainer(), c.id); err != nil {
			return c.cgroup.removeTree() // a pod init, or a start that did not come that far
		}
	}
	// libcontainer removes only the cgroup itself, not what execs or the container made below it. It also stops the
	// systemd unit and runs the poststop hooks.
	if err := removeBelow(c.cgroup); err != nil {
		return err
	}
	return handle.Destroy()
}

// waitFor waits for a channel to be closed.
func waitFor(ctx context.Context, ch <-chan struct{}, timeout time.Duration, what string) error {
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", what, ctx.Err())
	case <-time.After(timeout):
		return fmt.Errorf("%s: %w after %v", what, errTimeout, timeout)
	}
}
