package keeper

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

type rawJSON = json.RawMessage

// Kind says what sort of failure an Error is.
type Kind string

// The kinds, and the errdefs error that each satisfies.
const (
	KindNotFound   Kind = "not-found"    // errdefs.ErrNotFound
	KindInvalid    Kind = "invalid"      // errdefs.ErrInvalidArgument
	KindState      Kind = "precondition" // errdefs.ErrFailedPrecondition
	KindStart      Kind = "start"        // ErrStart: the process could not be started; the text is the kernel's reason
	KindInternal   Kind = "internal"     // errdefs.ErrInternal
	KindCanceled   Kind = "canceled"     // context.Canceled
	KindLeaving    Kind = "leaving"      // errdefs.ErrUnavailable: the keeper is about to exit, another one may be spawned
	KindUnexpected Kind = ""
)

// ErrStart is satisfied by the error of a start or exec whose process could not be started: a command that does not
// exist, an unknown user, a mount that the kernel refused.
var ErrStart = errors.New("start failed")

// Error is an error on the wire.
type Error struct {
	Kind    Kind   `json:"kind,omitempty"`
	Message string `json:"message"`
}

// Error returns the text.
func (e *Error) Error() string { return e.Message }

// Is makes errors.Is work for the sentinel of the error's kind.
func (e *Error) Is(target error) bool {
	switch e.Kind {
	case KindNotFound:
		return target == errdefs.ErrNotFound
	case KindInvalid:
		return target == errdefs.ErrInvalidArgument
	case KindState:
		return target == errdefs.ErrFailedPrecondition
	case KindStart:
		return target == ErrStart
	case KindLeaving:
		return target == errdefs.ErrUnavailable
	case KindInternal:
		return target == errdefs.ErrInternal
	}
	return false
}

// Errorf makes an Error of a kind.
func Errorf(kind Kind, format string, args ...any) *Error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...)}
}
