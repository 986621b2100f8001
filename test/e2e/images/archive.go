package images

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// WriteDockerArchive writes images of the set as 'docker save' does.
func (s *Set) WriteDockerArchive(w io.Writer, refs ...string) error {
	tagged := map[name.Tag]v1.Image{}
	for _, ref := range refs {
		tag, err := name.NewTag(ref)
		if err != nil {
			return err
		}
		if s.images[ref] == nil {
			return fmt.Errorf("image %s is not in the set", ref)
		}
		tagged[tag] = s.images[ref]
	}
	return tarball.MultiWrite(tagged, w)
}

// WriteOCIArchive writes images of the set as a tar of an OCI layout, named as buildx names them.
func (s *Set) WriteOCIArchive(w io.Writer, refs ...string) error {
	dir, err := os.MkdirTemp("", "gantry-images-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	for _, ref := range refs {
		if s.images[ref] == nil {
			return fmt.Errorf("image %s is not in the set", ref)
		}
		named := layout.WithAnnotations(map[string]string{"io.containerd.image.name": ref})
		if err := path.AppendImage(s.images[ref], named); err != nil {
			return err
		}
	}
	return tarDirectory(w, dir)
}

func tarDirectory(w io.Writer, dir string) error {
	archive := tar.NewWriter(w)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		body, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if err := archive.WriteHeader(&tar.Header{Name: rel, Mode: 0o644, Size: int64(len(body))}); err != nil {
			return err
		}
		_, err = archive.Write(body)
		return err
	})
	if err != nil {
		return err
	}
	return archive.Close()
}
