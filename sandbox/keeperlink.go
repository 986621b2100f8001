package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/sandbox/keeper"
	"github.com/gantry-cri/gantry/trace"
)

// keeperTimeout bounds the steps of joining a keeper.
const keeperTimeout = 30 * time.Second

// respawnPause is the pause after a keeper could not be had.
const respawnPause = 200 * time.Millisecond

// keeperLink holds the daemon to its keeper: it joins the one that runs or spawns one, hears of exits, keeps a second
// copy of the descriptors that must outlive a keeper, and replaces a keeper that died.
type keeperLink struct {
	client *keeper.Client
	binary string
	state  string
	log    string
	build  string
	// profile is the seccomp profile that most containers will have, or nil.
	profile *specs.LinuxSeccomp
	// onExit is told of an exit. onSync is told of what lives whenever the link was made anew; whatever ended before that
	// is in the status files.
	onExit func(id string, status *keeper.Status)
	onSync func(live map[string]keeper.WatchLive)

	// life ends with close.
	life context.Context
	stop context.CancelFunc
	done chan struct{}

	// tablePins says that the keeper looks for pins in the node's table of mounts.
	tablePins atomic.Bool
	// expected is when expect was called last, in Unix nanoseconds.
	expected atomic.Int64

	mu    sync.Mutex
	err   error
	files map[string]*keeper.Process
}

func newKeeperLink(config Config) *keeperLink {
	l := &keeperLink{
		client: keeper.New(config.State),
		binary: config.Keeper,
		state:  config.State,
		log:    filepath.Join(config.State, "keeper.log"),
		build:  config.Build,
		files:  map[string]*keeper.Process{},
		done:   make(chan struct{}),
	}
	l.life, l.stop = context.WithCancel(context.Background())
	return l
}

// open joins or spawns the keeper and returns when onSync was called. After that a goroutine keeps the link up.
func (l *keeperLink) open(ctx context.Context) error {
	watch, err := l.join(ctx)
	if errors.Is(err, errdefs.ErrUnavailable) {
		watch, err = l.join(ctx) // it was about to exit when it answered
	}
	if err != nil {
		return err
	}
	go l.run(l.life, watch)
	return nil
}

// close lets go of the keeper and asks it to end if nothing lives.
func (l *keeperLink) close(ctx context.Context) error {
	l.stop()
	ctx, cancel := context.WithTimeout(ctx, keeperTimeout)
	defer cancel()
	select {
	case <-l.done:
	case <-ctx.Done():
		return fmt.Errorf("end the keeper: it is being started: %w", ctx.Err())
	}
	err := l.client.Shutdown(ctx)
	if err != nil && !errors.Is(err, errdefs.ErrFailedPrecondition) {
		return fmt.Errorf("end the keeper: %w", err)
	}
	return nil
}

// ready returns nil, or why the keeper cannot be used just now.
func (l *keeperLink) ready() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

func (l *keeperLink) setReady(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

// run hears of exits until the keeper dies, and then joins the next one.
func (l *keeperLink) run(ctx context.Context, watch *keeper.Watch) {
	defer close(l.done)
	for {
		err := l.hear(watch)
		watch.Close()
		if ctx.Err() != nil {
			return
		}
		klog.ErrorS(err, "Keeper was lost; containers go on, a new keeper takes them over")
		l.setReady(fmt.Errorf("keeper was lost: %w", err))
		for watch = nil; watch == nil; {
			if watch, err = l.join(ctx); err == nil {
				break
			}
			if ctx.Err() != nil {
				return
			}
			klog.ErrorS(err, "Keeper could not be replaced, will try again")
			l.setReady(err)
			select {
			case <-time.After(respawnPause):
			case <-ctx.Done():
				return
			}
		}
		l.setReady(nil)
	}
}

// hear passes exits on until the watch ends.
func (l *keeperLink) hear(watch *keeper.Watch) error {
	for {
		event, files, err := watch.Next()
		if err != nil {
			return err
		}
		switch {
		case event.Exited != nil:
			l.onExit(event.Exited.ID, &event.Exited.Status)
			l.drop(event.Exited.ID)
		case event.Live != nil:
			l.hold(event.Live.ID, files)
		}
	}
}

// join connects to the keeper that runs, or spawns one and gives it what the last one held, and takes in what lives.
func (l *keeperLink) join(ctx context.Context) (*keeper.Watch, error) {
	ctx, cancel := context.WithTimeout(ctx, keeperTimeout)
	defer cancel()
	_, hello, err := keeper.Connect(ctx, l.state, l.build)
	if errors.Is(err, errdefs.ErrUnavailable) || l.dismiss(ctx, hello) {
		if err := keeper.Spawn(ctx, l.binary, l.state, l.log); err != nil {
			return nil, err
		}
		_, hello, err = keeper.Connect(ctx, l.state, l.build)
	}
	if err != nil {
		return nil, err
	}
	if hello.Build != l.build {
		klog.InfoS("Keeper of another build is used; it goes on until its containers end",
			"keeper", hello.Build, "daemon", l.build, "pid", hello.PID)
	}
	l.tablePins.Store(hello.Protocol == keeper.ProtocolTablePins)
	if !hello.Settled {
		if err := l.settle(ctx); err != nil {
			return nil, err
		}
	}
	watch, err := l.client.Watch(l.life)
	if err != nil {
		return nil, fmt.Errorf("watch keeper: %w", err)
	}
	if err := l.sync(ctx, watch); err != nil {
		watch.Close()
		return nil, fmt.Errorf("watch keeper: %w", err)
	}
	go l.introduce()
	return watch, nil
}

// introduce tells the keeper of the profile, so that the first containers need not wait until it is compiled. As with
// expect, it is a matter of speed only.
func (l *keeperLink) introduce() {
	if l.profile == nil {
		return
	}
	ctx, cancel := context.WithTimeout(l.life, keeperTimeout)
	defer cancel()
	_ = l.client.Expect(ctx, keeper.ExpectRequest{Seccomp: l.profile})
}

// dismiss ends a keeper of another build, whatever protocol it speaks, if nothing lives in it.
func (l *keeperLink) dismiss(ctx context.Context, hello keeper.HelloReply) bool {
	if hello.PID == 0 || hello.Build == l.build || hello.Live > 0 || l.client.Shutdown(ctx) != nil {
		return false
	}
	klog.InfoS("Keeper of another build is replaced, nothing lives in it",
		"keeper", hello.Build, "daemon", l.build, "pid", hello.PID)
	return true
}

// settle gives a keeper that replaced a dead one the descriptors that were kept for it.
func (l *keeperLink) settle(ctx context.Context) error {
	l.mu.Lock()
	files := make(map[string]*keeper.Process, len(l.files))
	for id, f := range l.files {
		files[id] = f
	}
	l.mu.Unlock()
	for id, f := range files {
		if err := l.client.Adopt(ctx, id, f); err != nil {
			// The keeper looks for itself then, and at worst an exit code is lost.
			klog.ErrorS(err, "Keeper could not take over the descriptors of a container", "container", id)
		}
	}
	if err := l.client.Settle(ctx); err != nil {
		return fmt.Errorf("settle keeper: %w", err)
	}
	return nil
}

// sync reads what lives.
func (l *keeperLink) sync(ctx context.Context, watch *keeper.Watch) error {
	stop := context.AfterFunc(ctx, func() { watch.Close() })
	defer stop()
	live := map[string]keeper.WatchLive{}
	var early []*keeper.WatchExit
	for {
		event, files, err := watch.Next()
		if err != nil {
			return err
		}
		switch {
		case event.Live != nil:
			live[event.Live.ID] = *event.Live
			l.hold(event.Live.ID, files)
		case event.Exited != nil:
			early = append(early, event.Exited)
		case event.Synced:
			l.onSync(live)
			for _, e := range early {
				l.onExit(e.ID, &e.Status)
				l.drop(e.ID)
			}
			return nil
		}
	}
}

// hold keeps a second copy of a container's descriptors, for the next keeper should this one die.
func (l *keeperLink) hold(id string, files *keeper.Process) {
	l.mu.Lock()
	old := l.files[id]
	l.files[id] = files
	l.mu.Unlock()
	if old != nil {
		old.Close()
	}
}

// drop lets go of the descriptors of a container that is gone.
func (l *keeperLink) drop(id string) {
	l.mu.Lock()
	old := l.files[id]
	delete(l.files, id)
	l.mu.Unlock()
	if old != nil {
		old.Close()
	}
}

// insert adds what the keeper took the time of to the timeline of the call, and the way there and back.
func insert(ctx context.Context, steps []keeper.Step) {
	if len(steps) == 0 {
		return
	}
	stamped := make([]trace.Stamped, 0, len(steps)+2)
	stamped = append(stamped, trace.Stamped{Name: "request to the keeper", To: steps[0].From})
	for _, s := range steps {
		stamped = append(stamped, trace.Stamped(s))
	}
	trace.Insert(ctx, append(stamped, trace.Stamped{
		Name: "answer of the keeper", From: steps[len(steps)-1].To, To: trace.Monotonic(),
	}))
}

func (l *keeperLink) start(ctx context.Context, req keeper.StartRequest) (keeper.StartReply, error) {
	reply, files, err := l.client.Start(ctx, req)
	if err != nil {
		return reply, err
	}
	insert(ctx, reply.Steps)
	l.hold(req.ID, files)
	return reply, nil
}

func (l *keeperLink) restore(ctx context.Context, req keeper.RestoreRequest) (keeper.StartReply, error) {
	reply, files, err := l.client.Restore(ctx, req)
	if err != nil {
		return reply, err
	}
	insert(ctx, reply.Steps)
	l.hold(req.Start.ID, files)
	return reply, nil
}

func (l *keeperLink) checkpoint(ctx context.Context, req keeper.CheckpointRequest) (*keeper.CheckpointSession, error) {
	return l.client.Checkpoint(ctx, req)
}

// expectAgain is how long the keeper stays ready for a start after it was told to expect one, with some to spare.
const expectAgain = 500 * time.Millisecond

// expect tells the keeper that a start follows soon. It does not wait: it is a matter of speed only, and a keeper that
// cannot be reached is found out about elsewhere.
func (l *keeperLink) expect() {
	now := time.Now().UnixNano()
	last := l.expected.Load()
	if now-last < int64(expectAgain) || !l.expected.CompareAndSwap(last, now) {
		return
	}
	go func() {
		ctx, cancel := background(expectAgain)
		defer cancel()
		_ = l.client.Expect(ctx, keeper.ExpectRequest{})
	}()
}

func (l *keeperLink) podInit(ctx context.Context, req keeper.PodInitRequest) (int, error) {
	reply, files, err := l.client.PodInit(ctx, req)
	if err != nil {
		return 0, err
	}
	insert(ctx, reply.Steps)
	l.hold(req.ID, files)
	return reply.PID, nil
}

func (l *keeperLink) kill(ctx context.Context, req keeper.KillRequest) error {
	return l.client.Kill(ctx, req)
}

func (l *keeperLink) delete(ctx context.Context, req keeper.DeleteRequest) error {
	if err := l.client.Delete(ctx, req); err != nil {
		return err
	}
	l.drop(req.ID)
	return nil
}

func (l *keeperLink) exec(ctx context.Context, req keeper.ExecRequest, stdio [3]*os.File) (*keeper.ExecSession, error) {
	return l.client.Exec(ctx, req, stdio)
}

func (l *keeperLink) attach(
	ctx context.Context, req keeper.AttachRequest, pipes ...*os.File,
) (*keeper.AttachSession, error) {
	return l.client.Attach(ctx, req, pipes...)
}

func (l *keeperLink) closeStdin(ctx context.Context, id string) error {
	return l.client.CloseStdin(ctx, id)
}

func (l *keeperLink) update(ctx context.Context, req keeper.UpdateRequest) error {
	return l.client.Update(ctx, req)
}

func (l *keeperLink) reopen(ctx context.Context, req keeper.ReopenRequest) error {
	return l.client.Reopen(ctx, req)
}

// held names the containers and pod inits that live.
func (l *keeperLink) held() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	ids := make([]string, 0, len(l.files))
	for id := range l.files {
		ids = append(ids, id)
	}
	return ids
}
