package imageservice

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PullRequest says what to pull.
type PullRequest struct {
	// Ref names the image: registry/repository:tag or @digest, or any short form of it. Without a tag it is :latest;
	// with tag and digest the tag is ignored.
	Ref string
	// Handler is the runtime handler that the image is for, "" for the default one. It is part of the image's identity.
	Handler string
	// Auth are the credentials, or nil. They go only to Auth.ServerAddress when that is set.
	Auth *runtime.AuthConfig
	// Progress, when set, is told how far the download is. It is called from one goroutine at a time and must be quick.
	// It may be called after Pull returned, if that was because of the context.
	Progress func(Progress)
}

// Progress is how far the download of one blob is.
type Progress struct {
	// Digest and MediaType identify the blob: a manifest, a configuration, or a layer.
	Digest, MediaType string
	// Offset is how many bytes have come, Total how many there are.
	Offset, Total int64
	// Done is set in the last report of a blob.
	Done bool
}

// Pull makes an image available and returns its id, the digest of its configuration. Calls for the same name with the
// same handler and credentials share the work, each obeying its own context; the work ends when the last of them has
// left. An image is visible only when it is complete and on the disk.
//
// Errors: errdefs.ErrInvalidArgument for a malformed name, errdefs.ErrNotFound when the registry does not have the
// image or not for this platform, errdefs.ErrUnauthenticated or ErrPermissionDenied when it refuses the credentials,
// RegistryUnavailable of k8s.io/cri-api/pkg/errors, whose text comes first, when it cannot be reached or fails, and the
// context's error. Each names the image.
func (s *Service) Pull(ctx context.Context, request PullRequest) (imageID string, err error) {
	ref, err := normalize(request.Ref)
	if err != nil {
		return "", err
	}
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("pull image %q: %w", ref, err)
	}
	p, err := s.joinPull(ref, request)
	if err != nil {
		return "", err
	}
	defer s.leavePull(p)
	select {
	case <-ctx.Done():
		return "", fmt.Errorf("pull image %q: %w", ref, ctx.Err())
	case <-p.done:
		return p.imageID, p.err
	}
}

// pulls are the pulls in flight.
type pulls struct {
	mu      sync.Mutex
	running map[string]*pull // by pullKey
	closed  bool
}

// pull is the work that all callers with the same key share.
type pull struct {
	key     string
	ref     string
	handler string
	auth    *runtime.AuthConfig
	cancel  context.CancelFunc
	// waiters is guarded by pulls.mu.
	waiters int

	listening sync.Mutex
	listeners []func(Progress)

	// done is closed when imageID and err are final.
	done    chan struct{}
	imageID string
	err     error
}

// pullKey tells which pulls are the same. Credentials are part of it as a hash: one caller must not get, through the
// work of another, an image that its own credentials do not open.
func pullKey(ref, handler string, auth *runtime.AuthConfig) string {
	name := storedName{handler, ref}.key()
	if auth == nil {
		return name
	}
	sum := sha256.Sum256([]byte(strings.Join([]string{auth.Username, auth.Password, auth.Auth, auth.ServerAddress,
		auth.IdentityToken, auth.RegistryToken}, "\x00")))
	return name + " " + hex.EncodeToString(sum[:])
}

func (s *Service) joinPull(ref string, request PullRequest) (*pull, error) {
	key := pullKey(ref, request.Handler, request.Auth)
	s.pulls.mu.Lock()
	defer s.pulls.mu.Unlock()
	if s.pulls.closed {
		return nil, fmt.Errorf("pull image %q: image store is closed: %w", ref, errdefs.ErrUnavailable)
	}
	p, ok := s.pulls.running[key]
	if !ok {
		ctx, cancel := context.WithCancel(s.ctx)
		p = &pull{key: key, ref: ref, handler: request.Handler, auth: request.Auth, cancel: cancel, done: make(chan struct{})}
		s.pulls.running[key] = p
		s.work.Go(func() { s.runPull(ctx, p) })
	}
	p.waiters++
	if request.Progress != nil {
		p.listening.Lock()
		p.listeners = append(p.listeners, request.Progress)
		p.listening.Unlock()
	}
	return p, nil
}

// leavePull ends the work when nobody waits for it any more. The next caller then starts anew instead of joining work
// that is being cancelled.
func (s *Service) leavePull(p *pull) {
	s.pulls.mu.Lock()
	defer s.pulls.mu.Unlock()
	if p.waiters--; p.waiters == 0 {
		p.cancel()
		s.forgetPullLocked(p)
	}
}

func (s *Service) forgetPullLocked(p *pull) {
	if s.pulls.running[p.key] == p {
		delete(s.pulls.running, p.key)
	}
}

func (s *Service) runPull(ctx context.Context, p *pull) {
	id, err := s.pullImage(ctx, p)
	s.pulls.mu.Lock()
	defer s.pulls.mu.Unlock()
	s.forgetPullLocked(p)
	p.imageID, p.err = id, describe(ctx, p.ref, err)
	close(p.done)
	p.cancel()
}

// close refuses new pulls, so that Close can wait for the old ones.
func (l *pulls) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
}

// report tells every caller.
func (p *pull) report(progress Progress) {
	p.listening.Lock()
	defer p.listening.Unlock()
	for _, listener := range p.listeners {
		listener(progress)
	}
}

// pullImage is one pull: lease, resolve, fetch and unpack, sync, name. What a failed one leaves is collected before it
// returns.
func (s *Service) pullImage(ctx context.Context, p *pull) (string, error) {
	leased, release, err := s.store.lease(ctx)
	if err != nil {
		return "", err
	}
	id, err := s.pullLeased(leased, p)
	release()
	return id, s.cleanUp(ctx, err)
}

// cleanUp collects what a failed pull or import left. After success it does nothing.
func (s *Service) cleanUp(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), background)
	defer cancel()
	if cleanErr := s.collect(ctx); cleanErr != nil {
		return fmt.Errorf("%w (and %v)", err, cleanErr)
	}
	return err
}

func (s *Service) pullLeased(ctx context.Context, p *pull) (string, error) {
	registry := s.newRegistry(ctx, p.auth)
	defer registry.close()
	target, err := registry.resolve(ctx, p.ref)
	if err != nil {
		return "", err
	}
	fetcher, err := registry.fetcher(ctx, p)
	if err != nil {
		return "", err
	}
	if err := s.fetchAndUnpack(ctx, fetcher, target); err != nil {
		return "", err
	}
	names, err := recordNames(p.ref, target)
	if err != nil {
		return "", err
	}
	for i, name := range names {
		names[i] = storedName{p.handler, name}.key()
	}
	return s.makeVisible(ctx, target, names...)
}

// recordNames are the names under which a pulled image is stored: as it was asked for, and by digest.
func recordNames(ref string, target ocispec.Descriptor) ([]string, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, err
	}
	byDigest, err := reference.WithDigest(reference.TrimNamed(named), target.Digest)
	if err != nil {
		return nil, err
	}
	if byDigest.String() == ref {
		return []string{ref}, nil
	}
	return []string{ref, byDigest.String()}, nil
}

// makeVisible names an image whose blobs and layers are all there, after bringing them to the disk: after a power cut
// an image that has a name is whole.
func (s *Service) makeVisible(ctx context.Context, target ocispec.Descriptor, names ...string) (string, error) {
	if id, ok := s.isVisible(target, names); ok {
		return id, nil
	}
	if err := s.store.sync(); err != nil {
		return "", err
	}
	s.names.Lock()
	defer s.names.Unlock()
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := s.nameLocked(ctx, target, names...); err != nil {
		return "", err
	}
	// A name may have moved here from another image, which nothing may need now; and usage has changed.
	s.collection.soon()
	return s.loaded[target.Digest].id, nil
}

// isVisible tells whether an image has these names, as they are stored, already: then nothing has to be written, or
// waited for.
func (s *Service) isVisible(target ocispec.Descriptor, names []string) (imageID string, ok bool) {
	s.names.Lock()
	defer s.names.Unlock()
	img, ok := s.loaded[target.Digest]
	if !ok {
		return "", false
	}
	x := s.index.Load()
	for _, key := range names {
		n := parseStoredName(key)
		if e, ok := x.of(n.handler).byName[n.name]; !ok || e.id != img.id {
			return "", false
		}
	}
	return img.id, true
}
