package imageservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// volumeUse is an image that a container has as a volume.
type volumeUse struct {
	ImageID string `json:"imageID"`
	ChainID string `json:"chainID,omitempty"`
	// Ref is the image's reference by digest, for the container's status.
	Ref string `json:"ref"`
}

// PrepareVolume returns the mount (Destination unused) that shows subPath of an image, a directory or a regular file,
// or all of it when empty, read-only, and the image's reference by digest, or id where it has none. Nothing is mounted:
// the mount is for the container's own namespace and ends with it. The image's layers stay until Release of the
// container. A later call with the same image gets what the first got, also when the image has been removed or its name
// has moved. Preconditions: Prepare for the same container.
// Errors: errdefs.ErrNotFound when the store does not have the image, errdefs.ErrInvalidArgument when the image has no
// such subPath.
func (s *Service) PrepareVolume(
	ctx context.Context, containerID, image, subPath string,
) (mount specs.Mount, ref string, err error) {
	fail := func(err error) (specs.Mount, string, error) {
		return specs.Mount{}, "", fmt.Errorf("prepare image %q as a volume: %w", image, err)
	}
	if err := checkID(containerID); err != nil {
		return fail(err)
	}
	// Two calls for one container would write the same record.
	key := "container " + containerID
	if err := s.locks.Lock(ctx, key); err != nil {
		return fail(err)
	}
	defer s.locks.Unlock(key)
	img, volume, err := s.takeVolume(ctx, containerID, image)
	if err != nil {
		return fail(err)
	}
	at, err := s.volumePlace(img, subPath)
	if err != nil {
		return fail(err)
	}
	mount, err = s.volumeMount(containerID, at)
	if err != nil {
		return fail(err)
	}
	return mount, volume.Ref, nil
}

// takeVolume notes that a container uses an image: in memory first, so that from then on the layers stay, then on disk.
func (s *Service) takeVolume(ctx context.Context, containerID, ref string) (*image, volumeUse, error) {
	img, volume, record, err := s.noteVolume(containerID, ref)
	if err != nil {
		return nil, volumeUse{}, err
	}
	if img == nil {
		if img, err = s.loadUsed(scope(ctx), volume.ImageID); err != nil {
			return nil, volumeUse{}, err
		}
	}
	if record != nil {
		if err := writeUse(s.layerDir(containerID), *record); err != nil {
			return nil, volumeUse{}, err
		}
	}
	return img, volume, nil
}

// noteVolume returns a nil image when that is not in the index any more, and a nil record when nothing has changed.
func (s *Service) noteVolume(containerID, ref string) (*image, volumeUse, *use, error) {
	s.uses.mu.Lock()
	defer s.uses.mu.Unlock()
	known, ok := s.uses.byContainer[containerID]
	if !ok {
		err := fmt.Errorf("container %s has no writable layer: %w", containerID, errdefs.ErrFailedPrecondition)
		return nil, volumeUse{}, nil, err
	}
	if volume, ok := known.Volumes[ref]; ok {
		if img := s.index.Load().images[volume.ImageID]; img != nil {
			return img, volume, nil, nil
		}
		return nil, volume, nil, nil
	}
	e := s.index.Load().findAny(ref)
	if e == nil {
		return nil, volumeUse{}, nil, notFound(ref)
	}
	volume := volumeUse{ImageID: e.id, ChainID: e.chainID, Ref: e.digestRef(ref)}
	volumes := maps.Clone(known.Volumes) // others may be reading it
	if volumes == nil {
		volumes = map[string]volumeUse{}
	}
	volumes[ref] = volume
	known.Volumes = volumes
	s.uses.byContainer[containerID] = known
	return e.image, volume, &known, nil
}

// writeUse replaces the record of a writable layer.
func writeUse(dir string, record use) error {
	raw, err := json.Marshal(record)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, "."+useFile)
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, useFile))
}

// volumePlace is what a sub-path of an image leads to.
func (s *Service) volumePlace(img *image, subPath string) (place, error) {
	at, missing, err := s.store.tree(img.lowers).find(subPath)
	if len(missing) > 0 {
		err = fs.ErrNotExist
	}
	if err != nil {
		return place{}, fmt.Errorf("sub-path %q: expected a directory or a regular file of the image: %w: %w", subPath, err,
			errdefs.ErrInvalidArgument)
	}
	return at, nil
}

// volumeMount shows a file of a layer, or directories of layers. It is an overlay for one directory too, on an empty
// one then: what an image deleted and what overlay wrote into a layer stays hidden, and the kernel wants two.
func (s *Service) volumeMount(containerID string, at place) (specs.Mount, error) {
	if at.file != "" {
		return specs.Mount{Type: "bind", Source: at.file, Options: []string{"bind", "ro"}}, nil
	}
	dirs := at.dirs
	if len(dirs) < 2 {
		empty := filepath.Join(s.layerDir(containerID), "empty")
		if err := os.Mkdir(empty, upperMode); err != nil && !errors.Is(err, fs.ErrExist) {
			return specs.Mount{}, err
		}
		if len(dirs) == 0 { // an image without layers
			return specs.Mount{Type: "bind", Source: empty, Options: []string{"rbind", "ro"}}, nil
		}
		dirs = []string{dirs[0], empty}
	}
	escaped := make([]string, len(dirs))
	for i, dir := range dirs {
		escaped[i] = overlayEscaper.Replace(dir)
	}
	lower := "lowerdir=" + strings.Join(escaped, ":")
	if len(lower) > maxLowerOption {
		return specs.Mount{}, fmt.Errorf("%d layers with long paths do not fit into the options of one mount: %w",
			len(dirs), errdefs.ErrFailedPrecondition)
	}
	options := append([]string{"ro", lower}, s.store.overlayOptions...)
	return specs.Mount{Type: "overlay", Source: "overlay", Options: options}, nil
}

// maxLowerOption is what one page, the kernel's limit for mount options, leaves beside the other options, of which an
// SELinux context is the longest.
const maxLowerOption = 4096 - 512

// overlayEscaper writes a path so that overlay does not take a character for the end of it.
var overlayEscaper = strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`)

// makeVolumeDirs makes, in a writable layer, the directories that an image declares as volumes and does not have. They
// are ordinary directories of the container: what the image has there is seen, and what is written there goes with the
// container. Who wants to keep it, or to write there below a read-only root, mounts something else there.
func makeVolumeDirs(upper string, img *image, t tree) error {
	for _, volume := range slices.Sorted(maps.Keys(img.config.Config.Volumes)) {
		at, missing, err := t.find(volume)
		if err != nil || len(missing) == 0 {
			continue // there already; or below a file, which is the image's own doing
		}
		if err := mirror(upper, at.path, t); err != nil {
			return fmt.Errorf("make volume %q: %w", volume, err)
		}
		if err := os.MkdirAll(filepath.Join(upper, at.path, filepath.Join(missing...)), upperMode); err != nil {
			return fmt.Errorf("make volume: %w", err)
		}
	}
	return nil
}

// mirror makes a directory of a tree, and those above it, in a writable layer, where each decides the attributes of
// what is seen. There is no symbolic link in dir.
func mirror(upper, dir string, t tree) error {
	if dir == "/" {
		return nil
	}
	if err := mirror(upper, filepath.Dir(dir), t); err != nil {
		return err
	}
	err := os.Mkdir(filepath.Join(upper, dir), upperMode)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	at, _, err := t.find(dir)
	if err != nil {
		return err
	}
	return copyAttributes(at, filepath.Join(upper, dir))
}
