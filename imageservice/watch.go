package imageservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// rangeFetcher fetches big blobs in several ranges at a time, and others, and those of registries that refuse ranges,
// in one piece.
type rangeFetcher struct {
	whole, ranged remotes.Fetcher
}

// Fetch opens a blob.
func (f rangeFetcher) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if desc.Size < 2*rangeSize {
		return f.whole.Fetch(ctx, desc)
	}
	rc, err := f.ranged.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	again := func() (io.ReadCloser, error) { return f.whole.Fetch(ctx, desc) }
	return &rangeReader{ReadCloser: rc, again: again}, nil
}

// rangeReader falls back to the whole blob when the first request is refused, which is sent with the first Read.
type rangeReader struct {
	io.ReadCloser
	again func() (io.ReadCloser, error) // nil after it was used, or when no fallback is needed any more
}

func (r *rangeReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if n > 0 {
		r.again = nil
	}
	var status remoteerrors.ErrUnexpectedStatus
	if r.again == nil || !errors.As(err, &status) || status.StatusCode != http.StatusRequestedRangeNotSatisfiable {
		return n, err
	}
	whole, err := r.again()
	r.again = nil
	if err != nil {
		return 0, err
	}
	r.ReadCloser.Close()
	r.ReadCloser = whole
	return r.ReadCloser.Read(p)
}

// Seek lets a download be taken up again where it broke.
func (r *rangeReader) Seek(offset int64, whence int) (int64, error) {
	return seek(r.ReadCloser, offset, whence)
}

func seek(r io.Reader, offset int64, whence int) (int64, error) {
	seeker, ok := r.(io.Seeker)
	if !ok {
		return 0, fmt.Errorf("seek in blob: %w", errdefs.ErrNotImplemented)
	}
	return seeker.Seek(offset, whence)
}

// errStalled is why a download ends that brings no more data.
var errStalled = errors.New("registry sends nothing")

// watchedFetcher gives up on a blob of which nothing comes for idle, and reports progress.
type watchedFetcher struct {
	fetcher remotes.Fetcher
	idle    time.Duration
	report  func(Progress)
}

// Fetch opens a blob. The first byte, too, has to come within idle, counted from the first Read.
func (f watchedFetcher) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	rc, err := f.fetcher.Fetch(ctx, desc)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	stall := time.AfterFunc(f.idle, func() { cancel(errStalled) })
	stall.Stop()
	r := &watchedReader{ReadCloser: rc, ctx: ctx, cancel: cancel, stall: stall, watch: f}
	r.progress = Progress{Digest: desc.Digest.String(), MediaType: desc.MediaType, Total: desc.Size}
	f.report(r.progress)
	return r, nil
}

// progressStep is how many bytes pass between two reports.
const progressStep = 1 << 20

type watchedReader struct {
	io.ReadCloser
	ctx      context.Context
	cancel   context.CancelCauseFunc
	stall    *time.Timer // runs only during Read: a slow disk is not a slow registry
	watch    watchedFetcher
	progress Progress
	reported int64
}

func (r *watchedReader) Read(p []byte) (int, error) {
	r.stall.Reset(r.watch.idle)
	n, err := r.ReadCloser.Read(p)
	r.stall.Stop()
	r.progress.Offset += int64(n)
	if r.progress.Offset-r.reported >= progressStep || r.progress.Offset == r.progress.Total && n > 0 {
		r.reported = r.progress.Offset
		r.progress.Done = r.progress.Offset == r.progress.Total
		r.watch.report(r.progress)
	}
	if err != nil && !errors.Is(err, io.EOF) && errors.Is(context.Cause(r.ctx), errStalled) {
		err = fmt.Errorf("fetch %s: after %d of %d bytes %w for %s", r.progress.Digest, r.progress.Offset,
			r.progress.Total, errStalled, r.watch.idle)
	}
	return n, err
}

// Seek lets a download be taken up again where it broke.
func (r *watchedReader) Seek(offset int64, whence int) (int64, error) {
	at, err := seek(r.ReadCloser, offset, whence)
	if err == nil {
		r.progress.Offset = at
	}
	return at, err
}

func (r *watchedReader) Close() error {
	r.stall.Stop()
	defer r.cancel(nil)
	return r.ReadCloser.Close()
}
