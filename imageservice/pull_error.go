package imageservice

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	crierrors "k8s.io/cri-api/pkg/errors"
)

// pullError has a text for people and one kind for programs. What went wrong inside is not wrapped: a dial that timed
// out would pass for the caller's own deadline.
type pullError struct {
	text string
	kind error
}

func (e *pullError) Error() string { return e.text }

// Unwrap returns the kind.
func (e *pullError) Unwrap() error { return e.kind }

// describe turns what the libraries return into an error that names the image and has the right kind.
// ctx is that of the pull: when it has ended, so has every wait of the libraries, whatever they call it.
func describe(ctx context.Context, ref string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("pull image %q: %w", ref, ctx.Err())
	}
	text := fmt.Sprintf("pull image %q: %s", ref, clean(err.Error()))
	switch kind := kindOf(err); kind {
	case crierrors.ErrRegistryUnavailable:
		// The kubelet recognises it by the prefix.
		return &pullError{text: kind.Error() + ": " + text, kind: kind}
	case errdefs.ErrUnauthenticated, errdefs.ErrPermissionDenied:
		if !strings.Contains(text, docker.ErrInvalidAuthorization.Error()) {
			text = fmt.Sprintf("pull image %q: %v: %s", ref, docker.ErrInvalidAuthorization, clean(err.Error()))
		}
		return &pullError{text: text, kind: kind}
	default:
		return &pullError{text: text, kind: kind}
	}
}

// kindOf finds the kind of an error of a pull. Credentials come before the network: a refusal is reported as a failed
// redirect now and then.
func kindOf(err error) error {
	if kind := kindOfAnswer(err); kind != nil {
		return kind
	}
	if errors.Is(err, errStalled) || isNetwork(err) {
		return crierrors.ErrRegistryUnavailable
	}
	for _, kind := range []error{errdefs.ErrNotFound, errdefs.ErrInvalidArgument, errdefs.ErrFailedPrecondition,
		errdefs.ErrResourceExhausted} {
		if errors.Is(err, kind) {
			return kind
		}
	}
	return err
}

// kindOfAnswer finds the kind of an answer that was not what it should be.
func kindOfAnswer(err error) error {
	if errors.Is(err, docker.ErrInvalidAuthorization) {
		return errdefs.ErrUnauthenticated
	}
	var status remoteerrors.ErrUnexpectedStatus
	if !errors.As(err, &status) {
		return nil
	}
	switch code := status.StatusCode; {
	case code == http.StatusUnauthorized:
		return errdefs.ErrUnauthenticated
	case code == http.StatusForbidden:
		return errdefs.ErrPermissionDenied
	case code == http.StatusNotFound:
		return errdefs.ErrNotFound
	case code >= 500, code == http.StatusTooManyRequests, code == http.StatusRequestTimeout:
		return crierrors.ErrRegistryUnavailable
	}
	return nil
}

func isNetwork(err error) bool {
	var (
		netError    net.Error
		record      tls.RecordHeaderError
		certificate *tls.CertificateVerificationError
		unknownCA   x509.UnknownAuthorityError
		hostname    x509.HostnameError
	)
	return errors.As(err, &netError) || errors.As(err, &record) || errors.As(err, &certificate) ||
		errors.As(err, &unknownCA) || errors.As(err, &hostname) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, io.EOF) || errors.Is(err, context.DeadlineExceeded)
}

// causeOf is err, or why ctx ended when it has.
func causeOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errStalled) {
		return fmt.Errorf("%w: %v", cause, err)
	}
	return err
}

// query finds the query of an address: redirects to object stores carry signatures there.
var query = regexp.MustCompile(`(https?://[^\s"?]+)\?[^\s"]*`)

// clean makes one line of joined errors, without what only followed from the others and without secrets.
func clean(text string) string {
	var parts []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line == "aborted" || line == context.Canceled.Error() || slices.Contains(parts, line) {
			continue
		}
		parts = append(parts, line)
	}
	return query.ReplaceAllString(strings.Join(parts, "; "), "$1")
}
