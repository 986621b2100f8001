package imageservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/trace"
)

// The writable layer of a container is a directory:
//
//	containers/<container id>/use.json    which image it is on top of
//	containers/<container id>/fs/         overlay's upper directory
//	containers/<container id>/work/       overlay's work directory
//	containers/<container id>/empty/      lowest layer of a volume of one layer (volume.go); made when needed
//
// It appears with one rename, complete, and goes with one rename, into trash/. The overlay snapshotter could make it,
// in three transactions of two databases. It is made here because each of them is an fsync, or without fsync the risk
// that a power cut damages the databases and takes all images along; and because the snapshotter holds its write
// transaction while it measures a layer that was just unpacked, so that a pull would delay every container start. A
// writable layer need not survive a power cut: pods die with the node.

const (
	useVersion = 1
	useFile    = "use.json"
	unfinished = "new-"
	upperMode  = 0o755 // of the root directory of an image without layers
	workMode   = 0o711
)

// use is the content of use.json.
type use struct {
	Version int    `json:"version"`
	ImageID string `json:"imageID"`
	ChainID string `json:"chainID,omitempty"`
	// Volumes are the images that the container has as volumes, by the reference that it named them by (volume.go).
	Volumes map[string]volumeUse `json:"volumes,omitempty"`
}

// images calls f with each image that is used.
func (u use) images(f func(imageID, chainID string)) {
	f(u.ImageID, u.ChainID)
	for _, volume := range u.Volumes {
		f(volume.ImageID, volume.ChainID)
	}
}

// uses says which containers have which image. It is what the garbage collection asks.
type uses struct {
	dir         string
	mu          sync.Mutex
	byContainer map[string]use
}

// Prepare makes the writable layer of a container on top of an image, or finds the one that an earlier call made, and
// returns how to mount it and the image's configuration, which is shared and must not be changed. image is any
// reference of the default handler, or the id of an image of any. Nothing is mounted. It takes no lock that is held
// across I/O and waits for no disk.
// Errors: errdefs.ErrNotFound when the store does not have the image, errdefs.ErrInvalidArgument for a bad id.
func (s *Service) Prepare(ctx context.Context, containerID, image string) ([]specs.Mount, *ocispec.Image, error) {
	if err := checkID(containerID); err != nil {
		return nil, nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, fmt.Errorf("prepare container %s: %w", containerID, err)
	}
	steps := trace.Steps(ctx)
	defer steps.End()
	steps.Next("find image")
	img, known, err := s.take(containerID, image)
	if err != nil {
		return nil, nil, fmt.Errorf("prepare container %s: %w", containerID, err)
	}
	if img == nil {
		// Prepared earlier from an image that has been removed since; its layers are still there.
		if img, err = s.loadUsed(scope(ctx), known.ImageID); err != nil {
			return nil, nil, fmt.Errorf("prepare container %s: %w", containerID, err)
		}
	}
	steps.Next("make writable layer")
	if err := s.makeLayer(containerID, img, known); err != nil {
		err = errors.Join(err, s.Release(ctx, containerID))
		return nil, nil, fmt.Errorf("prepare container %s: %w", containerID, err)
	}
	return s.mounts(containerID, img), &img.config, nil
}

// take notes that a container uses an image, before anything on disk says so: from here on the image's layers stay.
// It returns a nil image when the container has one already that is not in the index any more.
func (s *Service) take(containerID, ref string) (*image, use, error) {
	s.uses.mu.Lock()
	defer s.uses.mu.Unlock()
	x := s.index.Load()
	if known, ok := s.uses.byContainer[containerID]; ok {
		if img := x.images[known.ImageID]; img != nil {
			return img, known, nil
		}
		return nil, known, nil
	}
	e := x.findAny(ref)
	if e == nil {
		return nil, use{}, notFound(ref)
	}
	taken := use{Version: useVersion, ImageID: e.id, ChainID: e.chainID}
	s.uses.byContainer[containerID] = taken
	return e.image, taken, nil
}

// loadUsed reads an image that has no name any more.
func (s *Service) loadUsed(ctx context.Context, imageID string) (*image, error) {
	id, err := digest.Parse(imageID)
	if err != nil {
		return nil, fmt.Errorf("image id %q: %w", imageID, err)
	}
	info, err := s.store.content.Info(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("find image: %w", err)
	}
	return s.store.loadConfig(ctx, ocispec.Descriptor{Digest: id, Size: info.Size})
}

func (s *Service) layerDir(containerID string) string {
	return filepath.Join(s.uses.dir, containerID)
}

// makeLayer makes the directory, unless it is there.
func (s *Service) makeLayer(containerID string, img *image, use use) error {
	if _, err := os.Lstat(s.layerDir(containerID)); err == nil {
		return nil
	}
	tmp, err := os.MkdirTemp(s.uses.dir, unfinished)
	if err != nil {
		return err
	}
	if err := fillLayer(tmp, img, s.store.tree(img.lowers), use); err != nil {
		return errors.Join(err, os.RemoveAll(tmp))
	}
	err = os.Rename(tmp, s.layerDir(containerID))
	if errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.ENOTEMPTY) {
		return os.RemoveAll(tmp) // another call made it first
	}
	return err
}

func fillLayer(dir string, img *image, t tree, use use) error {
	record, err := json.Marshal(use)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, useFile), record, 0o600); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, "work"), workMode); err != nil {
		return err
	}
	upper := filepath.Join(dir, "fs")
	if err := os.Mkdir(upper, upperMode); err != nil {
		return err
	}
	// The root directory that a container sees has the attributes of the upper one.
	if err := copyAttributes(place{dirs: img.lowers}, upper); err != nil {
		return err
	}
	return makeVolumeDirs(upper, img, t)
}

// copyAttributes gives a directory the mode and the owner that an image's has.
func copyAttributes(from place, dir string) error {
	mode, uid, gid := fs.FileMode(upperMode), 0, 0
	if len(from.dirs) > 0 {
		info, err := os.Stat(from.dirs[0])
		if err != nil {
			return fmt.Errorf("read layer of image: %w", err)
		}
		stat := info.Sys().(*syscall.Stat_t)
		mode, uid, gid = info.Mode(), int(stat.Uid), int(stat.Gid)
	}
	if err := os.Chown(dir, uid, gid); err != nil {
		return err
	}
	return os.Chmod(dir, mode)
}

func (s *Service) mounts(containerID string, img *image) []specs.Mount {
	dir := s.layerDir(containerID)
	upper := filepath.Join(dir, "fs")
	if len(img.lowers) == 0 {
		return []specs.Mount{{Type: "bind", Source: upper, Options: []string{"rbind", "rw"}}}
	}
	options := []string{
		"workdir=" + filepath.Join(dir, "work"),
		"upperdir=" + upper,
		"lowerdir=" + strings.Join(img.lowers, ":"),
	}
	return []specs.Mount{{Type: "overlay", Source: "overlay", Options: append(options, s.store.overlayOptions...)}}
}

// Release removes the writable layer of a container. The space is free when it returns, or if ctx ends before, soon
// after: the kubelet evicts a pod if what it removed has brought nothing. It is idempotent and safe without Prepare.
// Preconditions: the layer is not mounted any more.
func (s *Service) Release(ctx context.Context, containerID string) error {
	cleanings, err := s.release(containerID)
	for _, ends := range cleanings {
		s.wait(ctx, ends)
	}
	return err
}

// release is Release without the wait: it returns what to wait for.
func (s *Service) release(containerID string) (cleanings []<-chan struct{}, err error) {
	if err := checkID(containerID); err != nil {
		return nil, err
	}
	name := containerID + "-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	err = os.Rename(s.layerDir(containerID), filepath.Join(s.trash(), name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("release container %s: %w", containerID, err)
	}
	s.uses.mu.Lock()
	gone, ok := s.uses.byContainer[containerID]
	delete(s.uses.byContainer, containerID)
	listed := true
	gone.images(func(imageID, _ string) {
		_, found := s.index.Load().images[imageID]
		listed = listed && found
	})
	s.uses.mu.Unlock()
	if err == nil {
		cleanings = append(cleanings, s.emptying.soon())
	}
	if ok && !listed { // it may have been the last that kept the layers of a removed image
		cleanings = append(cleanings, s.collection.soon())
	}
	return cleanings, nil
}

// Retain removes the writable layer of every container that is not in containerIDs. It tries all of them, and the space
// is freed soon after.
func (s *Service) Retain(_ context.Context, containerIDs []string) error {
	keep := map[string]bool{}
	for _, id := range containerIDs {
		keep[id] = true
	}
	entries, err := os.ReadDir(s.uses.dir)
	if err != nil {
		return fmt.Errorf("list writable layers: %w", err)
	}
	for _, entry := range entries {
		if !keep[entry.Name()] && !strings.HasPrefix(entry.Name(), unfinished) {
			_, failed := s.release(entry.Name())
			err = errors.Join(err, failed)
		}
	}
	return err
}

func (s *Service) trash() string { return filepath.Join(s.config.Root, "trash") }

// emptyTrash frees the space of writable layers that were released.
func (s *Service) emptyTrash(ctx context.Context) error {
	entries, err := os.ReadDir(s.trash())
	if err != nil {
		return fmt.Errorf("list trash: %w", err)
	}
	for _, entry := range entries {
		if ctx.Err() != nil {
			return nil
		}
		err = errors.Join(err, os.RemoveAll(filepath.Join(s.trash(), entry.Name())))
	}
	return err
}

// scanContainers learns from the disk which containers use which images. A layer whose record cannot be read keeps
// nothing from collection, but it stays, for Release.
func (s *Service) scanContainers() error {
	for _, dir := range []string{s.uses.dir, s.trash()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(s.uses.dir)
	if err != nil {
		return fmt.Errorf("list writable layers: %w", err)
	}
	s.uses.mu.Lock()
	defer s.uses.mu.Unlock()
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), unfinished) {
			if err := os.RemoveAll(s.layerDir(entry.Name())); err != nil {
				return err
			}
			continue
		}
		var found use
		raw, err := os.ReadFile(filepath.Join(s.layerDir(entry.Name()), useFile))
		if err == nil {
			err = json.Unmarshal(raw, &found)
		}
		if err != nil {
			klog.ErrorS(err, "Record of a writable layer cannot be read", "container", entry.Name())
			continue
		}
		s.uses.byContainer[entry.Name()] = found
	}
	return nil
}

// checkID keeps an id from being a path. Errors: errdefs.ErrInvalidArgument.
func checkID(containerID string) error {
	if containerID == "" || strings.ContainsAny(containerID, "/\x00") || strings.HasPrefix(containerID, ".") ||
		strings.HasPrefix(containerID, unfinished) {
		return fmt.Errorf("container id %q: expected a file name: %w", containerID, errdefs.ErrInvalidArgument)
	}
	return nil
}

// resourceContainer is the type under which containers appear in the garbage collection.
const resourceContainer = metadata.ResourceMount + 1

// collector tells the garbage collection which images containers use.
type collector struct{ uses *uses }

// StartCollection begins one run.
func (c collector) StartCollection(context.Context) (metadata.CollectionContext, error) {
	return c, nil
}

// ReferenceLabel is empty: nothing refers to containers.
func (c collector) ReferenceLabel() string { return "" }

// All sends nothing: writable layers are not collected, but released.
func (c collector) All(func(gc.Node)) {}

// Active sends what containers need: the configurations of their images, and their layers.
func (c collector) Active(ns string, send func(gc.Node)) {
	if ns != namespace {
		return
	}
	c.uses.mu.Lock()
	defer c.uses.mu.Unlock()
	for _, use := range c.uses.byContainer {
		use.images(func(imageID, chainID string) {
			send(gc.Node{Type: metadata.ResourceContent, Namespace: ns, Key: imageID})
			if chainID != "" {
				send(gc.Node{Type: metadata.ResourceSnapshot, Namespace: ns, Key: snapshotterName + "/" + chainID})
			}
		})
	}
}

// Leased sends nothing: containers have no leases.
func (c collector) Leased(string, string, func(gc.Node)) {}

// Remove is never called, as All sends nothing.
func (c collector) Remove(gc.Node) {}

// Cancel ends a run that failed.
func (c collector) Cancel() error { return nil }

// Finish ends a run.
func (c collector) Finish() error { return nil }
