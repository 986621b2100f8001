package imageservice

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// mountVolume mounts what PrepareVolume returns.
func mountVolume(t *testing.T, s *Service, container, image, subPath string) string {
	t.Helper()
	mount, _, err := s.PrepareVolume(t.Context(), container, image, subPath)
	check(t, err)
	for i, o := range mount.Options {
		if o == "ro" {
			mount.Options = append(mount.Options[:i:i], mount.Options[i+1:]...)
		}
	}
	return mountRootfs(t, []specs.Mount{mount})
}

func TestVolumeShowsTheMergedImage(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "app:1", small(t, "hello"))
	r.push(t, "one:1", makeImage(t, "", layer(t, [2]string{"dir/", ""}, [2]string{"dir/file", "single"})))
	r.push(t, "none:1", makeImage(t, ""))
	s := open(t)
	id := pullOK(t, s, r.host+"/app:1")
	one, none := pullOK(t, s, r.host+"/one:1"), pullOK(t, s, r.host+"/none:1")
	_, _, err := s.Prepare(t.Context(), "c1", id)
	check(t, err)
	for _, root := range []string{
		filepath.Join(mountVolume(t, s, "c1", id, ""), "etc"), mountVolume(t, s, "c1", id, "etc"),
		mountVolume(t, s, "c1", id, "/bin/../etc/."),
	} {
		if got := read(t, root, "content") + read(t, root, "old"); got != "hellonew" {
			t.Errorf("%s holds %q", root, got)
		}
		if _, err := os.Lstat(filepath.Join(root, "gone")); !os.IsNotExist(err) {
			t.Errorf("%s shows what the image deleted: %v", root, err)
		}
		if err := os.WriteFile(filepath.Join(root, "content"), nil, 0o644); err != syscall.EROFS && !strings.Contains(err.Error(), "read-only") {
			t.Errorf("write gives %v", err)
		}
	}
	if got := read(t, mountVolume(t, s, "c1", one, "dir"), "file"); got != "single" {
		t.Errorf("image of one layer holds %q", got)
	}
	if found, err := os.ReadDir(mountVolume(t, s, "c1", none, "")); err != nil || len(found) > 0 {
		t.Errorf("image without layers holds %v, %v", found, err)
	}
}

func TestVolumeOfASingleFile(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "app:1", small(t, "hello"))
	s := open(t)
	id := pullOK(t, s, r.host+"/app:1")
	_, _, err := s.Prepare(t.Context(), "c1", id)
	check(t, err)
	for sub, want := range map[string]string{"etc/content": "hello", "/bin/../etc/old": "new"} {
		mount, _, err := s.PrepareVolume(t.Context(), "c1", id, sub)
		check(t, err)
		if got, err := os.ReadFile(mount.Source); mount.Type != "bind" || string(got) != want || err != nil {
			t.Errorf("%s is %+v with %q, %v; expected %q", sub, mount, got, err, want)
		}
		if strings.Join(mount.Options, " ") != "bind ro" {
			t.Errorf("options of %s: %q", sub, mount.Options)
		}
	}
}

func TestVolumeRejects(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "app:1", small(t, "hello"))
	s := open(t)
	id := pullOK(t, s, r.host+"/app:1")
	if _, _, err := s.PrepareVolume(t.Context(), "c1", id, ""); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("without Prepare: %v", err)
	}
	_, _, err := s.Prepare(t.Context(), "c1", id)
	check(t, err)
	if _, _, err := s.PrepareVolume(t.Context(), "c1", "other:1", ""); !errdefs.IsNotFound(err) {
		t.Errorf("unknown image: %v", err)
	}
	for _, sub := range []string{"missing", "etc/old/", "etc/old/..", "etc/gone", "etc/old/x", "../missing", "missing/../missing"} {
		_, _, err := s.PrepareVolume(t.Context(), "c1", id, sub)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), `"`+sub+`"`) {
			t.Errorf("sub-path %q: %v", sub, err)
		}
	}
}

func TestVolumeOutlivesItsImageAndTheProcess(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "app:1", small(t, "app"))
	digest := r.push(t, "data:1", small(t, "data"))
	root := filepath.Join(t.TempDir(), "images")
	s := open(t, at(root))
	app, data := pullOK(t, s, r.host+"/app:1"), pullOK(t, s, r.host+"/data:1")
	_, _, err := s.Prepare(t.Context(), "c1", app)
	check(t, err)
	mountVolume(t, s, "c1", data, "etc")
	check(t, s.Remove(t.Context(), named(data)))
	check(t, s.collect(scope(t.Context())))
	check(t, s.Close())

	s = open(t, at(root))
	if _, ok := s.Status(named(data)); ok {
		t.Error("removed image is back")
	}
	_, _, err = s.Prepare(t.Context(), "c1", app)
	check(t, err)
	mount, ref, err := s.PrepareVolume(t.Context(), "c1", data, "etc")
	check(t, err)
	if want := r.host + "/data@" + digest; ref != want {
		t.Errorf("reference %q, expected %q", ref, want)
	}
	mount.Options = mount.Options[1:]
	if got := read(t, mountRootfs(t, []specs.Mount{mount}), "content"); got != "data" {
		t.Errorf("content %q", got)
	}
	layers := inventory(t, s).layers
	check(t, s.Release(t.Context(), "c1"))
	if left := inventory(t, s).layers; left >= layers {
		t.Errorf("%d layers are left of %d", left, layers)
	}
	if _, _, err := s.PrepareVolume(t.Context(), "c1", data, ""); err == nil {
		t.Error("released container still has its volume")
	}
}

// fakeLayers makes a tree of directories; a name with "=>" is a symbolic link.
func fakeLayers(t *testing.T, layers ...[]string) tree {
	t.Helper()
	result := tree{opaque: "trusted.overlay.opaque"}
	for _, names := range layers {
		top := t.TempDir()
		for _, name := range names {
			name, link, isLink := strings.Cut(name, "=>")
			path := filepath.Join(top, name)
			check(t, os.MkdirAll(filepath.Dir(path), 0o755))
			switch {
			case isLink:
				check(t, os.Symlink(link, path))
			case strings.HasSuffix(name, "/"):
				check(t, os.MkdirAll(path, 0o755))
			default:
				check(t, os.WriteFile(path, nil, 0o644))
			}
		}
		result.layers = append(result.layers, top)
	}
	return result
}

func TestPathsAreFollowedInsideTheImage(t *testing.T) {
	tr := fakeLayers(t,
		[]string{"a/b/", "up=>..", "abs=>/a", "out=>../../../../../../etc", "loop=>loop", "file", "replaced", "via=>abs/b"},
		[]string{"a/b/", "a/c/", "replaced/below/", "file/"},
	)
	for name, want := range map[string]struct {
		path string
		dirs int
		rest string
	}{
		"":               {"/", 2, ""},
		"/a/b":           {"/a/b", 2, ""},
		"a/c":            {"/a/c", 1, ""},
		"../../a":        {"/a", 2, ""},
		"up/up/a/b/../c": {"/a/c", 1, ""},
		"abs/c":          {"/a/c", 1, ""},
		"via":            {"/a/b", 2, ""},
		"out":            {"/", 2, "etc"}, // the image's own /etc, which it has not
		"a/x/y":          {"/a", 2, "x/y"},
		"up/file":        {"/file", 0, ""},
	} {
		at, missing, err := tr.find(name)
		if err != nil || at.path != want.path || len(at.dirs) != want.dirs || strings.Join(missing, "/") != want.rest {
			t.Errorf("%q is %s in %d layers without %q, %v; expected %v", name, at.path, len(at.dirs), missing, err, want)
		}
	}
	if at, _, err := tr.find("file"); err != nil || at.file != filepath.Join(tr.layers[0], "file") {
		t.Errorf("a file that hides a directory is at %v, %v", at, err)
	}
	for name, want := range map[string]error{
		"loop": syscall.ELOOP, "file/": syscall.ENOTDIR, "file/x": syscall.ENOTDIR, "replaced/below": syscall.ENOTDIR,
		"a/x/../c": syscall.ENOENT,
	} {
		if at, _, err := tr.find(name); err == nil || !strings.Contains(err.Error(), want.Error()) {
			t.Errorf("%q is %v, %v; expected %v", name, at, err, want)
		}
	}
}

func TestOpaqueDirectoriesHide(t *testing.T) {
	needRoot(t)
	tr := fakeLayers(t, []string{"d/"}, []string{"d/sub/"})
	check(t, syscall.Setxattr(filepath.Join(tr.layers[0], "d"), tr.opaque, []byte("y"), 0))
	if at, missing, err := tr.find("d/sub"); err != nil || len(missing) != 1 || len(at.dirs) != 1 {
		t.Errorf("found %v, missing %v, %v", at, missing, err)
	}
}

func TestVolumePathsMayHoldSeparators(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "odd:1", makeImage(t, "", layer(t, [2]string{`a,b:c\d/`, ""}, [2]string{`a,b:c\d/f`, "odd"})))
	s := open(t)
	id := pullOK(t, s, r.host+"/odd:1")
	_, _, err := s.Prepare(t.Context(), "c1", id)
	check(t, err)
	if got := read(t, mountVolume(t, s, "c1", id, `a,b:c\d`), "f"); got != "odd" {
		t.Errorf("content %q", got)
	}
}

func TestDeclaredVolumesAreThere(t *testing.T) {
	r := newRegistry(t)
	img := makeImage(t, "", layer(t, [2]string{"srv/", ""}, [2]string{"srv/data/", ""}, [2]string{"srv/data/f", "kept"}))
	file, err := img.ConfigFile()
	check(t, err)
	file = file.DeepCopy()
	file.Config.Volumes = map[string]struct{}{"/srv/data": {}, "/srv/new/deep": {}, "/var/lib": {}, "/srv/data/f/x": {}}
	img, err = mutate.ConfigFile(img, file)
	check(t, err)
	r.push(t, "vol:1", img)
	s := open(t)
	id := pullOK(t, s, r.host+"/vol:1")
	mounts, _, err := s.Prepare(t.Context(), "c1", id)
	check(t, err)
	root := mountRootfs(t, mounts)
	for _, dir := range []string{"srv/data", "srv/new/deep", "var/lib"} {
		check(t, os.WriteFile(filepath.Join(root, dir, "mine"), nil, 0o644))
	}
	if got := read(t, root, "srv/data/f"); got != "kept" {
		t.Errorf("content of a declared volume %q", got)
	}
}

func TestPinnedImages(t *testing.T) {
	r := newRegistry(t)
	s := open(t, func(c *Config) { c.PinnedImages = []string{r.host + "/team/*", r.host + "/exact"} })
	for repository, want := range map[string]bool{
		"team/a:1": true, "exact:latest": true, "exact:2": false, "other:1": false,
	} {
		r.push(t, repository, small(t, repository))
		img, ok := s.Status(named(pullOK(t, s, r.host+"/"+repository)))
		if !ok || img.Pinned != want {
			t.Errorf("%s: pinned %t, expected %t", repository, img.GetPinned(), want)
		}
	}
	if _, err := Open(t.Context(), Config{Root: t.TempDir(), PinnedImages: []string{"::"}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("wrong pattern: %v", err)
	}
}
