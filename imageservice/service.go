// Package imageservice keeps the images of a node: it pulls them from registries, unpacks them, lists and removes them,
// and gives each container a writable layer on top of one.
//
// It is containerd's libraries without containerd's daemon: blobs in the local content store, unpacked layers in the
// overlay snapshotter, names and leases in the metadata database, and its garbage collection. What a container adds,
// its writable layer, is a plain directory that no database knows (see container.go), so that starting a container
// waits neither for an fsync nor for an image that is being unpacked.
//
// An image belongs to the runtime handler that it was pulled for; handlers share all but the names.
//
// It is not a CRI server: it knows nothing of pods, gRPC or status codes, mounts nothing for containers, and has no
// policy on which images to keep. Errors are kinds of github.com/containerd/errdefs.
package imageservice

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Config says where images are kept and how they are pulled. The zero value of every field but Root has a default.
type Config struct {
	// Root is the directory that holds everything: an absolute path on a filesystem that can hold overlay upper
	// directories. It is made when it does not exist. One process at a time may have it open.
	Root string
	// RegistryConfigDir holds a directory per registry with a hosts.toml, and _default for all others. It is read again
	// at every pull. Empty: every registry is asked directly.
	RegistryConfigDir string
	// MaxConcurrentDownloads is how many layers of one image are downloaded at a time, and in how many ranges at a time
	// a big layer is. Default 3.
	MaxConcurrentDownloads int
	// MaxConcurrentUnpacks is how many layers of one image are unpacked at a time. Default: one per processor.
	MaxConcurrentUnpacks int
	// PullProgressTimeout is how long a registry may send nothing before the pull fails. Default one minute.
	PullProgressTimeout time.Duration
	// PinnedImages are images that the kubelet must not remove to free space: names, in any form, or beginnings of full
	// names that end in "*".
	PinnedImages []string
}

const (
	defaultDownloads       = 3
	defaultProgressTimeout = time.Minute
	// background is a bound on what goes on without whoever asked: one garbage collection, one cleaning up after a failed
	// pull.
	background = 5 * time.Minute
)

func (c Config) complete() (Config, error) {
	if !filepath.IsAbs(c.Root) {
		return c, fmt.Errorf("image root %q: expected an absolute path: %w", c.Root, errdefs.ErrInvalidArgument)
	}
	c.Root = filepath.Clean(c.Root)
	if c.MaxConcurrentDownloads <= 0 {
		c.MaxConcurrentDownloads = defaultDownloads
	}
	if c.MaxConcurrentUnpacks <= 0 {
		c.MaxConcurrentUnpacks = runtime.NumCPU()
	}
	if c.PullProgressTimeout <= 0 {
		c.PullProgressTimeout = defaultProgressTimeout
	}
	return c, nil
}

// Service is the image store of a node. Make it with Open. All methods may be called from several goroutines.
//
// Persisted below Config.Root: image names, blobs, unpacked layers, writable layers of containers. In memory only: the
// index, which is rebuilt from the names by Open, and pulls in flight, which do not outlive the process.
type Service struct {
	config Config
	store  *store
	locks  unpack.KeyedLocker

	// ctx ends when Close is called; work counts the goroutines that Close waits for.
	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup

	// collection frees what images needed, emptying what containers wrote. collecting is held by whoever collects.
	collection, emptying *rounds
	collecting           sync.Mutex
	diskUsage            atomic.Pointer[diskUsage]

	// names serialises changes of image names, and with them of the index. It is held across I/O; nothing on the way of
	// a container start takes it.
	names  sync.Mutex
	loaded map[digest.Digest]*image // by digest of the target; guarded by names

	// index is what List and Status read. It changes under both names and uses.mu, so that a container that found its
	// image in the index is known to the garbage collection that follows the image's removal.
	index atomic.Pointer[index]
	uses  uses
	// pinned never changes.
	pinned pins

	pulls pulls
}

// Open opens the image store below config.Root, making it when it does not exist, and removes what pulls of an earlier
// process left half-done. When a database in it is damaged, the store is moved aside and an empty one is made, with an
// error in the log: images can be pulled again. Errors: errdefs.ErrInvalidArgument for a bad config,
// errdefs.ErrFailedPrecondition when another process has the store.
func Open(ctx context.Context, config Config) (*Service, error) {
	config, err := config.complete()
	if err != nil {
		return nil, err
	}
	quietOnce()
	s := &Service{
		config:     config,
		locks:      newKeyedMutex(),
		collection: newRounds(),
		emptying:   newRounds(),
		loaded:     map[digest.Digest]*image{},
		uses:       uses{byContainer: map[string]use{}, dir: filepath.Join(config.Root, "containers")},
		pulls:      pulls{running: map[string]*pull{}},
	}
	s.index.Store(&index{})
	if s.pinned, err = newPins(config.PinnedImages); err != nil {
		return nil, err
	}
	ctx = scope(ctx)
	if s.store, err = openStore(config.Root); err != nil {
		return nil, fmt.Errorf("open image store %s: %w", config.Root, err)
	}
	s.store.db.RegisterCollectibleResource(resourceContainer, collector{&s.uses})
	if err := s.restore(ctx); err != nil {
		s.store.close()
		return nil, fmt.Errorf("open image store %s: %w", config.Root, err)
	}
	s.ctx, s.stop = context.WithCancel(scope(context.Background()))
	s.repeat(s.collection, s.collect)
	s.repeat(s.emptying, s.emptyTrash)
	s.emptying.soon()
	return s, nil
}

// restore brings memory and disk in line: writable layers first, because they keep layers from being collected.
func (s *Service) restore(ctx context.Context) error {
	if err := s.scanContainers(); err != nil {
		return err
	}
	if err := s.store.sweep(ctx); err != nil {
		return err
	}
	if err := s.restoreIndex(ctx); err != nil {
		return err
	}
	return s.refreshUsage(ctx)
}

// Close stops pulls and background work and closes the databases. Writable layers of containers stay usable.
func (s *Service) Close() error {
	s.pulls.close()
	s.stop()
	s.work.Wait()
	return s.store.close()
}

// collect frees the blobs and layers that no image name, container or running pull needs.
func (s *Service) collect(ctx context.Context) error {
	s.collecting.Lock() // the usage of an earlier one must not replace that of a later one
	defer s.collecting.Unlock()
	if _, err := s.store.db.GarbageCollect(ctx); err != nil {
		return fmt.Errorf("collect image garbage: %w", err)
	}
	return s.refreshUsage(ctx)
}

// scope gives a context what containerd's libraries expect to find in it.
func scope(ctx context.Context) context.Context {
	return quiet(namespaces.WithNamespace(ctx, namespace))
}
