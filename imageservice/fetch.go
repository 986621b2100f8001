package imageservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/moby/sys/userns"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
)

// native matches this node's platform, and images that do not say theirs.
var native platforms.MatchComparer = nativePlatform{platforms.Default()}

type nativePlatform struct{ platforms.MatchComparer }

func (n nativePlatform) Match(p ocispec.Platform) bool {
	// The unpacker has normalized the platform before it asks: an empty OS is this one by then.
	return p.Architecture == "" && (p.OS == "" || p.OS == runtime.GOOS) || n.MatchComparer.Match(p)
}

// fetchAndUnpack downloads the blobs of an image for this platform, several at a time, and unpacks each layer as soon
// as it is there. Preconditions: ctx has a lease.
func (s *Service) fetchAndUnpack(ctx context.Context, fetcher remotes.Fetcher, target ocispec.Descriptor) error {
	if target.MediaType == images.MediaTypeDockerSchema1Manifest {
		return fmt.Errorf("image manifest of the obsolete type %s: %w", target.MediaType, errdefs.ErrInvalidArgument)
	}
	return s.unpack(ctx, images.Handlers(
		images.HandlerFunc(checkSize),
		remotes.FetchHandler(s.store.content, fetcher),
		s.store.checkKind(),
		s.store.checkPlatform(),
		s.store.children(),
	), target)
}

// children finds what a manifest or an index refers to, for this platform, and notes it for the garbage collection.
func (s *store) children() images.HandlerFunc {
	all := images.SetChildrenLabels(s.content, images.ChildrenHandler(s.content))
	return images.LimitManifests(images.FilterPlatforms(all, native), native, 1)
}

// maxDocument is the size up to which manifests and configurations are read, which is into memory.
const maxDocument = 8 << 20

// checkSize keeps an image from filling the memory of the daemon.
func checkSize(_ context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	if desc.Size > maxDocument && !images.IsLayerType(desc.MediaType) {
		return nil, fmt.Errorf("%s %s has %d bytes, expected at most %d: %w", desc.MediaType, desc.Digest, desc.Size,
			maxDocument, errdefs.ErrInvalidArgument)
	}
	return nil, nil
}

// unpack walks an image with handler, which makes the blobs available, and unpacks its layers meanwhile.
func (s *Service) unpack(ctx context.Context, handler images.Handler, target ocispec.Descriptor) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	unpacker, err := s.newUnpacker(ctx)
	if err != nil {
		return err
	}
	if err := images.Dispatch(ctx, unpacker.Unpack(handler), nil, target); err != nil {
		cancel()
		_, waited := unpacker.Wait()
		return firstCause(err, waited)
	}
	_, err = unpacker.Wait()
	return err
}

// firstCause prefers what went wrong to the cancellation that followed from it.
func firstCause(err, other error) error {
	if errors.Is(err, context.Canceled) && other != nil {
		return other
	}
	return err
}

func (s *Service) newUnpacker(ctx context.Context) (*unpack.Unpacker, error) {
	var capabilities []string
	if !userns.RunningInUserNS() {
		// Unpacking a layer before its parent needs whiteouts to be made with mknod.
		capabilities = append(capabilities, snapshots.RebaseCap)
	}
	// The limits are per image: an unpacker takes its slot before its layer is there, so with common ones a slow
	// registry would stop the pulls from all others.
	unpacker, err := unpack.NewUnpacker(ctx, s.store.content,
		unpack.WithUnpackPlatform(unpack.Platform{
			Platform:                native,
			SnapshotterKey:          snapshotterName,
			Snapshotter:             s.store.snapshots,
			SnapshotterCapabilities: capabilities,
			Applier:                 s.store.applier,
		}),
		unpack.WithLimiter(semaphore.NewWeighted(int64(s.config.MaxConcurrentDownloads))),
		unpack.WithUnpackLimiter(semaphore.NewWeighted(int64(s.config.MaxConcurrentUnpacks))),
		unpack.WithDuplicationSuppressor(s.locks),
		// A layer may be unpacked already and its blob gone; an image must be complete to be exported.
		unpack.WithFetchAllContent(),
	)
	if err != nil {
		return nil, fmt.Errorf("make unpacker: %w", err)
	}
	return unpacker, nil
}

// checkKind stops at the manifest of an artifact, which is what has another configuration than an image: it has no root
// filesystem, so that there is nothing to run or to mount. (The image-spec's "Guidance on artifacts" tells the two
// apart by this.)
func (s *store) checkKind() images.HandlerFunc {
	return func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if !images.IsManifestType(desc.MediaType) {
			return nil, nil
		}
		raw, err := content.ReadBlob(ctx, s.content, desc)
		if err != nil {
			return nil, err
		}
		var manifest ocispec.Manifest
		if err := json.Unmarshal(raw, &manifest); err != nil {
			return nil, fmt.Errorf("parse manifest %s: %w", desc.Digest, err)
		}
		if kind := manifest.Config.MediaType; !images.IsConfigType(kind) {
			return nil, fmt.Errorf("it is an artifact with a configuration of type %q, expected an image: %w", kind,
				errdefs.ErrInvalidArgument)
		}
		return nil, nil
	}
}

// checkPlatform stops at the configuration of an image for another platform, before its layers are downloaded.
func (s *store) checkPlatform() images.HandlerFunc {
	return func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if !images.IsConfigType(desc.MediaType) {
			return nil, nil
		}
		raw, err := content.ReadBlob(ctx, s.content, desc)
		if err != nil {
			return nil, err
		}
		var platform ocispec.Platform
		if err := json.Unmarshal(raw, &platform); err != nil {
			return nil, fmt.Errorf("parse image config %s: %w", desc.Digest, err)
		}
		if !native.Match(platform) {
			return nil, fmt.Errorf("image is for %s, this node needs %s: %w", platforms.Format(platform),
				platforms.DefaultString(), errdefs.ErrNotFound)
		}
		return nil, nil
	}
}
