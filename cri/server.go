// Package cri is the Kubernetes face of Gantry: the gRPC services RuntimeService and ImageService of the CRI, version
// v1, and the HTTP server for the streams of exec, attach and port-forward. It checks a request, finds what the request
// names, calls, and translates the answer. CRI messages come in and CRI messages go out.
//
// It is not where sandboxes, containers or images live: it keeps no state, writes no files and decides nothing about
// the life of a thing. Those it reaches by the interfaces Runtime, Images and Network.
package cri

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/trace"
)

// maxMessageSize is the largest gRPC message in either direction, in bytes: what the kubelet's client takes.
const maxMessageSize = 16 << 20

// DefaultStreamAddress is where the streaming server listens: any free port on loopback. Only the kubelet and crictl on
// the same node follow its addresses, so nothing outside needs to reach it.
const DefaultStreamAddress = "127.0.0.1:0"

// Config is what a Server is made of. To add a field: give it a zero value that is a sane default, or check it in New.
type Config struct {
	// Runtime, Images, Network and Stats do the work; all are required.
	Runtime Runtime
	Images  Images
	Network Network
	Stats   Stats

	// RuntimeVersion is the version of Gantry, a semantic version; the kubelet refuses one that is not.
	RuntimeVersion string
	// Handlers are the names of the runtime handlers besides the default one, whose name is "".
	Handlers []string
	// UserNamespaces says that sandboxes can have user namespaces of their own.
	UserNamespaces bool
	// Trace keeps the timelines of the calls that start pods; nil keeps none.
	Trace *trace.Log
	// Ready returns why the daemon cannot serve yet or any more, or nil. While it returns an error all methods but
	// Version and Status answer Unavailable. Nil means always ready. It is called for each request and must not wait.
	Ready func() error
	// Info is shown as JSON below the key "config" in a verbose Status. It should have the key stateDir, by which
	// critest finds the disk of the containers.
	Info map[string]any
	// StreamAddress is the host:port of the streaming server; empty means DefaultStreamAddress.
	StreamAddress string
	// StreamTLS makes the streaming server speak TLS; nil means that it does not.
	StreamTLS *tls.Config
	// StreamIdleTimeout is how long a connection may be without any traffic; 0 means DefaultStreamIdleTimeout.
	StreamIdleTimeout time.Duration
}

// Server serves the CRI. Its methods may be called from several goroutines, as gRPC does.
type Server struct {
	runtime.UnimplementedRuntimeServiceServer
	runtime.UnimplementedImageServiceServer

	runtime Runtime
	images  Images
	network Network
	stats   Stats

	// ending is done when streams that have no end of their own have to end.
	ending context.Context
	end    context.CancelFunc

	version  string
	handlers []*runtime.RuntimeHandler
	ready    func() error
	trace    *trace.Log
	info     map[string]any

	// sandboxForms and containerForms are of the items of lists.
	sandboxForms   forms[sandbox.SandboxStatus]
	containerForms forms[sandbox.ContainerStatus]

	// tokens are the requests for streams, streamBase is where their clients come.
	tokens     streamTokens
	streamBase string
	streamIdle time.Duration
	http       *http.Server
}

// New makes a Server and starts its streaming server. It does not serve gRPC: register it with Register in a
// grpc.Server made with ServerOptions. Close stops the streaming server.
func New(config Config) (*Server, error) {
	if config.Runtime == nil || config.Images == nil || config.Network == nil || config.Stats == nil {
		return nil, errors.New("make cri server: Runtime, Images, Network and Stats are required")
	}
	if config.StreamAddress == "" {
		config.StreamAddress = DefaultStreamAddress
	}
	s := &Server{
		runtime:  config.Runtime,
		images:   config.Images,
		network:  config.Network,
		stats:    config.Stats,
		version:  config.RuntimeVersion,
		handlers: runtimeHandlers(config.Handlers, config.UserNamespaces),
		ready:    config.Ready,
		trace:    config.Trace,
		info:     config.Info,
	}
	s.ending, s.end = context.WithCancel(context.Background())
	if s.ready == nil {
		s.ready = func() error { return nil }
	}
	listener, err := net.Listen("tcp", config.StreamAddress)
	if err != nil {
		return nil, fmt.Errorf("listen for streams: %w", err)
	}
	s.serveStreams(listener, config.StreamTLS)
	return s, nil
}

// ServerOptions are the options that a grpc.Server needs for the CRI: the message size and the interceptors, which log,
// recover from panics, check readiness and map errors. The interceptors suit other services on the same server too.
func (s *Server) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessageSize),
		grpc.MaxSendMsgSize(maxMessageSize),
		grpc.ChainUnaryInterceptor(s.interceptUnary),
		grpc.ChainStreamInterceptor(s.interceptStream),
	}
}

// Register adds both services of the CRI to g.
func (s *Server) Register(g *grpc.Server) {
	runtime.RegisterRuntimeServiceServer(g, s)
	runtime.RegisterImageServiceServer(g, s)
}

// EndEvents ends the streams of events, which would keep the gRPC server from stopping gracefully.
func (s *Server) EndEvents() { s.end() }

// Close stops the streaming server from taking connections. Streams that are open end with the process.
func (s *Server) Close() error { return s.http.Close() }
