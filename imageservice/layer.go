package imageservice

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/containerd/containerd/v2/pkg/archive"
	continuity "github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// WriteLayer writes what a container has changed of its image, as the tar of an image's layer: what was deleted is
// there as whiteouts. The container must not change it meanwhile.
// Errors: errdefs.ErrInvalidArgument for a bad id; errdefs.ErrFailedPrecondition when the layer has a part of a file
// only, which a tar cannot say.
func (s *Service) WriteLayer(ctx context.Context, containerID string, w io.Writer) error {
	if err := checkID(containerID); err != nil {
		return err
	}
	upper := filepath.Join(s.layerDir(containerID), "fs")
	out := archive.NewChangeWriter(contextWriter{ctx, w}, upper)
	err := filepath.WalkDir(upper, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == upper {
			return err
		}
		return writeChange(out, upper, path)
	})
	if err == nil {
		err = out.Close()
	}
	if err != nil {
		return fmt.Errorf("write layer of container %s: %w", containerID, err)
	}
	return nil
}

// writeChange writes one file of an overlay's upper directory. Overlay keeps what was deleted as a device 0/0, and
// marks a directory that hides the one below it as opaque.
func writeChange(out *archive.ChangeWriter, upper, path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	name := path[len(upper):]
	// On kernels that are built or told to, a renamed directory of the image stays where it was and is referred to, and a
	// file whose attributes alone were changed has no content here.
	for _, attribute := range []string{"trusted.overlay.redirect", "trusted.overlay.metacopy"} {
		if _, err := unix.Lgetxattr(path, attribute, nil); err == nil {
			return fmt.Errorf("%s has %s, expected overlay's redirect_dir and metacopy to be off: %w", name, attribute,
				errdefs.ErrFailedPrecondition)
		}
	}
	if stat := info.Sys().(*syscall.Stat_t); info.Mode()&fs.ModeCharDevice != 0 && stat.Rdev == 0 {
		return out.HandleChange(continuity.ChangeKindDelete, name, nil, nil)
	}
	if err := out.HandleChange(continuity.ChangeKindAdd, name, info, nil); err != nil || !info.IsDir() {
		return err
	}
	var value [1]byte
	if n, _ := unix.Lgetxattr(path, "trusted.overlay.opaque", value[:]); n == 1 && value[0] == 'y' {
		return out.HandleChange(continuity.ChangeKindDelete, filepath.Join(name, ".wh..opq"), nil, nil)
	}
	return nil
}

// ReadLayer puts what WriteLayer wrote into the writable layer of another container of the same image. It comes after
// Prepare and before the layer is mounted.
// Errors: errdefs.ErrInvalidArgument for a bad id.
func (s *Service) ReadLayer(ctx context.Context, containerID string, r io.Reader) error {
	if err := checkID(containerID); err != nil {
		return err
	}
	upper := filepath.Join(s.layerDir(containerID), "fs")
	if _, err := archive.Apply(ctx, upper, r, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout)); err != nil {
		return fmt.Errorf("read layer of container %s: %w", containerID, err)
	}
	return nil
}

// contextWriter writes until its context ends.
type contextWriter struct {
	ctx context.Context
	w   io.Writer
}

func (w contextWriter) Write(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.w.Write(p)
}
