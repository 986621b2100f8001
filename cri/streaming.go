package cri

import (
	"context"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/gantry-cri/gantry/sandbox"
)

// Exec returns an address, good for one use within a minute, at which to run a command with streams.
func (s *Server) Exec(_ context.Context, req *runtime.ExecRequest) (*runtime.ExecResponse, error) {
	if len(req.GetCmd()) == 0 {
		return nil, invalidf("cmd is empty, expected a command")
	}
	if err := checkStreams(req); err != nil {
		return nil, err
	}
	container, err := s.runningContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	// The id may have been a prefix, which need not be unique any more when the client connects.
	req = proto.CloneOf(req)
	req.ContainerId = container.ID
	address, err := s.streamAddress(pathExec, req)
	return &runtime.ExecResponse{Url: address}, err
}

// Attach returns an address, good for one use within a minute, at which to connect to a container's streams.
func (s *Server) Attach(_ context.Context, req *runtime.AttachRequest) (*runtime.AttachResponse, error) {
	if err := checkStreams(req); err != nil {
		return nil, err
	}
	container, err := s.runningContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := container.CanAttach(req.GetTty(), req.GetStdin()); err != nil {
		return nil, fmt.Errorf("attach to container %s: %w", container.ID, err)
	}
	req = proto.CloneOf(req)
	req.ContainerId = container.ID
	address, err := s.streamAddress(pathAttach, req)
	return &runtime.AttachResponse{Url: address}, err
}

// PortForward returns an address, good for one use within a minute, at which to connect to ports of a sandbox.
func (s *Server) PortForward(
	_ context.Context, req *runtime.PortForwardRequest,
) (*runtime.PortForwardResponse, error) {
	found, err := s.readySandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	for i, port := range req.GetPort() {
		if port < 1 || port > maxPort {
			return nil, invalidf("port[%d] is %d, expected 1 to %d", i, port, maxPort)
		}
	}
	req = proto.CloneOf(req)
	req.PodSandboxId = found.ID
	address, err := s.streamAddress(pathPortForward, req)
	return &runtime.PortForwardResponse{Url: address}, err
}

// streamsRequest is what the requests for an exec and an attach have in common.
type streamsRequest interface {
	GetContainerId() string
	GetTty() bool
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
}

// checkStreams returns an error if the streams that a request names do not go together.
func checkStreams(req streamsRequest) error {
	if err := required("container_id", req.GetContainerId()); err != nil {
		return err
	}
	if req.GetTty() && req.GetStderr() {
		return invalidf("tty and stderr are true, expected one: a terminal has one output")
	}
	if !req.GetStdin() && !req.GetStdout() && !req.GetStderr() {
		return invalidf("stdin, stdout and stderr are false, expected one to be true")
	}
	return nil
}

// clientStreams are the client's ends of the streams of an exec or an attach. Those that it did not ask for may be nil
// or of no use.
type clientStreams struct {
	in          io.Reader
	out, errOut io.Writer
	resize      <-chan remotecommand.TerminalSize
}

// wanted leaves only the streams that were asked for. For a WebSocket the library makes all of them, and an input that
// ends at once is not the same as none.
func (c clientStreams) wanted(req streamsRequest) clientStreams {
	if !req.GetStdin() {
		c.in = nil
	}
	if !req.GetStdout() {
		c.out = nil
	}
	if !req.GetStderr() {
		c.errOut = nil
	}
	if !req.GetTty() {
		c.resize = nil
	}
	return c
}

// runStreams serves an exec or an attach to a client that has connected. It runs in a goroutine of net/http, so panics
// end here.
//
// An exec ends when its command exits or the client is gone; then the command and everything that it started is killed:
// a terminal that is closed leaves no shell behind, and nohup does not help. What it left running when it exited by
// itself stays. An attach ends when the container exits, the client is gone, or its input has ended where that means to
// detach; the container goes on.
func (s *Server) runStreams(ctx context.Context, req streamsRequest, streams clientStreams) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	streams = streams.wanted(req)
	var resize <-chan sandbox.TerminalSize
	if streams.resize != nil {
		resize = terminalSizes(ctx, streams.resize)
	}
	switch req := req.(type) {
	case *runtime.ExecRequest:
		var code int32
		err := recovered("Exec", func() (err error) {
			code, err = s.runtime.Exec(ctx, req.ContainerId, sandbox.ExecOptions{
				Args: req.Cmd, Terminal: req.Tty,
				Stdin: streams.in, Stdout: streams.out, Stderr: streams.errOut, Resize: resize,
			})
			return err
		})
		if err == nil && code != 0 {
			return exitError(code)
		}
		return err
	case *runtime.AttachRequest:
		return recovered("Attach", func() error {
			return s.runtime.Attach(ctx, req.ContainerId, sandbox.AttachOptions{
				Terminal: req.Tty, Stdin: streams.in, Stdout: streams.out, Stderr: streams.errOut, Resize: resize,
			})
		})
	}
	return fmt.Errorf("serve streams: request is a %T", req)
}

// terminalSizes translates sizes until ctx or the source ends. It loses none: the first is the size of the client's
// window, after which there may never be another.
func terminalSizes(ctx context.Context, from <-chan remotecommand.TerminalSize) <-chan sandbox.TerminalSize {
	to := make(chan sandbox.TerminalSize)
	go func() {
		defer close(to)
		for {
			select {
			case <-ctx.Done():
				return
			case size, ok := <-from:
				if !ok {
					return
				}
				select {
				case <-ctx.Done():
					return
				case to <- sandbox.TerminalSize{Width: size.Width, Height: size.Height}:
				}
			}
		}
	}()
	return to
}

// exitError is the exit code of a command, in the form that the streaming library makes a status of: it must be
// returned as it is, not wrapped.
type exitError int32

// Error returns the text that a client shows.
func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int32(e)) }

// String is the same as Error.
func (e exitError) String() string { return e.Error() }

// Exited says that the command ran to its end.
func (e exitError) Exited() bool { return true }

// ExitStatus is the exit code.
func (e exitError) ExitStatus() int { return int(e) }
