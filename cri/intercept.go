package cri

import (
	"context"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// interceptUnary is around every method with one answer.
func (s *Server) interceptUnary(
	ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler,
) (resp any, err error) {
	method := path.Base(info.FullMethod)
	if starts(method) {
		var end func(error)
		ctx, end = s.trace.Begin(ctx, method)
		defer func() { end(err) }()
	}
	err = s.intercept(ctx, method, func() []any { return identity(req, resp) }, func() error {
		resp, err = handler(ctx, req)
		return err
	})
	return resp, err
}

// interceptStream is around every method whose answer is a stream.
func (s *Server) interceptStream(
	srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler,
) error {
	method := path.Base(info.FullMethod)
	return s.intercept(stream.Context(), method, func() []any { return nil }, func() error {
		return handler(srv, stream)
	})
}

// intercept calls handle if the server is ready, maps its error to a gRPC one and logs the call. keys tells, after the
// call, what it was about.
func (s *Server) intercept(
	ctx context.Context, method string, keys func() []any, handle func() error,
) error {
	start := time.Now()
	err := s.checkReady(method)
	if err == nil {
		err = grpcError(ctx, recovered(method, handle))
	}
	logCall(method, time.Since(start), err, keys)
	return err
}

// checkReady lets Version and Status through always: the kubelet asks them to learn what is wrong.
func (s *Server) checkReady(method string) error {
	if method == "Version" || method == "Status" {
		return nil
	}
	if err := s.ready(); err != nil {
		return status.Errorf(codes.Unavailable, "not ready: %v", err)
	}
	return nil
}

// recovered calls handle and makes an error of a panic. The stack goes to the log, not to the client: the value of a
// panic may hold anything.
func recovered(method string, handle func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			klog.ErrorS(nil, "Panic in a request", "method", method, "panic", p, "stack", string(debug.Stack()))
			err = status.Errorf(codes.Internal, "%s: internal error, see the daemon's log", method)
		}
	}()
	return handle()
}

// logCall writes one line about a call: failures always, but for those that are an ordinary answer; what changes
// something at 2; what only asks, several times a second, at 5.
func logCall(method string, duration time.Duration, err error, keys func() []any) {
	level := klog.Level(2)
	if asks(method) {
		level = 5
	}
	code := status.Code(err)
	if code == codes.NotFound || code == codes.Unimplemented || code == codes.Canceled {
		level = 4
	}
	failed := err != nil && level != 4
	if !failed && !klog.V(level).Enabled() {
		return
	}
	values := append([]any{"method", method, "duration", duration}, keys()...)
	if err == nil {
		klog.V(level).InfoS("Request served", values...)
		return
	}
	values = append(values, "code", code, "err", status.Convert(err).Message())
	if failed {
		klog.InfoS("Request failed", values...)
		return
	}
	klog.V(level).InfoS("Request failed", values...)
}

// starts reports whether a method is part of the start of a pod, whose timeline is kept.
func starts(method string) bool {
	switch method {
	case "RunPodSandbox", "CreateContainer", "StartContainer", "RestorePod":
		return true
	}
	return false
}

// Traced reports whether calls of a method are worth a span: those that change something and come to an end. The others
// come several times a second, or last for as long as the daemon does.
func Traced(method string) bool { return !asks(method) && method != "GetContainerEvents" }

// asks reports whether a method changes nothing of note.
func asks(method string) bool {
	switch method {
	case "Version", "Status", "ExecSync", "ImageFsInfo", "RuntimeConfig", "ListPodSandbox", "Get":
		return true
	}
	return strings.HasSuffix(method, "Status") || strings.HasSuffix(method, "Stats") ||
		strings.HasPrefix(method, "List") || strings.HasPrefix(method, "Stream")
}

// identity returns keys and values for the log that say what a request is about. It takes names and ids only, never a
// whole message: there are passwords in some.
func identity(req, resp any) (values []any) {
	add := func(key, value string) {
		if value != "" {
			values = append(values, key, value)
		}
	}
	if r, ok := req.(*runtime.RunPodSandboxRequest); ok {
		m := r.GetConfig().GetMetadata()
		add("pod", klog.KRef(m.GetNamespace(), m.GetName()).String())
	}
	if r, ok := req.(*runtime.CreateContainerRequest); ok {
		add("name", r.GetConfig().GetMetadata().GetName())
	}
	for _, message := range []any{req, resp} {
		if m, ok := message.(interface{ GetPodSandboxId() string }); ok {
			add("sandbox", m.GetPodSandboxId())
		}
		if m, ok := message.(interface{ GetContainerId() string }); ok {
			add("container", m.GetContainerId())
		}
	}
	if m, ok := req.(interface{ GetImage() *runtime.ImageSpec }); ok {
		add("image", m.GetImage().GetImage())
	}
	return values
}
