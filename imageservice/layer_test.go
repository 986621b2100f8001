package imageservice

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

// prepared makes containers of one image.
func prepared(t *testing.T, containerIDs ...string) *Service {
	t.Helper()
	r := newRegistry(t)
	r.push(t, "app:1", small(t, "hello"))
	s := open(t)
	id := pullOK(t, s, r.host+"/app:1")
	for _, containerID := range containerIDs {
		_, _, err := s.Prepare(t.Context(), containerID, id)
		check(t, err)
	}
	return s
}

func (s *Service) rootOf(t *testing.T, containerID string, options ...string) string {
	t.Helper()
	mounts, _, err := s.Prepare(t.Context(), containerID, "")
	check(t, err)
	mounts[0].Options = append(mounts[0].Options, options...)
	return mountRootfs(t, mounts)
}

func TestLayerOfOneContainerInAnother(t *testing.T) {
	s := prepared(t, "c1", "c2")
	root := s.rootOf(t, "c1")
	check(t, os.WriteFile(filepath.Join(root, "etc/content"), []byte("changed"), 0o600))
	check(t, os.Remove(filepath.Join(root, "etc/old")))
	check(t, os.RemoveAll(filepath.Join(root, "bin")))
	check(t, os.Mkdir(filepath.Join(root, "bin"), 0o700))
	check(t, os.WriteFile(filepath.Join(root, "bin/one"), []byte("linked"), 0o644))
	check(t, os.Link(filepath.Join(root, "bin/one"), filepath.Join(root, "bin/two")))
	var layer bytes.Buffer
	check(t, s.WriteLayer(t.Context(), "c1", &layer))

	check(t, s.ReadLayer(t.Context(), "c2", &layer))
	root = s.rootOf(t, "c2")
	if got := read(t, root, "etc/content") + read(t, root, "bin/two"); got != "changedlinked" {
		t.Errorf("files %q", got)
	}
	if _, err := os.Stat(filepath.Join(root, "etc/old")); !os.IsNotExist(err) {
		t.Errorf("a file that was removed: %v", err)
	}
	entries, err := os.ReadDir(filepath.Join(root, "bin"))
	check(t, err)
	if len(entries) != 2 {
		t.Errorf("a directory that was made anew has %v", entries)
	}
}

// A layer that refers to the image for a directory that was renamed would be read without what is in it.
func TestLayerWithARenamedDirectoryIsRefused(t *testing.T) {
	s := prepared(t, "c1")
	root := s.rootOf(t, "c1", "redirect_dir=on")
	check(t, os.Rename(filepath.Join(root, "bin"), filepath.Join(root, "sbin")))
	var layer bytes.Buffer
	if err := s.WriteLayer(t.Context(), "c1", &layer); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("WriteLayer = %v, expected a failed precondition", err)
	}
}
