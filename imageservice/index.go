package imageservice

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// image is what the content of an image says, apart from its names. It never changes.
type image struct {
	id          string // digest of the configuration, with algorithm
	target      ocispec.Descriptor
	config      ocispec.Image
	annotations map[string]string
	size        uint64 // bytes of all blobs as downloaded
	chainID     string // of the uppermost layer; "" for an image without layers
	lowers      []string
}

// index is an immutable picture of the store. Readers load it once and see one state.
type index struct {
	handlers map[string]*catalog
	images   map[string]*image // by id, of whatever handler
	sorted   []*entry          // by id, those of one id by handler
	pinned   pins              // names, and patterns of names, of images that are pinned for every handler
	labelled map[string]bool   // keys of names, as they are stored, that are pinned by Pin
}

// catalog are the images of one runtime handler.
type catalog struct {
	byID   map[string]*entry
	byName map[string]*entry
	sorted []*entry // by id
}

// entry is an image as one runtime handler has it, with its names there.
type entry struct {
	*image
	handler string
	names   []string       // in full, without the handler
	cri     *runtime.Image // shared with callers, never changed
}

// find resolves what an image is named by, for the runtime handler that it is named with. It returns nil when nothing
// matches.
func (x *index) find(spec *runtime.ImageSpec) *entry {
	return x.of(spec.GetRuntimeHandler()).find(spec.GetImage())
}

// of are the images of a runtime handler.
func (x *index) of(handler string) *catalog {
	if c, ok := x.handlers[handler]; ok {
		return c
	}
	return &catalog{}
}

// findAny resolves any name of an image of the default handler, or the full id of an image of any.
func (x *index) findAny(ref string) *entry {
	if e := x.of("").find(ref); e != nil {
		return e
	}
	if i := slices.IndexFunc(x.sorted, func(e *entry) bool { return e.id == ref }); i >= 0 {
		return x.sorted[i]
	}
	return nil
}

// find resolves a full id, an id without algorithm, a tag, a digest reference, a short name, or a prefix of an id that
// only one image has. Names win over prefixes. It returns nil when nothing matches.
func (x *catalog) find(ref string) *entry {
	if e, ok := x.byID[ref]; ok {
		return e
	}
	if e, ok := x.byID[digest.Canonical.String()+":"+ref]; ok {
		return e
	}
	if name, err := normalize(ref); err == nil {
		if e, ok := x.byName[name]; ok {
			return e
		}
	}
	return x.findPrefix(strings.TrimPrefix(ref, digest.Canonical.String()+":"))
}

// minPrefix keeps a one-letter typo from meaning an image.
const minPrefix = 3

func (x *catalog) findPrefix(hex string) *entry {
	if len(hex) < minPrefix {
		return nil
	}
	prefix := digest.Canonical.String() + ":" + hex
	i, _ := slices.BinarySearchFunc(x.sorted, prefix, func(e *entry, p string) int { return cmp.Compare(e.id, p) })
	if i == len(x.sorted) || !strings.HasPrefix(x.sorted[i].id, prefix) {
		return nil
	}
	if i+1 < len(x.sorted) && strings.HasPrefix(x.sorted[i+1].id, prefix) {
		return nil
	}
	return x.sorted[i]
}

// normalize gives a name in full: with registry and with a tag or a digest. With both, the digest decides and the tag
// is dropped. Errors: errdefs.ErrInvalidArgument.
func normalize(ref string) (string, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return "", fmt.Errorf("image reference %q: %v: %w", ref, err, errdefs.ErrInvalidArgument)
	}
	return named.String(), nil
}

// pins are the patterns of Config.PinnedImages, in full.
type pins []string

// newPins gives the patterns in full. Errors: errdefs.ErrInvalidArgument.
func newPins(patterns []string) (pins, error) {
	var p pins
	for _, pattern := range patterns {
		if !strings.HasSuffix(pattern, "*") {
			name, err := normalize(pattern)
			if err != nil {
				return nil, fmt.Errorf("pinned %w", err)
			}
			pattern = name
		}
		p = append(p, pattern)
	}
	return p, nil
}

func (p pins) match(name string) bool {
	return slices.ContainsFunc(p, func(pattern string) bool {
		prefix, ok := strings.CutSuffix(pattern, "*")
		return name == pattern || ok && strings.HasPrefix(name, prefix)
	})
}

// newIndex groups names, as they are stored, by handler and image.
func newIndex(stored map[string]*image, pinned pins, labelled map[string]bool) *index {
	x := &index{handlers: map[string]*catalog{}, images: map[string]*image{}, pinned: pinned, labelled: labelled}
	for _, key := range slices.Sorted(maps.Keys(stored)) {
		img, n := stored[key], parseStoredName(key)
		c, ok := x.handlers[n.handler]
		if !ok {
			c = &catalog{byID: map[string]*entry{}, byName: map[string]*entry{}}
			x.handlers[n.handler] = c
		}
		e, ok := c.byID[img.id]
		if !ok {
			e = &entry{image: img, handler: n.handler}
			c.byID[img.id] = e
			x.images[img.id] = img
			x.sorted = append(x.sorted, e)
		}
		e.names = append(e.names, n.name)
		c.byName[n.name] = e
	}
	slices.SortFunc(x.sorted, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.handler, b.handler))
	})
	for _, e := range x.sorted {
		e.cri = e.toCRI()
		e.cri.Pinned = slices.ContainsFunc(e.names, func(name string) bool {
			return pinned.match(name) || labelled[storedName{e.handler, name}.key()]
		})
		c := x.handlers[e.handler]
		c.sorted = append(c.sorted, e)
	}
	return x
}

// storedName is a name of an image as the metadata has it: the runtime handler is part of it, except the default one,
// so that each handler's names come and go by themselves while blobs and layers are there once.
type storedName struct{ handler, name string }

// key is what it is stored by. Neither part has a space in it.
func (n storedName) key() string {
	if n.handler == "" {
		return n.name
	}
	return n.name + " " + n.handler
}

func parseStoredName(key string) storedName {
	name, handler, _ := strings.Cut(key, " ")
	return storedName{handler: handler, name: name}
}

func (e *entry) toCRI() *runtime.Image {
	img := &runtime.Image{
		Id:   e.id,
		Size: e.size,
		Spec: &runtime.ImageSpec{Image: e.id, Annotations: e.annotations, RuntimeHandler: e.handler},
	}
	img.RepoTags, img.RepoDigests = e.tagsAndDigests()
	user, _, _ := strings.Cut(e.config.Config.User, ":")
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		img.Uid = &runtime.Int64Value{Value: uid}
	} else {
		img.Username = user
	}
	return img
}

// tagsAndDigests sorts the names by kind. An image that was imported without a name has its id for one, which is
// neither.
func (e *entry) tagsAndDigests() (tags, digests []string) {
	for _, name := range e.names {
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil || name == e.id {
			continue
		}
		switch named.(type) {
		case reference.Canonical:
			digests = append(digests, name)
		case reference.Tagged:
			tags = append(tags, name)
		}
	}
	return tags, digests
}

// restoreIndex builds the index when the store is opened. A name whose image is incomplete is dropped, so that it can
// be pulled again.
func (s *Service) restoreIndex(ctx context.Context) error {
	s.names.Lock()
	defer s.names.Unlock()
	records, err := s.store.images.List(ctx)
	if err != nil {
		return fmt.Errorf("list image names: %w", err)
	}
	for _, record := range records {
		if _, err := s.loadLocked(ctx, record.Target); err != nil {
			klog.ErrorS(err, "Image is damaged and forgotten, it has to be pulled again", "image", record.Name)
			if err := s.store.images.Delete(ctx, record.Name); err != nil && !errdefs.IsNotFound(err) {
				return fmt.Errorf("delete image name %s: %w", record.Name, err)
			}
		}
	}
	return s.reindexLocked(ctx)
}

// reindexLocked publishes an index of the names that are stored. Preconditions: s.names is held.
func (s *Service) reindexLocked(ctx context.Context) error {
	records, err := s.store.images.List(ctx)
	if err != nil {
		return fmt.Errorf("list image names: %w", err)
	}
	byName := map[string]*image{}
	current := map[digest.Digest]*image{}
	labelled := map[string]bool{}
	for _, record := range records {
		img, err := s.loadLocked(ctx, record.Target)
		if err != nil {
			return fmt.Errorf("load image %s: %w", record.Name, err)
		}
		if record.Labels[pinLabel] == pinValue {
			labelled[record.Name] = true
		}
		byName[record.Name] = img
		current[record.Target.Digest] = img
	}
	s.loaded = current
	s.publish(newIndex(byName, s.pinned, labelled))
	return nil
}

// publish makes x what everybody sees.
func (s *Service) publish(x *index) {
	s.uses.mu.Lock()
	defer s.uses.mu.Unlock()
	s.index.Store(x)
}

// loadLocked reads an image, once per target. Preconditions: s.names is held.
func (s *Service) loadLocked(ctx context.Context, target ocispec.Descriptor) (*image, error) {
	if img, ok := s.loaded[target.Digest]; ok {
		return img, nil
	}
	img, err := s.store.load(ctx, target)
	if err != nil {
		return nil, err
	}
	s.loaded[target.Digest] = img
	return img, nil
}

// load reads what the blobs of an image say and checks that its layers are unpacked.
// Errors: errdefs.ErrNotFound when a part is missing or the image is for another platform.
func (s *store) load(ctx context.Context, target ocispec.Descriptor) (*image, error) {
	manifest, err := images.Manifest(ctx, s.content, target, native)
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", target.Digest, err)
	}
	img, err := s.loadConfig(ctx, manifest.Config)
	if err != nil {
		return nil, err
	}
	img.target = target
	img.annotations = manifest.Annotations
	img.size = uint64(target.Size + manifest.Config.Size)
	for _, layer := range manifest.Layers {
		img.size += uint64(layer.Size)
	}
	return img, nil
}

func (s *store) loadConfig(ctx context.Context, config ocispec.Descriptor) (*image, error) {
	raw, err := content.ReadBlob(ctx, s.content, config)
	if err != nil {
		return nil, fmt.Errorf("read image config %s: %w", config.Digest, err)
	}
	img := &image{id: config.Digest.String()}
	if err := json.Unmarshal(raw, &img.config); err != nil {
		return nil, fmt.Errorf("parse image config %s: %w", config.Digest, err)
	}
	if len(img.config.RootFS.DiffIDs) > 0 {
		img.chainID = identity.ChainID(img.config.RootFS.DiffIDs).String()
	}
	if img.lowers, err = s.lowers(ctx, img.chainID); err != nil {
		return nil, err
	}
	return img, nil
}

// lowers returns the directories of a chain of layers, the uppermost first.
func (s *store) lowers(ctx context.Context, chainID string) ([]string, error) {
	var dirs []string
	length := 0
	for name := chainID; name != ""; {
		layer, err := s.snapshots.Stat(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("find layer: %w", err)
		}
		dir := layer.Labels[upperdirLabel]
		if _, err := os.Stat(dir); err != nil {
			return nil, fmt.Errorf("find directory of layer %s: %v: %w", name, err, errdefs.ErrNotFound)
		}
		dirs = append(dirs, dir)
		length += len(dir) + 1
		name = layer.Parent
	}
	if length <= s.lowersLimit() {
		return dirs, nil
	}
	return s.shorten(dirs)
}

// lowersLimit is what one page, the kernel's limit for mount options, leaves for the lower directories.
func (s *store) lowersLimit() int {
	const page, longestID, rest = 4096, 64, 160
	return page - rest - 2*(len(s.root)+longestID)
}

// shorten replaces the directories of layers by symbolic links with short names.
func (s *store) shorten(dirs []string) ([]string, error) {
	links := make([]string, 0, len(dirs))
	length := 0
	if err := os.MkdirAll(filepath.Join(s.root, "l"), 0o700); err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		link := filepath.Join(s.root, "l", filepath.Base(filepath.Dir(dir)))
		if err := os.Symlink(dir, link); err != nil && !os.IsExist(err) {
			return nil, fmt.Errorf("link layer: %w", err)
		}
		links = append(links, link)
		length += len(link) + 1
	}
	if length > s.lowersLimit() {
		return nil, fmt.Errorf("%d layers do not fit into the options of one mount: %w", len(dirs),
			errdefs.ErrFailedPrecondition)
	}
	return links, nil
}
