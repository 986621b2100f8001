package imageservice

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

const (
	namespace       = "gantry"
	snapshotterName = "overlayfs"
	// upperdirLabel is where the overlay snapshotter tells the directory of a layer.
	upperdirLabel = "containerd.io/snapshot/overlay.upperdir"
	leaseLifetime = 24 * time.Hour
	lockTimeout   = 2 * time.Second
)

// store is containerd's storage, put together: names and leases (db), blobs (content), layers (snapshots).
//
//	<root>/meta.db               image names, leases, what refers to what
//	<root>/content/              blobs by digest
//	<root>/snapshots/            unpacked layers, with a database of their own
//	<root>/l/                    short names for layers of images that have very many
//	<root>/containers/           writable layers of containers (container.go)
//	<root>/trash/                writable layers on their way out
//	<root>/damaged-*/            databases that could not be read, and the layers that belong to them (damage.go)
type store struct {
	root      string
	db        *metadata.DB
	content   content.Store
	snapshots snapshots.Snapshotter
	backend   snapshots.Snapshotter
	images    images.Store
	leases    leases.Manager
	applier   diff.Applier
	// overlayOptions are the options that every overlay mount on this host and disk needs.
	overlayOptions []string
}

func openStore(root string) (*store, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	if err := replaceDamaged(root); err != nil {
		return nil, err
	}
	// Partial downloads are not resumed by another process, and the links are made anew as images are loaded.
	for _, dir := range []string{filepath.Join("content", "ingest"), "l"} {
		if err := os.RemoveAll(filepath.Join(root, dir)); err != nil {
			return nil, err
		}
	}
	blobs, err := local.NewStore(filepath.Join(root, "content"))
	if err != nil {
		return nil, fmt.Errorf("open content store: %w", err)
	}
	layers, err := overlay.NewSnapshotter(filepath.Join(root, "snapshots"), overlay.AsynchronousRemove,
		overlay.WithUpperdirLabel)
	if err != nil {
		return nil, fmt.Errorf("open snapshotter: %w", err)
	}
	bdb, err := openDatabase(filepath.Join(root, "meta.db"))
	if err != nil {
		layers.Close()
		return nil, err
	}
	db := metadata.NewDB(bdb, blobs, map[string]snapshots.Snapshotter{snapshotterName: layers})
	s := &store{
		root: root, db: db, backend: layers,
		content:   db.ContentStore(),
		snapshots: db.Snapshotter(snapshotterName),
		images:    metadata.NewImageStore(db),
		leases:    metadata.NewLeaseManager(db),
		applier:   apply.NewFileSystemApplier(db.ContentStore()),
	}
	if err := db.Init(context.Background()); err != nil {
		s.close()
		return nil, fmt.Errorf("initialise metadata: %w", err)
	}
	s.overlayOptions = overlayOptions(root)
	return s, nil
}

func openDatabase(path string) (*bolt.DB, error) {
	options := *bolt.DefaultOptions
	options.Timeout = lockTimeout
	options.NoStatistics = true
	db, err := bolt.Open(path, 0o600, &options)
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("%s is open in another process: %w", path, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return db, nil
}

// overlayOptions mirrors what the snapshotter mounts with: index would refuse a layer that is mounted twice.
func overlayOptions(root string) []string {
	var options []string
	if _, err := os.Stat("/sys/module/overlay/parameters/index"); err == nil {
		options = append(options, "index=off")
	}
	if needed, err := overlayutils.NeedsUserXAttr(root); err == nil && needed {
		options = append(options, "userxattr")
	}
	return options
}

func (s *store) close() error {
	return errors.Join(s.db.Close(), s.backend.Close())
}

// sweep removes what an earlier process left: its leases, which protect nothing any more, and everything on disk that
// no name refers to. Preconditions: no pull runs.
func (s *store) sweep(ctx context.Context) error {
	old, err := s.leases.List(ctx)
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	for _, lease := range old {
		if err := s.leases.Delete(ctx, lease); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("delete lease %s: %w", lease.ID, err)
		}
	}
	if err := s.removeStrays(ctx); err != nil {
		return fmt.Errorf("remove directories that are no layers: %w", err)
	}
	if err := s.markDirty(ctx); err != nil {
		return fmt.Errorf("mark image store for collection: %w", err)
	}
	if _, err := s.db.GarbageCollect(ctx); err != nil {
		return fmt.Errorf("collect image garbage: %w", err)
	}
	return nil
}

// removeStrays removes the directories of layers that are not in the database. A process that dies between the rename
// of such a directory and the commit of its number leaves one that has the number of the next layer, which could then
// not be made. Preconditions: no pull runs.
func (s *store) removeStrays(ctx context.Context) error {
	cleaner, ok := s.backend.(snapshots.Cleaner)
	if !ok {
		return nil
	}
	err := cleaner.Cleanup(ctx)
	if !errdefs.IsNotFound(err) {
		return err
	}
	// The database has no table of layers yet: none was ever committed.
	strays, err := filepath.Glob(filepath.Join(s.root, "snapshots", "snapshots", "*"))
	for _, dir := range strays {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}

// markDirty makes the next collection compare directories with the database. It does so only for the kinds of which
// something was deleted, and a process that dies between the two leaves files that no deletion will ever announce.
func (s *store) markDirty(ctx context.Context) error {
	const key = "sweep"
	if _, err := s.snapshots.Prepare(ctx, key, ""); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	if err := s.snapshots.Remove(ctx, key); err != nil {
		return err
	}
	blob := ocispec.Descriptor{Digest: digest.FromString(key), Size: int64(len(key))}
	if err := content.WriteBlob(ctx, s.content, key, bytes.NewReader([]byte(key)), blob); err != nil {
		return err
	}
	return s.content.Delete(ctx, blob.Digest)
}

// lease protects everything that is written with the returned context from collection until release is called.
func (s *store) lease(ctx context.Context) (_ context.Context, release func(), _ error) {
	lease, err := s.leases.Create(ctx, leases.WithRandomID(), leases.WithExpiration(leaseLifetime))
	if err != nil {
		return nil, nil, fmt.Errorf("create lease: %w", err)
	}
	release = func() {
		// A lease that cannot be deleted expires, and the next Open deletes it.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), background)
		defer cancel()
		_ = s.leases.Delete(ctx, lease)
	}
	return leases.WithLease(ctx, lease.ID), release, nil
}

// sync brings everything that was written below root to the disk: unpacked files are written without it.
func (s *store) sync() error {
	dir, err := os.Open(s.root)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("sync filesystem of %s: %w", s.root, err)
	}
	return nil
}
