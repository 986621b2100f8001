package imageservice

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Import reads images from an OCI layout or an archive of 'docker save', as a tar stream, plain or compressed, and
// returns the names that they have now. An image without a name can be had by its id, which is then returned. Nothing
// of an import that fails is visible, except the images before the one that failed. Errors: errdefs.ErrInvalidArgument
// for a stream that is neither, errdefs.ErrNotFound for an image that is incomplete or for another platform.
func (s *Service) Import(ctx context.Context, stream io.Reader) (refs []string, err error) {
	ctx = scope(ctx)
	// The library names what it is writing after the files in the archive, so that two imports at a time, or one after
	// another that failed and was not cleaned up, would write into each other's files.
	const key = "import"
	if err := s.locks.Lock(ctx, key); err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	defer s.locks.Unlock(key)
	leased, release, err := s.store.lease(ctx)
	if err != nil {
		return nil, err
	}
	refs, err = s.importLeased(leased, stream)
	release()
	if err := s.cleanUp(ctx, err); err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	s.collection.soon() // the table of contents of the archive is not needed any more
	return refs, nil
}

func (s *Service) importLeased(ctx context.Context, stream io.Reader) ([]string, error) {
	plain, err := compression.DecompressStream(stream)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", err, errdefs.ErrInvalidArgument)
	}
	defer plain.Close()
	top, err := archive.ImportIndex(ctx, s.store.content, plain, archive.WithImportCompression())
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%v: %w", err, errdefs.ErrInvalidArgument)
	}
	raw, err := content.ReadBlob(ctx, s.store.content, top)
	if err != nil {
		return nil, err
	}
	var contents ocispec.Index
	if err := json.Unmarshal(raw, &contents); err != nil {
		return nil, fmt.Errorf("parse index: %v: %w", err, errdefs.ErrInvalidArgument)
	}
	var refs []string
	for _, target := range contents.Manifests {
		ref, err := s.importImage(ctx, target)
		if err != nil {
			return nil, err
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

func (s *Service) importImage(ctx context.Context, target ocispec.Descriptor) (string, error) {
	name := importedName(target)
	handlers := images.Handlers(s.store.checkKind(), s.store.checkPlatform(), s.store.children())
	if err := s.unpack(ctx, handlers, target); err != nil {
		return "", fmt.Errorf("unpack %s %s: %w", name, target.Digest, err)
	}
	target.Annotations, target.Platform = nil, nil
	if name == "" {
		manifest, err := images.Manifest(ctx, s.store.content, target, native)
		if err != nil {
			return "", fmt.Errorf("read manifest %s: %w", target.Digest, err)
		}
		name = manifest.Config.Digest.String()
	}
	if _, err := s.makeVisible(ctx, target, name); err != nil {
		return "", err
	}
	return name, nil
}

// importedName is the name that an archive gives an image, in full, or "".
func importedName(target ocispec.Descriptor) string {
	for _, key := range []string{images.AnnotationImageName, ocispec.AnnotationRefName} {
		given := target.Annotations[key]
		// A bare tag, which is what the second one mostly is, is not a name.
		if !strings.ContainsAny(given, "/:") {
			continue
		}
		if name, err := normalize(given); err == nil {
			return name
		}
	}
	return ""
}

// Export writes images, with all the names they were asked for by, as an OCI layout that 'docker load' reads, too. An
// image that is asked for by id comes with all its tags; names are those of the default handler. Only this node's
// platform of an image is there to be exported.
// Errors: errdefs.ErrNotFound, errdefs.ErrInvalidArgument when refs is empty.
func (s *Service) Export(ctx context.Context, stream io.Writer, refs []string) error {
	if len(refs) == 0 {
		return fmt.Errorf("export images: no references: %w", errdefs.ErrInvalidArgument)
	}
	ctx, release, err := s.store.lease(scope(ctx))
	if err != nil {
		return err
	}
	defer release()
	options := []archive.ExportOpt{archive.WithPlatform(native)}
	for _, ref := range refs {
		e := s.index.Load().of("").find(ref)
		if e == nil {
			return fmt.Errorf("export images: %w", notFound(ref))
		}
		options = append(options, s.exported(e, ref)...)
	}
	if err := archive.Export(ctx, s.store.content, stream, options...); err != nil {
		return fmt.Errorf("export images: %w", err)
	}
	return nil
}

func (s *Service) exported(e *entry, ref string) []archive.ExportOpt {
	if name, err := normalize(ref); err == nil && slices.Contains(e.names, name) {
		return []archive.ExportOpt{archive.WithImage(s.store.images, name)}
	}
	if len(e.cri.RepoTags) == 0 {
		return []archive.ExportOpt{archive.WithManifest(e.target)}
	}
	var options []archive.ExportOpt
	for _, tag := range e.cri.RepoTags {
		options = append(options, archive.WithImage(s.store.images, tag))
	}
	return options
}
