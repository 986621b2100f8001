package cri

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
)

func TestErrorCodes(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("do it: %w", err) }
	for _, test := range []struct {
		name string
		err  error
		want codes.Code
		text string
	}{
		{"nil", nil, codes.OK, ""},
		{"not found", wrap(errdefs.ErrNotFound), codes.NotFound, "do it: not found"},
		{"invalid", invalidf("port is %d", -1), codes.InvalidArgument, "port is -1: invalid argument"},
		{"state", wrap(errdefs.ErrFailedPrecondition), codes.FailedPrecondition, "do it: failed precondition"},
		{"exists", wrap(errdefs.ErrAlreadyExists), codes.AlreadyExists, "do it: already exists"},
		{"unavailable", wrap(errdefs.ErrUnavailable), codes.Unavailable, "do it: unavailable"},
		{"exhausted", wrap(errdefs.ErrResourceExhausted), codes.ResourceExhausted, "do it: resource exhausted"},
		{"internal", wrap(errdefs.ErrInternal), codes.Internal, "do it: internal"},
		{"not implemented", wrap(errdefs.ErrNotImplemented), codes.Unimplemented, "do it: not implemented"},
		{"deadline", wrap(context.DeadlineExceeded), codes.DeadlineExceeded, "do it: context deadline exceeded"},
		{"canceled", wrap(context.Canceled), codes.Canceled, "do it: context canceled"},
		{"canceled first", errors.Join(errdefs.ErrNotFound, context.Canceled), codes.Canceled, "not found\ncontext canceled"},
		{"unknown", errors.New("the disk is on fire"), codes.Unknown, "the disk is on fire"},
		{"status", status.Error(codes.OutOfRange, "too far"), codes.OutOfRange, "too far"},
	} {
		got := status.Convert(grpcError(t.Context(), test.err))
		if got.Code() != test.want || got.Message() != test.text {
			t.Errorf("%s: got %v %q, want %v %q", test.name, got.Code(), got.Message(), test.want, test.text)
		}
	}
}

// TestKubeletReasonsLead: the kubelet looks for a few words at the beginning of a message.
func TestKubeletReasonsLead(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, test := range []struct {
		name string
		ctx  context.Context
		err  error
		want codes.Code
		text string
	}{
		{
			"by text", t.Context(), errors.New("RegistryUnavailable: dial tcp: refused"),
			codes.Unknown, "RegistryUnavailable: dial tcp: refused",
		},
		{
			"by text, of another kind", t.Context(), fmt.Errorf("RegistryUnavailable: 503: %w", errdefs.ErrUnavailable),
			codes.Unknown, "RegistryUnavailable: 503: unavailable",
		},
		{
			"inside", t.Context(), fmt.Errorf("pull app: %w", crierrors.ErrSignatureValidationFailed),
			codes.Unknown, "SignatureValidationFailed: pull app",
		},
		{
			"a time limit of our own", t.Context(),
			fmt.Errorf("RegistryUnavailable: no progress: %w", context.DeadlineExceeded),
			codes.Unknown, "RegistryUnavailable: no progress: context deadline exceeded",
		},
		{
			"the client has gone", ended, fmt.Errorf("RegistryUnavailable: %w", context.Canceled),
			codes.Canceled, "RegistryUnavailable: context canceled",
		},
		{
			"image volume", t.Context(),
			fmt.Errorf("create c: %w: %w", crierrors.ErrImageVolumeMountFailed, errdefs.ErrInvalidArgument),
			codes.InvalidArgument, "ImageVolumeMountFailed: create c: invalid argument",
		},
	} {
		got := status.Convert(grpcError(test.ctx, test.err))
		if got.Code() != test.want || got.Message() != test.text {
			t.Errorf("%s: got %v %q, want %v %q", test.name, got.Code(), got.Message(), test.want, test.text)
		}
	}
}

// TestFailedStopIsNeverNotFound: the kubelet takes NotFound from these methods for success.
func TestFailedStopIsNeverNotFound(t *testing.T) {
	n := newNode(t)
	n.runtime.err = fmt.Errorf("detach network: plugin: %w", errdefs.ErrNotFound)
	ctx := testContext(t)
	_, err := n.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: "s"})
	wantCode(t, err, codes.Internal)
	_, err = n.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: "s"})
	wantCode(t, err, codes.Internal)
	_, err = n.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: "c"})
	wantCode(t, err, codes.Internal)
	_, err = n.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: "c"})
	wantCode(t, err, codes.Internal)
}
