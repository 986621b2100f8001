package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"sync"

	"golang.org/x/sys/unix"
)

// Call is one request on the keeper's side. A handler answers it with Reply or by returning an error; it may reply
// several times. Files are closed when the handler returns, unless it took them out.
type Call struct {
	Verb  Verb
	Files []*os.File

	body json.RawMessage
	mu   sync.Mutex // one frame at a time
	conn *net.UnixConn
}

// Decode reads the request message. The error has KindInvalid.
func (c *Call) Decode(v any) error {
	if len(c.body) == 0 {
		return nil
	}
	if err := json.Unmarshal(c.body, v); err != nil {
		return Errorf(KindInvalid, "%s: decode request: %v", c.Verb, err)
	}
	return nil
}

// Reply sends one reply message and duplicates of files. It may be called from several goroutines.
func (c *Call) Reply(v any, files ...*os.File) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("%s: encode reply: %w", c.Verb, err)
	}
	return c.send(Reply{Body: body}, files...)
}

func (c *Call) send(r Reply, files ...*os.File) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Send(c.conn, r, files...)
}

// Handler does one verb. Its context ends when the client closes the connection: the caller has given up. An error
// that is not an *Error is told as KindInternal.
type Handler func(ctx context.Context, call *Call) error

// Listen makes the socket below stateDir, in place of one that a dead keeper left. The caller must hold the lock that
// makes it the only keeper there. Only the owner may connect.
func Listen(stateDir string) (*net.UnixListener, error) {
	path, release, err := socketPath(stateDir)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	defer release()
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("listen: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	l.SetUnlinkOnClose(false) // a successor may have the path by then
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("listen: %w", err)
	}
	return l, nil
}

// Serve answers calls until the listener is closed, each in a goroutine of its own. report is told of panics and of
// errors of accept.
func Serve(l *net.UnixListener, handlers map[Verb]Handler, report func(error)) {
	for {
		conn, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			report(fmt.Errorf("accept: %w", err))
			// Out of descriptors: a call that ends frees some.
			_ = unix.Nanosleep(&unix.Timespec{Nsec: 50e6}, nil)
			continue
		}
		go serveConn(conn, handlers, report)
	}
}

func serveConn(conn *net.UnixConn, handlers map[Verb]Handler, report func(error)) {
	defer conn.Close()
	var request Request
	files, err := Receive(conn, &request)
	if err != nil {
		return // the client went away, or is none
	}
	call := &Call{Verb: request.Verb, Files: files, body: request.Body, conn: conn}
	defer func() { CloseFiles(call.Files) }()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		// The client sends nothing more: this read ends when it closes, or when we do.
		var one [1]byte
		_, _ = conn.Read(one[:])
		cancel()
	}()
	if err := dispatch(ctx, call, handlers, report); err != nil {
		_ = call.send(Reply{Error: asError(err)})
	}
}

func dispatch(ctx context.Context, call *Call, handlers map[Verb]Handler, report func(error)) (err error) {
	defer func() {
		if r := recover(); r != nil {
			report(fmt.Errorf("%s: panic: %v\n%s", call.Verb, r, debug.Stack()))
			err = Errorf(KindInternal, "%s: panic: %v", call.Verb, r)
		}
	}()
	handler := handlers[call.Verb]
	if handler == nil {
		return Errorf(KindInvalid, "verb %q is not known to this keeper", call.Verb)
	}
	return handler(ctx, call)
}

func asError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return &Error{Kind: e.Kind, Message: err.Error()}
	}
	if errors.Is(err, context.Canceled) {
		return Errorf(KindCanceled, "%v", err)
	}
	return Errorf(KindInternal, "%v", err)
}
