package imageservice

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The identity of an image is its name and the runtime handler that it was pulled for (KEP-4216), as in the CRI's
// ImageSpec, of which only these two fields count here. What is stored is the same for all handlers and is there once;
// an image goes when no handler has a name for it.

// List returns the images, in the order of their ids, one for each handler that has it. With a filter it returns the
// image that Status returns or nothing, or all images of a handler when the filter has no name; an empty filter is
// none. It only reads memory. The images are shared: they must not be changed.
func (s *Service) List(filter *runtime.ImageSpec) []*runtime.Image {
	x := s.index.Load()
	found := x.sorted
	switch {
	case filter.GetImage() != "":
		found = nil
		if e := x.find(filter); e != nil {
			found = []*entry{e}
		}
	case filter.GetRuntimeHandler() != "":
		found = x.of(filter.GetRuntimeHandler()).sorted
	}
	list := make([]*runtime.Image, 0, len(found))
	for _, e := range found {
		list = append(list, e.cri)
	}
	return list
}

// Status returns an image by id, with or without algorithm, by a unique prefix of the id, by tag, digest reference or
// short name; the answer is the same for all. It only reads memory. The image is shared: it must not be changed.
func (s *Service) Status(spec *runtime.ImageSpec) (*runtime.Image, bool) {
	e := s.index.Load().find(spec)
	if e == nil {
		return nil, false
	}
	return e.cri, true
}

// Info returns what else is known of an image, for people: under "info" the chain id and the image configuration as
// JSON. Errors: errdefs.ErrNotFound.
func (s *Service) Info(spec *runtime.ImageSpec) (map[string]string, error) {
	e := s.index.Load().find(spec)
	if e == nil {
		return nil, notFound(spec.GetImage())
	}
	info, err := json.Marshal(struct {
		ChainID string             `json:"chainID"`
		Target  ocispec.Descriptor `json:"target"`
		Config  ocispec.Image      `json:"imageSpec"`
	}{e.chainID, e.target, e.config})
	if err != nil {
		return nil, fmt.Errorf("describe image %s: %w", e.id, err)
	}
	return map[string]string{"info": string(info)}, nil
}

// Resolve returns the id of an image and the reference by which a user knows its exact content: repository and digest
// where the image came from a registry, the id otherwise. It only reads memory. Errors: errdefs.ErrNotFound.
func (s *Service) Resolve(spec *runtime.ImageSpec) (imageID, imageRef string, err error) {
	e := s.index.Load().find(spec)
	if e == nil {
		return "", "", notFound(spec.GetImage())
	}
	return e.id, e.digestRef(spec.GetImage()), nil
}

// digestRef is the reference by digest of an image that ref names: of the same repository where that is possible.
func (e *entry) digestRef(ref string) string {
	if len(e.cri.RepoDigests) == 0 {
		return e.id
	}
	if name, err := normalize(ref); err == nil && slices.Contains(e.names, name) {
		repository, _ := reference.ParseNormalizedNamed(name)
		for _, candidate := range e.cri.RepoDigests {
			if strings.HasPrefix(candidate, repository.Name()+"@") {
				return candidate
			}
		}
	}
	return e.cri.RepoDigests[0]
}

// Remove forgets an image with all the tags and digests that its handler has. When it returns the image is not listed
// any more and its space is free, or if ctx ends before, soon after: the kubelet evicts a pod if what it removed has
// brought nothing. A container that has the image keeps its layers until Release. It is idempotent: nil for an image
// that is not there.
func (s *Service) Remove(ctx context.Context, spec *runtime.ImageSpec) error {
	ctx = scope(ctx)
	removed, err := s.removeNames(ctx, spec)
	if err != nil {
		return fmt.Errorf("remove image %s: %w", spec.GetImage(), err)
	}
	if removed {
		s.wait(ctx, s.collection.soon())
	}
	return nil
}

// removeNames takes an image all its names for a handler; removed is false if there is no such image.
func (s *Service) removeNames(ctx context.Context, spec *runtime.ImageSpec) (removed bool, err error) {
	s.names.Lock()
	defer s.names.Unlock()
	e := s.index.Load().find(spec)
	if e == nil {
		return false, nil
	}
	s.publish(s.index.Load().without(e))
	err = s.store.update(ctx, func(ctx context.Context) error {
		for _, name := range e.names {
			if err := s.store.images.Delete(ctx, storedName{e.handler, name}.key()); err != nil && !errdefs.IsNotFound(err) {
				return fmt.Errorf("delete name %s: %w", name, err)
			}
		}
		return nil
	})
	if err != nil {
		if again := s.reindexLocked(context.WithoutCancel(ctx)); again != nil {
			err = fmt.Errorf("%w (and %v)", err, again)
		}
		return false, err
	}
	s.unloadLocked(e.id)
	return true, nil
}

// unloadLocked forgets what was read of an image: pulled again, its layers have other directories.
// Preconditions: s.names is held.
func (s *Service) unloadLocked(id string) {
	maps.DeleteFunc(s.loaded, func(_ digest.Digest, img *image) bool { return img.id == id })
}

// without is the index with one image less.
func (x *index) without(gone *entry) *index {
	stored := map[string]*image{}
	for _, e := range x.sorted {
		for _, name := range e.names {
			if e != gone {
				stored[storedName{e.handler, name}.key()] = e.image
			}
		}
	}
	return newIndex(stored, x.pinned, x.labelled)
}

// Tag gives the image that source, a reference of the default handler, resolves to one more name there. The name is
// taken away from the image that had it.
// Errors: errdefs.ErrNotFound, errdefs.ErrInvalidArgument when target is not a name with a tag.
func (s *Service) Tag(ctx context.Context, source, target string) error {
	name, err := normalize(target)
	if err != nil {
		return err
	}
	if strings.Contains(name, "@") {
		return fmt.Errorf("new name %q: expected a tag, not a digest: %w", target, errdefs.ErrInvalidArgument)
	}
	ctx = scope(ctx)
	s.names.Lock()
	defer s.names.Unlock()
	e := s.index.Load().of("").find(source)
	if e == nil {
		return notFound(source)
	}
	if err := s.nameLocked(ctx, e.target, name); err != nil {
		return fmt.Errorf("tag image %s: %w", source, err)
	}
	return nil
}

// pinLabel marks a name in the metadata as pinned; containerd's own, so that its tools understand the store.
const pinLabel, pinValue = "io.cri-containerd.pinned", "pinned"

// Pin keeps the image that ref, a reference of the default handler, resolves to from being removed to free space, or
// ends that; the same image of another handler is not meant. An image that Config.PinnedImages names stays pinned.
// Errors: errdefs.ErrNotFound.
func (s *Service) Pin(ctx context.Context, ref string, pinned bool) error {
	value := ""
	if pinned {
		value = pinValue
	}
	ctx = scope(ctx)
	s.names.Lock()
	defer s.names.Unlock()
	e := s.index.Load().of("").find(ref)
	if e == nil {
		return notFound(ref)
	}
	err := s.store.update(ctx, func(ctx context.Context) error {
		for _, name := range e.names {
			record := images.Image{Name: storedName{e.handler, name}.key(), Labels: map[string]string{pinLabel: value}}
			if _, err := s.store.images.Update(ctx, record, "labels."+pinLabel); err != nil {
				return fmt.Errorf("label name %s: %w", name, err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("pin image %s: %w", ref, err)
	}
	return s.reindexLocked(ctx)
}

// nameLocked stores names for an image, storedName keys, in one transaction, and publishes them.
// Preconditions: s.names is held, the image is complete and on the disk.
func (s *Service) nameLocked(ctx context.Context, target ocispec.Descriptor, names ...string) error {
	img, err := s.loadLocked(ctx, target)
	if err != nil {
		return err
	}
	err = s.store.update(ctx, func(ctx context.Context) error {
		for _, name := range names {
			record := images.Image{Name: name, Target: target}
			_, err := s.store.images.Create(ctx, record)
			if errdefs.IsAlreadyExists(err) {
				_, err = s.store.images.Update(ctx, record, "target")
			}
			if err != nil {
				return fmt.Errorf("store name %s: %w", name, err)
			}
		}
		return nil
	})
	if err != nil {
		s.unloadLocked(img.id)
		return err
	}
	return s.reindexLocked(ctx)
}

// update runs do with a context in which all changes of metadata are one transaction, one fsync.
func (s *store) update(ctx context.Context, do func(context.Context) error) error {
	return s.db.Update(func(tx *bolt.Tx) error { return do(boltutil.WithTransaction(ctx, tx)) })
}

func notFound(ref string) error {
	return fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
}
