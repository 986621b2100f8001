package cri

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"
)

// errorCodes maps kinds of errors to gRPC codes; the first kind that an error satisfies counts. The context's come
// first: an operation that was cut short may fail in any way, and the kubelet must see the cause.
var errorCodes = []struct {
	kind error
	code codes.Code
}{
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
	{errdefs.ErrInvalidArgument, codes.InvalidArgument},
	{errdefs.ErrNotFound, codes.NotFound},
	{errdefs.ErrAlreadyExists, codes.AlreadyExists},
	{errdefs.ErrPermissionDenied, codes.PermissionDenied},
	{errdefs.ErrResourceExhausted, codes.ResourceExhausted},
	{errdefs.ErrFailedPrecondition, codes.FailedPrecondition},
	{errdefs.ErrConflict, codes.FailedPrecondition},
	{errdefs.ErrAborted, codes.Aborted},
	{errdefs.ErrOutOfRange, codes.OutOfRange},
	{errdefs.ErrNotImplemented, codes.Unimplemented},
	{errdefs.ErrUnavailable, codes.Unavailable},
	{errdefs.ErrUnauthenticated, codes.Unauthenticated},
	{errdefs.ErrDataLoss, codes.DataLoss},
	{errdefs.ErrInternal, codes.Internal},
}

// reasons are the errors whose text the kubelet looks for at the beginning of a message, to give the pod a reason of
// its own. For those of a pull (code set) it looks only if the code is Unknown.
var reasons = []struct {
	err  error
	code codes.Code
}{
	{crierrors.ErrRegistryUnavailable, codes.Unknown},
	{crierrors.ErrSignatureValidationFailed, codes.Unknown},
	{crierrors.ErrImageVolumeMountFailed, codes.OK},
	{crierrors.ErrRROUnsupported, codes.OK},
}

// grpcError maps err, with which the handling of a request of ctx ended, to an error with a gRPC status. Nil stays nil,
// an error that has a status keeps it.
func grpcError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	code, message := errorCode(err)
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return status.Error(code, message)
	}
	for _, reason := range reasons {
		text := reason.err.Error()
		leads := strings.HasPrefix(message, text)
		if !leads && !errors.Is(err, reason.err) {
			continue
		}
		if !leads {
			message = text + ": " + strings.TrimSuffix(strings.Replace(message, text+": ", "", 1), ": "+text)
		}
		if reason.code != codes.OK {
			code = reason.code
		}
		break
	}
	return status.Error(code, message)
}

// errorCode returns the gRPC code for err, Unknown when it is of no known kind, and its text.
func errorCode(err error) (codes.Code, string) {
	if s, ok := status.FromError(err); ok {
		return s.Code(), s.Message()
	}
	for _, entry := range errorCodes {
		if errors.Is(err, entry.kind) {
			return entry.code, err.Error()
		}
	}
	return codes.Unknown, err.Error()
}

// notMissing hides from err that it is of the kind not found. An unknown id is no error where this is used, so
// something else was not found, and the kubelet would take that for success and forget the thing.
func notMissing(err error) error {
	if errors.Is(err, errdefs.ErrNotFound) {
		return fmt.Errorf("%v: %w", err, errdefs.ErrInternal)
	}
	return err
}

// invalidf makes an error about the request: field, value and what was expected.
func invalidf(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// required returns an error that names the field if value is empty.
func required(field, value string) error {
	if value == "" {
		return invalidf("%s is empty, expected a value", field)
	}
	return nil
}
