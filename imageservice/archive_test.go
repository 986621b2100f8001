package imageservice

import (
	"bytes"
	"compress/gzip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func TestExportAndImport(t *testing.T) {
	r := newRegistry(t)
	img := small(t, "hello")
	r.push(t, "app:1", img)
	r.push(t, "app:2", img)
	r.push(t, "other:1", small(t, "other"))
	s := open(t)
	id := pullOK(t, s, r.host+"/app:1")
	pullOK(t, s, r.host+"/app:2")
	pullOK(t, s, r.host+"/other:1")
	for _, c := range []struct {
		name      string
		refs, get []string
	}{
		{"tag", []string{r.host + "/app:1"}, []string{r.host + "/app:1"}},
		{"id", []string{id}, []string{r.host + "/app:1", r.host + "/app:2"}},
		{"two images", []string{r.host + "/app:1", r.host + "/other:1"},
			[]string{r.host + "/app:1", r.host + "/other:1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var archive bytes.Buffer
			check(t, s.Export(t.Context(), &archive, c.refs))
			target := open(t)
			refs, err := target.Import(t.Context(), &archive)
			check(t, err)
			slices.Sort(refs)
			if !reflect.DeepEqual(refs, c.get) {
				t.Errorf("imported %v, expected %v", refs, c.get)
			}
			got, ok := target.Status(named(r.host + "/app:1"))
			if !ok || got.Id != id {
				t.Fatalf("status %v", got)
			}
			mounts, _, err := target.Prepare(t.Context(), "c1", id)
			check(t, err)
			if content := read(t, mountRootfs(t, mounts), "etc/content"); content != "hello" {
				t.Errorf("content %q", content)
			}
		})
	}
	if err := s.Export(t.Context(), &bytes.Buffer{}, []string{"none"}); !errdefs.IsNotFound(err) {
		t.Errorf("export of unknown image: %v", err)
	}
	if err := s.Export(t.Context(), &bytes.Buffer{}, nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("export of nothing: %v", err)
	}
}

func TestImportOfDockerArchive(t *testing.T) {
	img := small(t, "hello")
	tag, err := name.NewTag("app:1")
	check(t, err)
	var plain, packed bytes.Buffer
	check(t, tarball.Write(tag, img, &plain))
	w := gzip.NewWriter(&packed)
	_, err = w.Write(plain.Bytes())
	check(t, err)
	check(t, w.Close())
	for kind, archive := range map[string][]byte{"plain": plain.Bytes(), "gzip": packed.Bytes()} {
		t.Run(kind, func(t *testing.T) {
			s := open(t)
			refs, err := s.Import(t.Context(), bytes.NewReader(archive))
			if err != nil || len(refs) != 1 || !strings.HasSuffix(refs[0], "library/app:1") {
				t.Fatalf("imported %v, %v", refs, err)
			}
			if got, ok := s.Status(named(refs[0])); !ok || got.Id != imageID(t, img) || len(got.RepoTags) != 1 {
				t.Errorf("status %v", got)
			}
		})
	}
}

func TestImportWithoutNameCanBeHadByID(t *testing.T) {
	r := newRegistry(t)
	img := small(t, "a")
	digest := r.push(t, "app:1", img)
	source := open(t)
	id := pullOK(t, source, r.host+"/app@"+digest)
	var archive bytes.Buffer
	check(t, source.Export(t.Context(), &archive, []string{id}))
	s := open(t)
	refs, err := s.Import(t.Context(), &archive)
	if err != nil || !slices.Equal(refs, []string{id}) {
		t.Fatalf("imported %v, %v", refs, err)
	}
	got, ok := s.Status(named(id))
	if !ok || len(got.RepoTags)+len(got.RepoDigests) != 0 {
		t.Errorf("status %v", got)
	}
	if _, imageRef, err := s.Resolve(named(id)); err != nil || imageRef != id {
		t.Errorf("image ref %s, %v", imageRef, err)
	}
	check(t, s.Remove(t.Context(), named(id)))
	if n := len(s.List(nil)); n != 0 {
		t.Errorf("%d images", n)
	}
}

func TestImportOfGarbageLeavesNothing(t *testing.T) {
	s := open(t)
	before := inventory(t, s)
	var whole bytes.Buffer
	tag, _ := name.NewTag("app:1")
	check(t, tarball.Write(tag, small(t, "a"), &whole))
	for kind, archive := range map[string]string{"text": strings.Repeat("garbage", 1000), "empty": "",
		"cut off": string(whole.Bytes()[:whole.Len()/2])} {
		if refs, err := s.Import(t.Context(), strings.NewReader(archive)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, %v", kind, refs, err)
		}
	}
	eventually(t, "nothing is left", func() bool { return inventory(t, s) == before })
}
