package checkpoint

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// WriteArchive makes a tar of a container's directory. It appears under its name when it is complete and on disk, in
// place of a file of that name; after an error there is nothing new. Nor is there after a kill, where the filesystem
// has files without a name (NFS has not), but for one between the last two steps of replacing a file.
func WriteArchive(ctx context.Context, path, dir string) error {
	if err := writeArchive(ctx, path, dir); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	return nil
}

func writeArchive(ctx context.Context, path, dir string) error {
	f, tmp, err := createUnseen(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = writeTar(ctx, f, dir)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		return publish(f, tmp, path)
	}
	if tmp != "" {
		err = errors.Join(err, os.Remove(tmp))
	}
	return err
}

// createUnseen makes a file on the filesystem of path: without a name, so that it goes with the process, or with the
// name tmp beside path.
func createUnseen(path string) (f *os.File, tmp string, err error) {
	f, err = os.OpenFile(filepath.Dir(path), unix.O_TMPFILE|os.O_WRONLY, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
		tmp = besides(path)
		f, err = os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	}
	return f, tmp, err
}

// publish gives the file the name path, instead of tmp if it has that.
func publish(f *os.File, tmp, path string) error {
	link := func(name string) error {
		own := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
		return unix.Linkat(unix.AT_FDCWD, own, unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW)
	}
	if tmp == "" {
		if err := link(path); !errors.Is(err, unix.EEXIST) {
			return err
		}
		tmp = besides(path) // only a rename replaces
		if err := link(tmp); err != nil {
			return err
		}
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}

func besides(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+rand.Text()[:8])
}

func writeTar(ctx context.Context, w io.Writer, dir string) error {
	out := tar.NewWriter(w)
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		return addFile(ctx, out, dir, path)
	})
	if err != nil {
		return err
	}
	return out.Close()
}

func addFile(ctx context.Context, out *tar.Writer, dir, path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(path); err != nil {
			return err
		}
	}
	header, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	if header.Name, err = filepath.Rel(dir, path); err != nil {
		return err
	}
	if info.IsDir() {
		header.Name += "/"
	}
	header.Uname, header.Gname = "", ""
	if err := out.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(out, contextReader{ctx, f})
	return err
}

// contextReader reads until its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
