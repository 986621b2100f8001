package imageservice

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// diskUsage is what images take, as of the last change.
type diskUsage struct {
	bytes, inodes uint64
}

// FsInfo returns what images, blobs and unpacked layers, take on the disk. The writable layers of containers are not in
// it. It only reads memory: the sizes are known to the databases and are summed up after each change.
func (s *Service) FsInfo() *runtime.FilesystemUsage {
	usage := s.diskUsage.Load()
	return &runtime.FilesystemUsage{
		Timestamp:  time.Now().UnixNano(),
		FsId:       &runtime.FilesystemIdentifier{Mountpoint: s.config.Root},
		UsedBytes:  &runtime.UInt64Value{Value: usage.bytes},
		InodesUsed: &runtime.UInt64Value{Value: usage.inodes},
	}
}

// refreshUsage sums up what the databases know. Only finished layers are in it: measuring one that is being unpacked
// would walk the disk.
func (s *Service) refreshUsage(ctx context.Context) error {
	var sum diskUsage
	err := s.store.content.Walk(ctx, func(blob content.Info) error {
		sum.bytes += uint64(blob.Size)
		sum.inodes++
		return nil
	})
	if err != nil {
		return fmt.Errorf("sum up blobs: %w", err)
	}
	var layers []string
	err = s.store.backend.Walk(ctx, func(_ context.Context, layer snapshots.Info) error {
		if layer.Kind == snapshots.KindCommitted {
			layers = append(layers, layer.Name)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("sum up layers: %w", err)
	}
	for _, name := range layers {
		usage, err := s.store.backend.Usage(ctx, name)
		if errdefs.IsNotFound(err) {
			continue // collected meanwhile
		}
		if err != nil {
			return fmt.Errorf("sum up layers: %w", err)
		}
		sum.bytes += uint64(usage.Size)
		sum.inodes += uint64(usage.Inodes)
	}
	s.diskUsage.Store(&sum)
	return nil
}

// Usage measures the writable layer of a container: bytes on the disk and inodes. It walks the layer, which may take
// long; ctx bounds it. Errors: errdefs.ErrNotFound without a layer, and the context's.
func (s *Service) Usage(ctx context.Context, containerID string) (bytes, inodes uint64, err error) {
	if err := checkID(containerID); err != nil {
		return 0, 0, err
	}
	linked := map[uint64]bool{}
	upper := filepath.Join(s.layerDir(containerID), "fs")
	err = filepath.WalkDir(upper, func(path string, entry fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var info fs.FileInfo
		if err == nil {
			info, err = entry.Info()
		}
		if errors.Is(err, fs.ErrNotExist) && path != upper {
			return nil // the container runs and deletes files
		}
		if err != nil {
			return err
		}
		stat := info.Sys().(*syscall.Stat_t)
		if stat.Nlink > 1 && !info.IsDir() {
			if linked[stat.Ino] {
				return nil
			}
			linked[stat.Ino] = true
		}
		bytes += uint64(stat.Blocks) * 512
		inodes++
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, fmt.Errorf("measure container %s: no writable layer: %w", containerID, errdefs.ErrNotFound)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("measure container %s: %w", containerID, err)
	}
	return bytes, inodes, nil
}
