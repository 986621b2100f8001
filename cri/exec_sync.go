package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
)

// maxOutput is how much of each of the two outputs of a command ExecSync returns, in bytes. Both together and what is
// around them fit in one message.
const maxOutput = maxMessageSize/2 - 4096

// ExecSync runs a command in a container and returns its exit code and the first maxOutput bytes of each output; the
// rest is thrown away while the command goes on. With a timeout (seconds, 0 for none) that passes, the command and all
// its children are killed and the answer is DeadlineExceeded.
func (s *Server) ExecSync(ctx context.Context, req *runtime.ExecSyncRequest) (*runtime.ExecSyncResponse, error) {
	if err := required("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	if len(req.GetCmd()) == 0 {
		return nil, invalidf("cmd is empty, expected a command")
	}
	timeout := seconds(req.GetTimeout())
	if req.GetTimeout() < 0 {
		return nil, invalidf("timeout is %d, expected seconds, or 0 for none", req.GetTimeout())
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	stdout, stderr := &output{}, &output{}
	code, err := s.runtime.Exec(ctx, req.GetContainerId(), sandbox.ExecOptions{
		Args: req.GetCmd(), Stdout: stdout, Stderr: stderr,
	})
	if err != nil && ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
		// Whatever the error says, the cause is that the time was over.
		err = fmt.Errorf("%w: %v", ctx.Err(), err)
	}
	if err != nil {
		return nil, err
	}
	return &runtime.ExecSyncResponse{Stdout: stdout.take(), Stderr: stderr.take(), ExitCode: code}, nil
}

// output keeps the first maxOutput bytes that are written to it. Writes never fail: the writer of a pipe that is not
// read any more would be stopped by it.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if room := maxOutput - o.b.Len(); room > 0 {
		o.b.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// take returns what was kept and starts anew: a write that comes late does not touch what was returned.
func (o *output) take() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	b := o.b.Bytes()
	o.b = bytes.Buffer{}
	return b
}
