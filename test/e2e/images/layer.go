package images

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"path"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// entry is one entry of a layer.
type entry struct {
	name string // without leading slash
	mode int64  // permission bits with setuid, setgid and sticky as in stat(2)
	body []byte // content of a file
	// link is the target of a hard link, symlink that of a symbolic one; both empty means file or directory.
	link, symlink string
	dir           bool
	uid, gid      int
}

func dir(name string, mode int64) entry { return entry{name: name, mode: mode, dir: true} }
func file(name string, mode int64, body []byte) entry {
	return entry{name: name, mode: mode, body: body}
}
func text(name, body string) entry   { return file(name, 0o644, []byte(body)) }
func script(name, body string) entry { return file(name, 0o755, []byte("#!/bin/sh\n"+body)) }

// newLayer makes a layer of the entries, in their order. The same entries give the same digest.
func newLayer(entries []entry) (v1.Layer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	dirs := map[string]bool{}
	for _, e := range entries {
		if e.dir && dirs[e.name] {
			continue // CRI-O takes no layer that has a path twice
		}
		dirs[e.name] = e.dir
		if err := w.WriteHeader(e.header()); err != nil {
			return nil, fmt.Errorf("write layer entry %s: %w", e.name, err)
		}
		if _, err := w.Write(e.body); err != nil {
			return nil, fmt.Errorf("write layer entry %s: %w", e.name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("close layer: %w", err)
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(buf.Bytes())), nil
	})
}

func (e entry) header() *tar.Header {
	h := &tar.Header{
		Name: path.Clean(e.name), Mode: e.mode, Uid: e.uid, Gid: e.gid,
		Typeflag: tar.TypeReg, Size: int64(len(e.body)), Format: tar.FormatPAX,
	}
	switch {
	case e.dir:
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
	case e.link != "":
		h.Typeflag, h.Linkname = tar.TypeLink, e.link
	case e.symlink != "":
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.symlink
	}
	return h
}
