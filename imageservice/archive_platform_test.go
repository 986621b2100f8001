package imageservice

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// What 'docker save' writes of an image that is there for one of its platforms only: the index names them all, with the
// provenance that a build adds, and the blobs of the others are missing.
func TestImportOfAnImageOfSeveralPlatforms(t *testing.T) {
	own, foreign, provenance := small(t, "own"), small(t, "foreign"), small(t, "provenance")
	on := func(img v1.Image, os, architecture string) mutate.IndexAddendum {
		return mutate.IndexAddendum{
			Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: os, Architecture: architecture}},
		}
	}
	index := mutate.AppendManifests(empty.Index, on(foreign, "linux", "s390x"), on(own, "linux", runtime.GOARCH),
		on(provenance, "unknown", "unknown"))
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	check(t, err)
	check(t, path.AppendIndex(index, layout.WithAnnotations(map[string]string{
		"io.containerd.image.name": "docker.io/library/app:1",
	})))
	for _, img := range []v1.Image{foreign, provenance} {
		digest, err := img.Digest()
		check(t, err)
		check(t, os.Remove(filepath.Join(dir, "blobs/sha256", digest.Hex)))
		id, err := img.ConfigName()
		check(t, err)
		check(t, os.Remove(filepath.Join(dir, "blobs/sha256", id.Hex)))
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	check(t, w.AddFS(os.DirFS(dir)))
	check(t, w.Close())

	s := open(t)
	refs, err := s.Import(t.Context(), &archive)
	if err != nil || !slices.Equal(refs, []string{"docker.io/library/app:1"}) {
		t.Fatalf("imported %v, %v", refs, err)
	}
	if got, ok := s.Status(named(refs[0])); !ok || got.Id != imageID(t, own) {
		t.Errorf("status %v", got)
	}
}
