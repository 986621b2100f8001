package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
)

// The directory of the keeper below the state directory, and the names in it.
const (
	dirName    = "keeper"
	socketName = "keeper.sock"
)

// Dir returns the keeper's directory below a state directory.
func Dir(stateDir string) string { return filepath.Join(stateDir, dirName) }

// EndsFile returns where keepers and their reapers note how processes ended, below a state directory.
func EndsFile(stateDir string) string { return filepath.Join(Dir(stateDir), "ends") }

// Client speaks to the keeper of one state directory. Every call has a connection of its own, so a Client has no state,
// is safe for concurrent use, and outlives keepers: after a respawn the next call reaches the new one.
//
// Errors: what the keeper answers is an *Error (see Kind). A keeper that cannot be reached or dies during the call
// gives errdefs.ErrUnavailable. When ctx ends the connection is closed, which the keeper takes as the caller giving up,
// and the error is ctx's.
type Client struct {
	stateDir string
}

// New returns a client of the keeper below stateDir. It does not connect.
func New(stateDir string) *Client { return &Client{stateDir: stateDir} }

func (c *Client) dial(ctx context.Context) (*net.UnixConn, error) {
	path, release, err := socketPath(c.stateDir)
	if err != nil {
		return nil, fmt.Errorf("dial keeper: %w: %w", err, errdefs.ErrUnavailable)
	}
	defer release()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("dial keeper: %w", ctx.Err())
		}
		return nil, fmt.Errorf("dial keeper: %w: %w", err, errdefs.ErrUnavailable)
	}
	return conn.(*net.UnixConn), nil
}

// socketPath returns an address of the socket that fits into sockaddr_un, and what to call when it was used.
func socketPath(stateDir string) (path string, release func(), err error) {
	path = filepath.Join(Dir(stateDir), socketName)
	if len(path) < 108 {
		return path, func() {}, nil
	}
	dir, err := os.Open(Dir(stateDir))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName), func() { _ = dir.Close() }, nil
}

// exchange is one connection with a request sent.
type exchange struct {
	conn *net.UnixConn
	verb Verb
}

func (c *Client) open(ctx context.Context, verb Verb, request any, files ...*os.File) (*exchange, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return nil, fmt.Errorf("%s: encode request: %w", verb, err)
	}
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", verb, err)
	}
	x := &exchange{conn: conn, verb: verb}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := Send(conn, Request{Verb: verb, Body: body}, files...); err != nil {
		_ = conn.Close()
		return nil, x.failure(ctx, err)
	}
	return x, nil
}

// receive reads one reply into reply.
func (x *exchange) receive(ctx context.Context, reply any) ([]*os.File, error) {
	stop := context.AfterFunc(ctx, func() { _ = x.conn.Close() })
	defer stop()
	var r Reply
	files, err := Receive(x.conn, &r)
	if err != nil {
		return nil, x.failure(ctx, err)
	}
	if r.Error != nil {
		CloseFiles(files)
		return nil, r.Error
	}
	if reply != nil && len(r.Body) > 0 {
		if err := json.Unmarshal(r.Body, reply); err != nil {
			CloseFiles(files)
			return nil, fmt.Errorf("%s: decode reply: %w", x.verb, err)
		}
	}
	return files, nil
}

func (x *exchange) failure(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", x.verb, ctx.Err())
	}
	var nerr net.Error
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.As(err, &nerr) {
		return fmt.Errorf("%s: %w: %w", x.verb, err, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("%s: %w", x.verb, err)
}

// call is a request with one reply.
func (c *Client) call(ctx context.Context, verb Verb, request, reply any, files ...*os.File) ([]*os.File, error) {
	x, err := c.open(ctx, verb, request, files...)
	if err != nil {
		return nil, err
	}
	defer x.conn.Close()
	return x.receive(ctx, reply)
}

// plain is a call whose reply is empty.
func (c *Client) plain(ctx context.Context, verb Verb, request any, files ...*os.File) error {
	got, err := c.call(ctx, verb, request, nil, files...)
	CloseFiles(got)
	return err
}

// Hello asks the keeper who it is. It compares nothing: see Connect.
func (c *Client) Hello(ctx context.Context, build string) (HelloReply, error) {
	var reply HelloReply
	got, err := c.call(ctx, VerbHello, HelloRequest{Protocol: ProtocolVersion, Build: build}, &reply)
	CloseFiles(got)
	return reply, err
}

// Process holds the descriptors of a live container or pod init that the daemon keeps for the keeper: when the keeper
// dies they preserve the exit code (PIDFD), the terminal (Master), and what was written but not yet read (Output).
type Process struct {
	PIDFD  *os.File
	Master *os.File
	Output []*os.File
}

// Close closes all of them.
func (p *Process) Close() {
	CloseFiles(append([]*os.File{p.PIDFD, p.Master}, p.Output...))
}

// newProcess sorts the descriptors of a reply; the order is that of StartReply.
func newProcess(files []*os.File, terminal bool) (*Process, error) {
	p := &Process{}
	if len(files) == 0 {
		return nil, errors.New("reply carries no pidfd")
	}
	p.PIDFD, files = files[0], files[1:]
	if terminal && len(files) > 0 {
		p.Master, files = files[0], files[1:]
	}
	p.Output = files
	return p, nil
}

// Start creates a container and starts its process. The caller owns the Process.
//
// Errors: ErrStart when the process could not be started, errdefs.ErrFailedPrecondition when the id exists,
// errdefs.ErrInvalidArgument.
func (c *Client) Start(ctx context.Context, request StartRequest) (StartReply, *Process, error) {
	return c.start(ctx, VerbStart, request)
}

// PodInit starts the init of a shared PID namespace. Errors and ownership are as of Start.
func (c *Client) PodInit(ctx context.Context, request PodInitRequest) (StartReply, *Process, error) {
	return c.start(ctx, VerbPodInit, request)
}

func (c *Client) start(ctx context.Context, verb Verb, request any) (StartReply, *Process, error) {
	var reply StartReply
	files, err := c.call(ctx, verb, request, &reply)
	if err != nil {
		return reply, nil, err
	}
	p, err := newProcess(files, reply.Terminal)
	if err != nil {
		return reply, nil, fmt.Errorf("%s: %w", verb, err)
	}
	return reply, p, nil
}

// Kill sends a signal. A container that has exited is no error; one that is not known is errdefs.ErrNotFound.
func (c *Client) Kill(ctx context.Context, request KillRequest) error {
	return c.plain(ctx, VerbKill, request)
}

// Delete removes what is left of a container or pod init. It is idempotent and safe on ids that never were.
func (c *Client) Delete(ctx context.Context, request DeleteRequest) error {
	return c.plain(ctx, VerbDelete, request)
}

// Update changes the limits of a running container. On error they are as before.
func (c *Client) Update(ctx context.Context, request UpdateRequest) error {
	return c.plain(ctx, VerbUpdate, request)
}

// Expect tells the keeper that a start follows, so that it can make ready.
func (c *Client) Expect(ctx context.Context, request ExpectRequest) error {
	return c.plain(ctx, VerbExpect, request)
}

// Reopen makes the keeper open the container's log anew.
func (c *Client) Reopen(ctx context.Context, request ReopenRequest) error {
	return c.plain(ctx, VerbReopen, request)
}

// CloseStdin ends the standard input of a container that was started with StdinOnce.
func (c *Client) CloseStdin(ctx context.Context, id string) error {
	return c.plain(ctx, VerbCloseStdin, CloseStdinRequest{ID: id})
}

// Adopt hands a new keeper the descriptors that the daemon kept of a container. They stay the caller's.
func (c *Client) Adopt(ctx context.Context, id string, p *Process) error {
	files := []*os.File{p.PIDFD}
	if p.Master != nil {
		files = append(files, p.Master)
	}
	return c.plain(ctx, VerbAdopt, AdoptRequest{ID: id, Terminal: p.Master != nil}, files...)
}

// Settle ends the adoption: the keeper calls lost what it knows nothing of.
func (c *Client) Settle(ctx context.Context) error { return c.plain(ctx, VerbSettle, SettleRequest{}) }

// Shutdown asks the keeper to exit. While something lives the error is errdefs.ErrFailedPrecondition.
func (c *Client) Shutdown(ctx context.Context) error {
	return c.plain(ctx, VerbShutdown, ShutdownRequest{})
}

// ExecSession is one process that runs in a container by Exec. Its methods may be called from several goroutines, but
// Wait only once.
type ExecSession struct {
	// PID is the process id on the host.
	PID int
	// Master is the terminal, or nil. The caller owns it.
	Master *os.File

	x *exchange
}

// Exec runs one more process in a container. stdio (stdin, stdout, stderr) is used when request.Terminal is false; nil
// entries are /dev/null. The files stay the caller's, which closes its copies after Exec returned, so that pipes end.
// ctx bounds the start only.
//
// Errors: ErrStart when the command could not be run, errdefs.ErrNotFound, errdefs.ErrFailedPrecondition when the
// container does not run.
func (c *Client) Exec(ctx context.Context, request ExecRequest, stdio [3]*os.File) (*ExecSession, error) {
	var files []*os.File
	if !request.Terminal {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("exec: %w", err)
		}
		defer null.Close()
		for _, f := range stdio {
			if f == nil {
				f = null
			}
			files = append(files, f)
		}
	}
	x, err := c.open(ctx, VerbExec, request, files...)
	if err != nil {
		return nil, err
	}
	var started ExecStarted
	got, err := x.receive(ctx, &started)
	if err != nil {
		_ = x.conn.Close()
		return nil, err
	}
	s := &ExecSession{PID: started.PID, x: x}
	if len(got) > 0 {
		s.Master = got[0]
		CloseFiles(got[1:])
	}
	return s, nil
}

// Wait returns the exit code, 128+n for signal n. When ctx ends first the process and everything that it started are
// killed, and are gone when Wait returns ctx's error.
func (s *ExecSession) Wait(ctx context.Context) (int32, error) {
	defer s.x.conn.Close()
	// Closing one direction is how the keeper hears that it is to kill; it answers when that is done.
	stop := context.AfterFunc(ctx, func() {
		_ = s.x.conn.SetReadDeadline(time.Now().Add(execKillTimeout))
		_ = s.x.conn.CloseWrite()
	})
	defer stop()
	var exited ExecExited
	got, err := s.x.receive(context.Background(), &exited)
	CloseFiles(got)
	if ctx.Err() != nil {
		return 0, fmt.Errorf("%s: %w", s.x.verb, ctx.Err())
	}
	return exited.ExitCode, err
}

// execKillTimeout is how long is waited for an exec to be dead that ran out of time: it may hang in the kernel.
const execKillTimeout = 5 * time.Second

// Close kills the process and everything that it started, unless it has exited. It does not close Master. It may be
// called more than once and during Wait.
func (s *ExecSession) Close() { _ = s.x.conn.Close() }

// AttachSession is a client's connection to the streams of a container by Attach. Its methods may be called from
// several goroutines, but Wait only once.
type AttachSession struct {
	// Input is the write end of the container's input, or the master of its terminal; nil if neither was to be had. The
	// caller owns it. It serves on after the session has ended.
	Input *os.File
	// Terminal says that Input is a terminal.
	Terminal bool

	x *exchange
}

// Attach connects to a container's streams; pipes are those that AttachRequest says, and stay the caller's, which
// closes its copies after Attach returned, so that they end. ctx bounds the start only.
//
// Errors: errdefs.ErrNotFound, errdefs.ErrFailedPrecondition when the container does not run or has no input (any
// more), errdefs.ErrNotImplemented when the keeper is of a build that has no attach.
func (c *Client) Attach(ctx context.Context, request AttachRequest, pipes ...*os.File) (*AttachSession, error) {
	x, err := c.open(ctx, VerbAttach, request, pipes...)
	if err != nil {
		return nil, err
	}
	var started AttachStarted
	got, err := x.receive(ctx, &started)
	if err != nil {
		_ = x.conn.Close()
		if errors.Is(err, errdefs.ErrInvalidArgument) {
			return nil, fmt.Errorf("the keeper is of an older build that cannot attach; it is replaced once no container "+
				"lives: %w", errdefs.ErrNotImplemented)
		}
		return nil, err
	}
	s := &AttachSession{Terminal: started.Terminal, x: x}
	if len(got) > 0 {
		s.Input = got[0]
		CloseFiles(got[1:])
	}
	return s, nil
}

// Wait returns nil when the container has exited and all that it wrote is in the pipes. The error is
// errdefs.ErrFailedPrecondition when the client was cut off for being too slow, errdefs.ErrUnavailable when the keeper
// died: the next one takes a new Attach.
func (s *AttachSession) Wait(ctx context.Context) error {
	defer s.x.conn.Close()
	got, err := s.x.receive(ctx, nil)
	CloseFiles(got)
	return err
}

// Close ends the session. It does not close Input. It may be called more than once and during Wait.
func (s *AttachSession) Close() { _ = s.x.conn.Close() }

// older makes of the error with which an older keeper refuses a verb that it does not know one that says so.
func older(err error) error {
	if !errors.Is(err, errdefs.ErrInvalidArgument) {
		return err
	}
	return fmt.Errorf("the keeper may be of an older build that cannot do this; it is replaced once no container "+
		"lives: %v: %w", err, errdefs.ErrNotImplemented)
}

// resumeTimeout is how long is waited for containers to be resumed after a checkpoint: longer than the keeper gives
// CRIU to let go of them.
const resumeTimeout = 30 * time.Second

// CheckpointSession is containers that are captured and frozen. Its methods are for one goroutine.
type CheckpointSession struct {
	x *exchange
}

// Checkpoint captures containers and returns while they are frozen; Resume must be called. When ctx ends, and on any
// other error, they are resumed when it returns.
//
// Errors: errdefs.ErrNotFound, errdefs.ErrFailedPrecondition when a container does not run, cannot be captured at all,
// or CRIU is not installed; errdefs.ErrInternal with what CRIU said; errdefs.ErrNotImplemented when the keeper is of a
// build that cannot do it.
func (c *Client) Checkpoint(ctx context.Context, request CheckpointRequest) (*CheckpointSession, error) {
	x, err := c.open(ctx, VerbCheckpoint, request)
	if err != nil {
		return nil, err
	}
	s := &CheckpointSession{x: x}
	// Closing one direction is how the keeper hears that it is to give up; it answers when the containers run again.
	stop := context.AfterFunc(ctx, func() {
		_ = x.conn.SetReadDeadline(time.Now().Add(resumeTimeout))
		_ = x.conn.CloseWrite()
	})
	got, err := x.receive(context.Background(), &CheckpointCaptured{})
	CloseFiles(got)
	if err == nil && !stop() {
		_, err = s.Resume()
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("%s: %w", x.verb, ctx.Err())
	}
	if err != nil {
		_ = x.conn.Close()
		return nil, older(err)
	}
	return s, nil
}

// Resume lets the containers go on and returns how long they were frozen. It may be called once.
func (s *CheckpointSession) Resume() (frozen time.Duration, err error) {
	defer s.x.conn.Close()
	_ = s.x.conn.SetReadDeadline(time.Now().Add(resumeTimeout))
	_ = s.x.conn.CloseWrite()
	var resumed CheckpointResumed
	got, err := s.x.receive(context.Background(), &resumed)
	CloseFiles(got)
	return resumed.Frozen, err
}

// Restore creates a container and resumes its process from a checkpoint. Errors and ownership are as of Start, and
// errdefs.ErrNotImplemented when the keeper is of a build that cannot do it.
func (c *Client) Restore(ctx context.Context, request RestoreRequest) (StartReply, *Process, error) {
	reply, p, err := c.start(ctx, VerbRestore, request)
	return reply, p, older(err)
}

// Watch is a stream of events.
type Watch struct {
	x *exchange
}

// Watch asks for all live processes and then every exit; see WatchEvent. ctx bounds the whole watch.
func (c *Client) Watch(ctx context.Context) (*Watch, error) {
	x, err := c.open(ctx, VerbWatch, WatchRequest{})
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { _ = x.conn.Close() })
	return &Watch{x: x}, nil
}

// Next returns the next event; for a Live event with the process's descriptors, which the caller owns. After an error,
// which is errdefs.ErrUnavailable when the keeper died or dropped a watcher that was too slow, truth is in the status
// files, and a new watch is needed.
func (w *Watch) Next() (WatchEvent, *Process, error) {
	var event WatchEvent
	files, err := w.x.receive(context.Background(), &event)
	if err != nil {
		return event, nil, err
	}
	if event.Live == nil {
		CloseFiles(files)
		return event, nil, nil
	}
	p, err := newProcess(files, event.Live.Terminal)
	if err != nil {
		return event, nil, fmt.Errorf("watch: %w", err)
	}
	return event, p, nil
}

// Close ends the watch.
func (w *Watch) Close() { _ = w.x.conn.Close() }

// deadline gives a ctx without a deadline one.
func deadline(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, d)
}
