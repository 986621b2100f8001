package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	goruntime "runtime"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/sandbox"
)

const (
	maxPort = 65535
	// dialTimeout bounds a connection attempt to a port of a sandbox, which is on this node.
	dialTimeout = 10 * time.Second
	// halfOpenTimeout is how long a forwarded connection of which one side has said that it is done may be idle.
	halfOpenTimeout = 5 * time.Minute
)

// PortForward implements portforward.PortForwarder: it connects stream with a port of a sandbox until both sides are
// done.
//
// An error returned from here is sent to the client, which then gives up all connections that it forwards. So only a
// connection that cannot be made is one; a connection that breaks off has its stream reset and no more.
func (c streamClient) PortForward(
	ctx context.Context, sandboxID, _ string, port int32, stream io.ReadWriteCloser,
) error {
	return recovered("PortForward", func() error {
		status, err := c.server.readySandbox(sandboxID)
		if err != nil {
			return err
		}
		conn, err := dialSandbox(ctx, status, port)
		if err != nil {
			return fmt.Errorf("connect to port %d of sandbox %s: %w", port, status.ID, err)
		}
		defer conn.Close()
		if err := splice(conn, stream, halfOpenTimeout); err != nil {
			klog.V(3).InfoS("Forwarded connection broke off", "sandbox", status.ID, "port", port, "err", err)
			if s, ok := stream.(interface{ Reset() error }); ok {
				// What the client still sends must find no reader that has gone: it would hold up all its connections.
				_ = s.Reset()
			}
		}
		return nil
	})
}

// Why splice ends before both sides are done.
var (
	errStreamReset = errors.New("the client has reset the stream")
	errIdle        = errors.New("half-open and idle for too long")
)

// splice copies both ways between conn and stream. The end of what one side sends is passed on and the other direction
// goes on, until it ends too or nothing has moved for idle. The caller closes conn, which ends what is left.
func splice(conn *net.TCPConn, stream io.ReadWriteCloser, idle time.Duration) error {
	var moved atomic.Int64
	up, down := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := io.Copy(countWriter{conn, &moved}, stream)
		up <- errors.Join(err, ignoreNotConnected(conn.CloseWrite()))
	}()
	go func() {
		_, err := io.Copy(countWriter{stream, &moved}, conn)
		down <- err
		stream.Close()
	}()
	select {
	case err := <-up:
		if err != nil {
			return err
		}
		return waitHalfOpen(down, func() bool { return isFinished(stream) }, &moved, idle)
	case err := <-down:
		if err != nil {
			return err
		}
		return waitHalfOpen(up, func() bool { return false }, &moved, idle)
	}
}

// waitHalfOpen waits for the second direction to be done, for reset to be true, or for moved to stand still for idle.
func waitHalfOpen(done <-chan error, reset func() bool, moved *atomic.Int64, idle time.Duration) error {
	interval := min(idle, time.Second)
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	seen, still := moved.Load(), time.Duration(0)
	for {
		select {
		case err := <-done:
			return err
		case <-ticker.C:
		}
		if reset() {
			return errStreamReset
		}
		now := moved.Load()
		if now != seen {
			seen, still = now, 0
			continue
		}
		if still += interval; still >= idle {
			return errIdle
		}
	}
}

// isFinished reports whether nothing can be written to stream any more. For one that has given its end but that this
// side has not closed it means that the client has reset it: its end alone may also mean that the client only reads on.
func isFinished(stream io.Writer) bool {
	s, ok := stream.(interface{ IsFinished() bool })
	return ok && s.IsFinished()
}

// countWriter counts what is written.
type countWriter struct {
	io.Writer
	n *atomic.Int64
}

// Write implements io.Writer.
func (w countWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.n.Add(int64(n))
	return n, err
}

// ignoreNotConnected drops the error of a CloseWrite on a connection that the peer has reset or closed already.
func ignoreNotConnected(err error) error {
	if errors.Is(err, unix.ENOTCONN) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// dialSandbox connects to a port of localhost in the sandbox's network namespace, by IPv4 or else by IPv6.
func dialSandbox(ctx context.Context, status *sandbox.SandboxStatus, port int32) (*net.TCPConn, error) {
	if port < 1 || port > maxPort {
		return nil, invalidf("port is %d, expected 1 to %d", port, maxPort)
	}
	if status.HostNetwork() {
		return dialLocalhost(ctx, port)
	}
	if status.NetNS == "" {
		return nil, errors.New("the sandbox has no network namespace")
	}
	type result struct {
		conn *net.TCPConn
		err  error
	}
	results := make(chan result, 1)
	go func() {
		var res result
		err := inNamespace(status.NetNS, func() { res.conn, res.err = dialLocalhost(ctx, port) })
		if err != nil {
			res.err = err
		}
		results <- res
	}()
	res := <-results
	return res.conn, res.err
}

// dialLocalhost connects from the calling thread's network namespace. The addresses are literal, so that the socket is
// made by the calling goroutine: with a name the resolver would start others.
func dialLocalhost(ctx context.Context, port int32) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var errs []error
	for _, host := range []string{"127.0.0.1", "::1"} {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			return conn.(*net.TCPConn), nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// inNamespace calls f on a thread that is in the network namespace at path. It must be the last thing that its
// goroutine does: a thread that cannot go back stays locked and ends with the goroutine.
func inNamespace(path string, f func()) error {
	goruntime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		goruntime.UnlockOSThread()
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer home.Close()
	target, err := os.Open(path)
	if err != nil {
		goruntime.UnlockOSThread()
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer target.Close()
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
		goruntime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	f()
	if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err == nil {
		goruntime.UnlockOSThread()
	}
	return nil
}
