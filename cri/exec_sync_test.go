package cri

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
)

func TestExecSyncReturnsOutputAndCode(t *testing.T) {
	n := newNode(t)
	n.runtime.exec = func(_ context.Context, id string, opts sandbox.ExecOptions) (int32, error) {
		if id != "c1" || !slices.Equal(opts.Args, []string{"sh", "-c", "x"}) || opts.Terminal || opts.Stdin != nil {
			t.Errorf("got %s, %+v", id, opts)
		}
		fmt.Fprint(opts.Stdout, "out")
		fmt.Fprint(opts.Stderr, "err")
		return 3, nil
	}
	got, err := n.ExecSync(testContext(t), &runtime.ExecSyncRequest{ContainerId: "c1", Cmd: []string{"sh", "-c", "x"}})
	if err != nil {
		t.Fatal(err)
	}
	wantMessage(t, got, &runtime.ExecSyncResponse{Stdout: []byte("out"), Stderr: []byte("err"), ExitCode: 3})
}

func TestExecSyncCapsItsOutput(t *testing.T) {
	n := newNode(t)
	chunk := bytes.Repeat([]byte("x"), 1<<20)
	n.runtime.exec = func(_ context.Context, _ string, opts sandbox.ExecOptions) (int32, error) {
		for i := range 40 {
			w := opts.Stdout
			if i%2 == 1 {
				w = opts.Stderr
			}
			if k, err := w.Write(chunk); k != len(chunk) || err != nil {
				t.Errorf("write %d: got %d, %v: the command would fail", i, k, err)
			}
		}
		return 0, nil
	}
	got, err := n.ExecSync(testContext(t), &runtime.ExecSyncRequest{ContainerId: "c1", Cmd: []string{"yes"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Stdout) != maxOutput || len(got.Stderr) != maxOutput {
		t.Errorf("got %d and %d bytes, want %d of each", len(got.Stdout), len(got.Stderr), maxOutput)
	}
}

func TestExecSyncTimeout(t *testing.T) {
	n := newNode(t)
	n.runtime.exec = func(ctx context.Context, _ string, opts sandbox.ExecOptions) (int32, error) {
		if opts.Args[0] == "wrapped" {
			<-ctx.Done()
			return 0, fmt.Errorf("the process was killed") // Not every error tells why.
		}
		<-ctx.Done()
		return 0, ctx.Err()
	}
	for _, command := range []string{"plain", "wrapped"} {
		start := time.Now()
		_, err := n.ExecSync(t.Context(), &runtime.ExecSyncRequest{ // which would wait for ever
			ContainerId: "c1", Cmd: []string{command}, Timeout: 1,
		})
		wantCode(t, err, codes.DeadlineExceeded)
		if d := time.Since(start); d < time.Second {
			t.Errorf("%s: took %v, want 1s at least", command, d)
		}
	}
}

func TestExecSyncWithoutTimeoutHasNoDeadline(t *testing.T) {
	n := newNode(t)
	deadlines := make(chan bool, 1)
	n.runtime.exec = func(ctx context.Context, _ string, _ sandbox.ExecOptions) (int32, error) {
		_, ok := ctx.Deadline()
		deadlines <- ok
		return 0, nil
	}
	req := &runtime.ExecSyncRequest{ContainerId: "c1", Cmd: []string{"true"}}
	if _, err := n.ExecSync(t.Context(), req); err != nil || <-deadlines {
		t.Errorf("got a deadline or %v", err)
	}
	req.Timeout = math.MaxInt64
	if _, err := n.ExecSync(t.Context(), req); err != nil || !<-deadlines {
		t.Errorf("a very long timeout: got no deadline or %v", err)
	}
}

func TestExecSyncRejects(t *testing.T) {
	n := newNode(t)
	for _, req := range []*runtime.ExecSyncRequest{
		{Cmd: []string{"true"}}, {ContainerId: "c1"}, {ContainerId: "c1", Cmd: []string{"true"}, Timeout: -1},
	} {
		_, err := n.ExecSync(testContext(t), req)
		wantCode(t, err, codes.InvalidArgument)
	}
	if got := n.runtime.called(); got != "" {
		t.Errorf("got calls %q", got)
	}
}

func TestLateOutputDoesNotTouchTheAnswer(t *testing.T) {
	o := &output{}
	fmt.Fprint(o, "early")
	got := o.take()
	fmt.Fprint(o, "later")
	if string(got) != "early" {
		t.Errorf("got %q", got)
	}
}
