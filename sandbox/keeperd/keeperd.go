// Package keeperd is the keeper process: parent and subreaper of every container process of one node, the creator of
// containers, the writer of their logs and of what became of them. It is the only importer of libcontainer. It has no
// policy, knows nothing of pods, images or networks, and keeps no state that is not also on disk or in the kernel: a
// keeper that is killed is replaced by another one, and no container notices.
package keeperd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeper"
	"github.com/gantry-cri/gantry/sandbox/keeperd/marks"
	"github.com/gantry-cri/gantry/sandbox/keeperd/profiles"
	"github.com/gantry-cri/gantry/sandbox/keeperd/reaper"
	"github.com/gantry-cri/gantry/sandbox/keeperd/stage"
)

// Config says where and what the keeper is.
type Config struct {
	// StateDir is the daemon's state directory; the keeper has <StateDir>/keeper to itself.
	StateDir string
	// Build is reported to the daemon.
	Build string
	// Ready, if not nil, gets keeper.ReadyMessage once the keeper listens, and is closed.
	Ready *os.File
	// PlainExec makes libcontainer start every exec, also those that package stage can: for comparison.
	PlainExec bool
	// PlainMounts leaves all mounts to libcontainer, also those that package premount can make: for comparison.
	PlainMounts bool
	// PlainExits learns exit codes without asking pidfds, as on a kernel before 6.15: for tests.
	PlainExits bool
}

// Keeper is the state of the process.
type Keeper struct {
	config Config
	layout layout
	log    *logger
	host   host
	slots  *slots
	// captures are turns of their own: an exec that is set up in a frozen container holds one of slots while it is frozen.
	captures *slots
	profiles *profiles.Book
	marks    *marks.Area // nil when there is none: then nobody knows how long the stages of an init took
	logs     *pumpPool
	oom      oomLedger
	ends     *reaper.Ends
	// launcher and programs are what execs are started with.
	launcher *stage.Launcher
	programs stage.Programs

	listener *net.UnixListener

	mu         sync.Mutex
	containers map[string]*container
	// deleted holds when an id was deleted: a start of it that was on its way then must not be carried out.
	deleted  map[string]time.Time
	watchers map[*watcher]struct{}
	settled  bool
	leaving  bool // SIGTERM came: exit when the last container has
	closing  bool
}

// Serve runs the keeper until it is told to shut down. The caller must hold the main goroutine locked to the main
// thread (runtime.LockOSThread in an init function): containers are created on threads that are thrown away, and the
// main thread cannot be.
//
// Errors: text that says why it could not start, in particular that another keeper has the directory.
func Serve(config Config) error {
	k := &Keeper{
		config:     config,
		layout:     layout{root: keeper.Dir(config.StateDir)},
		log:        newLogger(os.Stderr),
		slots:      newSlots(),
		captures:   newSlots(),
		logs:       newPumpPool(),
		containers: map[string]*container{},
		deleted:    map[string]time.Time{},
		watchers:   map[*watcher]struct{}{},
	}
	k.launcher = stage.NewLauncher(k.layout.root)
	lock, err := k.layout.claim()
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if k.ends, err = reaper.OpenEnds(keeper.EndsFile(config.StateDir)); err != nil {
		return err
	}
	k.profiles = profiles.Open(k.log.printf)
	if k.marks, err = marks.Open(); err != nil {
		k.log.printf("%v: the stages of starts are not told", err)
	}
	if err := k.settleIn(); err != nil {
		return err
	}
	term := k.ignoreSignals()
	k.adoptAll()
	if k.listener, err = keeper.Listen(config.StateDir); err != nil {
		return err
	}
	go k.heed(term)
	if config.Ready != nil {
		_, _ = config.Ready.WriteString(keeper.ReadyMessage)
		_ = config.Ready.Close()
	}
	k.log.printf("keeper %s listens, pid %d, %d live", config.Build, os.Getpid(), k.live())
	keeper.Serve(k.listener, k.handlers(), func(err error) { k.log.printf("%v", err) })
	k.profiles.Close()
	return errors.Join(k.host.leave(), k.layout.release())
}

// ignoreSignals makes the keeper deaf to what ends other programs. It returns where SIGTERM arrives.
func (k *Keeper) ignoreSignals() <-chan os.Signal {
	// Caught and not ignored: what is ignored stays so across exec, and no container would hear Ctrl-C.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGPIPE, unix.SIGQUIT, unix.SIGTSTP,
		unix.SIGTTIN, unix.SIGTTOU)
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM)
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	go k.reapOrphans(children)
	return term
}

// heed takes a SIGTERM as a wish: the keeper exits as soon as nothing lives and no daemon watches, so that the shutdown
// of a node does not wait for it in vain. A daemon that comes later ends the wish.
func (k *Keeper) heed(term <-chan os.Signal) {
	for range term {
		k.mu.Lock()
		k.leaving = true
		k.mu.Unlock()
		k.log.printf("SIGTERM: leaves when nothing lives and no daemon watches")
		k.leaveIfAsked()
	}
}

func (k *Keeper) handlers() map[keeper.Verb]keeper.Handler {
	return map[keeper.Verb]keeper.Handler{
		keeper.VerbHello:      k.hello,
		keeper.VerbExpect:     k.handleExpect,
		keeper.VerbStart:      k.handleStart,
		keeper.VerbPodInit:    k.handlePodInit,
		keeper.VerbKill:       k.handleKill,
		keeper.VerbDelete:     k.handleDelete,
		keeper.VerbExec:       k.handleExec,
		keeper.VerbUpdate:     k.handleUpdate,
		keeper.VerbReopen:     k.handleReopen,
		keeper.VerbWatch:      k.handleWatch,
		keeper.VerbCloseStdin: k.handleCloseStdin,
		keeper.VerbAttach:     k.handleAttach,
		keeper.VerbCheckpoint: k.handleCheckpoint,
		keeper.VerbRestore:    k.handleRestore,
		keeper.VerbAdopt:      k.handleAdopt,
		keeper.VerbSettle:     k.handleSettle,
		keeper.VerbShutdown:   k.handleShutdown,
	}
}

func (k *Keeper) hello(_ context.Context, call *keeper.Call) error {
	k.mu.Lock()
	settled, closing := k.settled, k.closing
	k.mu.Unlock()
	if closing {
		return keeper.Errorf(keeper.KindLeaving, "the keeper is shutting down")
	}
	return call.Reply(keeper.HelloReply{
		Protocol: keeper.ProtocolVersion,
		Build:    k.config.Build,
		PID:      os.Getpid(),
		Settled:  settled,
		Live:     k.live(),
	})
}

func (k *Keeper) handleExpect(_ context.Context, call *keeper.Call) error {
	var req keeper.ExpectRequest
	if err := call.Decode(&req); err != nil {
		return err
	}
	if req.Seccomp != nil {
		k.profiles.Meet(req.Seccomp)
	} else {
		k.host.poke()
	}
	return call.Reply(struct{}{})
}

func (k *Keeper) handleShutdown(_ context.Context, call *keeper.Call) error {
	if err := k.closeDown(); err != nil {
		return err
	}
	defer k.listener.Close() // after the reply: the process ends with it
	return call.Reply(struct{}{})
}

// closeDown lets nothing enter any more if nothing lives. The caller then closes the listener, and Serve returns.
func (k *Keeper) closeDown() error {
	k.mu.Lock()
	n := k.liveLocked()
	if n == 0 {
		k.closing = true
	}
	k.mu.Unlock()
	if n > 0 {
		return keeper.Errorf(keeper.KindState, "keeper stays: %d processes live", n)
	}
	return nil
}

func (k *Keeper) live() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.liveLocked()
}

func (k *Keeper) liveLocked() int {
	n := 0
	for _, c := range k.containers {
		if c.state != stateExited {
			n++
		}
	}
	return n
}

// find returns a container by id; the error has KindNotFound.
func (k *Keeper) find(id string) (*container, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if c := k.containers[id]; c != nil {
		return c, nil
	}
	return nil, keeper.Errorf(keeper.KindNotFound, "container %s is not known to the keeper", id)
}

// enter puts a new container into the table.
func (k *Keeper) enter(c *container) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closing {
		return keeper.Errorf(keeper.KindLeaving, "the keeper is shutting down")
	}
	if k.containers[c.id] != nil {
		return keeper.Errorf(keeper.KindState, "container %s exists", c.id)
	}
	if _, gone := k.deleted[c.id]; gone {
		return keeper.Errorf(keeper.KindState, "container %s was deleted", c.id)
	}
	k.containers[c.id] = c
	return nil
}

// deletedMemory is how long a deletion is remembered: longer than a request that was sent before it can take to arrive.
const deletedMemory = time.Minute

// seal makes sure that no container enters under id any more, and returns the one that has, or nil.
func (k *Keeper) seal(id string) *container {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	for id, at := range k.deleted {
		if now.Sub(at) > deletedMemory {
			delete(k.deleted, id)
		}
	}
	k.deleted[id] = now
	return k.containers[id]
}

func (k *Keeper) forget(c *container) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.containers[c.id] == c {
		delete(k.containers, c.id)
	}
}

// bounded runs f and waits for it at most d. f goes on when time is up.
func bounded(d time.Duration, what string, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(d):
		return fmt.Errorf("%s: %w after %v", what, errTimeout, d)
	}
}

var errTimeout = errors.New("timed out")
