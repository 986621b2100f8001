package cri

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"
)

const (
	// headerTimeout is how long a client of the streaming server may take to send the header of its request.
	headerTimeout = 30 * time.Second
	// streamCreationTimeout is how long it may then take to open its streams.
	streamCreationTimeout = 30 * time.Second
	// DefaultStreamIdleTimeout is how long a connection may be without any traffic.
	DefaultStreamIdleTimeout = 4 * time.Hour
)

// The paths of the streaming server; a token follows.
const (
	pathExec        = "exec"
	pathAttach      = "attach"
	pathPortForward = "portforward"
)

// serveStreams starts to serve streams on listener, with TLS if there is a configuration for it.
func (s *Server) serveStreams(listener net.Listener, config *tls.Config) {
	s.streamBase = "http://" + listener.Addr().String()
	if config != nil {
		s.streamBase = "https://" + listener.Addr().String()
		listener = tls.NewListener(listener, config)
	}
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.serveStream),
		ReadHeaderTimeout: headerTimeout,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return c.(*streamConn).open(ctx)
		},
	}
	go func() {
		if err := s.http.Serve(streamListener{listener}); !errors.Is(err, http.ErrServerClosed) {
			klog.ErrorS(err, "Serving streams ended")
		}
	}()
}

// streamAddress keeps a request until its client comes, and returns where it should.
func (s *Server) streamAddress(path string, req proto.Message) (string, error) {
	token, err := s.tokens.issue(path, req)
	if err != nil {
		return "", err
	}
	return s.streamBase + "/" + path + "/" + token, nil
}

// serveStream serves the client that comes with a token: by SPDY or by WebSocket, as it asks.
func (s *Server) serveStream(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		http.Error(w, "method is "+r.Method+", expected GET or POST", http.StatusMethodNotAllowed)
		return
	}
	path, token, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch req := s.tokens.redeem(path, token).(type) {
	case *runtime.ExecRequest:
		s.serveProcess(w, r, req)
	case *runtime.AttachRequest:
		s.serveProcess(w, r, req)
	case *runtime.PortForwardRequest:
		s.servePortForward(w, r, req)
	default:
		http.NotFound(w, r)
	}
}

// serveProcess serves an exec or an attach.
func (s *Server) serveProcess(w http.ResponseWriter, r *http.Request, req streamsRequest) {
	if asksForV5(r) {
		s.serveV5(w, r, req)
		return
	}
	options := &remotecommand.Options{
		Stdin: req.GetStdin(), Stdout: req.GetStdout(), Stderr: req.GetStderr(), TTY: req.GetTty(),
	}
	client, protocols := streamClient{s, req}, remotecommand.SupportedStreamingProtocols
	if exec, ok := req.(*runtime.ExecRequest); ok {
		remotecommand.ServeExec(w, r, client, "", "", exec.ContainerId, exec.Cmd, options,
			s.streamIdle, streamCreationTimeout, protocols)
		return
	}
	remotecommand.ServeAttach(w, r, client, "", "", req.GetContainerId(), options,
		s.streamIdle, streamCreationTimeout, protocols)
}

// servePortForward serves connections to ports.
func (s *Server) servePortForward(w http.ResponseWriter, r *http.Request, req *runtime.PortForwardRequest) {
	serve := func(w http.ResponseWriter, r *http.Request) {
		portforward.ServePortForward(w, r, streamClient{server: s}, req.PodSandboxId, "",
			&portforward.V4Options{Ports: req.Port}, s.streamIdle, streamCreationTimeout, portforward.SupportedProtocols)
	}
	if protocol := tunnelProtocol(r); protocol != "" {
		serveTunnel(w, r, protocol, serve)
		return
	}
	serve(w, r)
}

// streamClient is what the streaming library calls when a client has opened its streams.
type streamClient struct {
	server *Server
	req    streamsRequest
}

// ExecInContainer implements remotecommand.Executor.
func (c streamClient) ExecInContainer(
	ctx context.Context, _, _, _ string, _ []string, in io.Reader, out, errOut io.WriteCloser, _ bool,
	resize <-chan remotecommand.TerminalSize, _ time.Duration,
) error {
	return c.server.runStreams(ctx, c.req, clientStreams{in, out, errOut, resize})
}

// AttachContainer implements remotecommand.Attacher.
func (c streamClient) AttachContainer(
	ctx context.Context, _, _, _ string, in io.Reader, out, errOut io.WriteCloser, _ bool,
	resize <-chan remotecommand.TerminalSize,
) error {
	return c.server.runStreams(ctx, c.req, clientStreams{in, out, errOut, resize})
}

// streamListener makes connections that tell when they end.
type streamListener struct{ net.Listener }

// Accept implements net.Listener.
func (l streamListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &streamConn{Conn: c, cancel: func() {}}, nil
}

// streamConn is a connection whose context ends with it. net/http stops watching a connection that was taken over for
// streams, so without this a command whose client is gone would run on for nobody.
type streamConn struct {
	net.Conn

	mu     sync.Mutex
	cancel context.CancelFunc // guarded by mu
}

// open returns a context that ends when the connection is closed by either side.
func (c *streamConn) open(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cancel = cancel
	return ctx
}

// Read implements net.Conn. net/http ends a read of its own by a deadline when it hands the connection over; that is
// not the end.
func (c *streamConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.end()
	}
	return n, err
}

// Close implements net.Conn.
func (c *streamConn) Close() error {
	c.end()
	return c.Conn.Close()
}

func (c *streamConn) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cancel()
}
