// Package operator is the gRPC service that the gantry command speaks with the daemon, beside the CRI and on the same
// socket: pulls with progress, import, export, how long starts took, and what the daemon is. It is not the CRI server
// (package cri) and knows nothing of how images are stored: that it reaches by the interface Images. Its errors are
// kinds of errdefs; the interceptors that package cri gives the gRPC server make gRPC codes of them.
package operator

//go:generate protoc -I. --go_out=paths=source_relative:. --go-grpc_out=paths=source_relative:. operator.proto

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	"github.com/gantry-cri/gantry/trace"
)

// progressPeriod is the least time between two progress messages of a pull.
const progressPeriod = 100 * time.Millisecond

// chunkSize is how much of an archive travels in one message: far below gRPC's 4 MiB limit, large enough to be cheap.
const chunkSize = 256 << 10

// Images is what the service needs of the image store. All methods may be called from several goroutines. Errors
// satisfy errdefs.
type Images interface {
	// Pull fetches an image and returns its id. It calls progress whenever a blob changed. Empty credentials mean those
	// that are configured.
	Pull(
		ctx context.Context, ref string, credentials Credentials, progress func(*BlobProgress),
	) (imageID string, err error)
	// Import reads an archive of images and returns their references.
	Import(ctx context.Context, r io.Reader) (refs []string, err error)
	// Export writes an archive of images.
	Export(ctx context.Context, w io.Writer, refs []string) error
	// Tag gives the image source the name target.
	Tag(ctx context.Context, source, target string) error
	// Pin pins an image, or ends that.
	Pin(ctx context.Context, ref string, pinned bool) error
}

// Credentials are a user name and password for a registry; both empty for none.
type Credentials struct{ Username, Password string }

// Server answers the operator's calls. Wrong requests satisfy errdefs.ErrInvalidArgument, other errors are those of
// Images. It has no state of its own and may be used from several goroutines.
type Server struct {
	UnimplementedOperatorServer
	images Images
	traces *trace.Log
	info   func(context.Context) *InfoResponse
}

// New makes a server. info is asked at every Info call and must answer within ctx.
func New(images Images, traces *trace.Log, info func(context.Context) *InfoResponse) *Server {
	return &Server{images: images, traces: traces, info: info}
}

// Register adds the service to a gRPC server that does not serve yet.
func (s *Server) Register(r grpc.ServiceRegistrar) { RegisterOperatorServer(r, s) }

// Info tells of the daemon.
func (s *Server) Info(ctx context.Context, _ *InfoRequest) (*InfoResponse, error) {
	return s.info(ctx), nil
}

// Trace tells how long each step of a pod's start took.
func (s *Server) Trace(_ context.Context, req *TraceRequest) (*TraceResponse, error) {
	pod, err := s.traces.Find(req.GetPod())
	if err != nil {
		return nil, err
	}
	response := &TraceResponse{Id: pod.ID, Pod: pod.Name}
	for _, c := range pod.Calls {
		call := &TraceCall{
			Method: c.Method, ContainerId: c.Subject.ContainerID, Container: c.Subject.Container,
			Begin: c.Begin.UnixNano(), Duration: int64(c.Took), Error: c.Err, Dropped: int32(c.Dropped),
		}
		for _, s := range c.Steps {
			step := &TraceStep{Name: s.Name, Parent: int32(s.Parent + 1), Start: int64(s.Start), Duration: -1}
			if s.End >= 0 {
				step.Duration = int64(s.End - s.Start)
			}
			call.Steps = append(call.Steps, step)
		}
		response.Calls = append(response.Calls, call)
	}
	return response, nil
}

// Pull fetches an image and sends progress meanwhile.
func (s *Server) Pull(req *PullRequest, stream grpc.ServerStreamingServer[PullProgress]) error {
	if req.GetRef() == "" {
		return fmt.Errorf("ref \"\": expected an image reference: %w", errdefs.ErrInvalidArgument)
	}
	meter := newMeter()
	stop := make(chan struct{})
	sent := make(chan error, 1)
	go func() { sent <- meter.pump(stream, stop) }()

	credentials := Credentials{Username: req.GetUsername(), Password: req.GetPassword()}
	imageID, err := s.images.Pull(stream.Context(), req.GetRef(), credentials, meter.report)
	close(stop)
	if sendErr := <-sent; err == nil {
		err = sendErr
	}
	if err != nil {
		return err
	}
	return stream.Send(&PullProgress{Blobs: meter.take(), ImageId: imageID})
}

// Import stores the images of an archive.
func (s *Server) Import(stream grpc.ClientStreamingServer[ImportChunk, ImportResponse]) error {
	refs, err := s.images.Import(stream.Context(), &chunkReader{stream: stream})
	if err != nil {
		return err
	}
	return stream.SendAndClose(&ImportResponse{Refs: refs})
}

// Export sends an archive of images.
func (s *Server) Export(req *ExportRequest, stream grpc.ServerStreamingServer[ExportChunk]) error {
	if len(req.GetRefs()) == 0 {
		return fmt.Errorf("refs []: expected at least one image reference: %w", errdefs.ErrInvalidArgument)
	}
	return s.images.Export(stream.Context(), chunkWriter{stream}, req.GetRefs())
}

// Tag gives an image one more name.
func (s *Server) Tag(ctx context.Context, req *TagRequest) (*TagResponse, error) {
	if err := s.images.Tag(ctx, req.GetSource(), req.GetTarget()); err != nil {
		return nil, fmt.Errorf("tag %s: %w", req.GetSource(), err)
	}
	return &TagResponse{}, nil
}

// Pin pins an image, or ends that.
func (s *Server) Pin(ctx context.Context, req *PinRequest) (*PinResponse, error) {
	if err := s.images.Pin(ctx, req.GetRef(), req.GetPinned()); err != nil {
		return nil, fmt.Errorf("pin %s: %w", req.GetRef(), err)
	}
	return &PinResponse{}, nil
}

// chunkReader reads the chunks of a client's stream.
type chunkReader struct {
	stream grpc.ClientStreamingServer[ImportChunk, ImportResponse]
	rest   []byte
}

// Read implements io.Reader; it returns io.EOF when the client has closed its side.
func (r *chunkReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		chunk, err := r.stream.Recv()
		if err != nil {
			return 0, err
		}
		r.rest = chunk.GetData()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// chunkWriter writes to a client's stream.
type chunkWriter struct {
	stream grpc.ServerStreamingServer[ExportChunk]
}

// Write implements io.Writer. The bytes are copied: gRPC may look at a message after Send returned.
func (w chunkWriter) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		n := min(len(p), chunkSize)
		if err := w.stream.Send(&ExportChunk{Data: append([]byte(nil), p[:n]...)}); err != nil {
			return written, err
		}
		written += n
		p = p[n:]
	}
	return written, nil
}
