package imageservice

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func TestPreparedRootfsIsTheImage(t *testing.T) {
	r := newRegistry(t)
	img := small(t, "hello")
	r.push(t, "app:1", img)
	s := open(t)
	id := pullOK(t, s, r.host+"/app:1")
	mounts, config, err := s.Prepare(t.Context(), "c1", id)
	check(t, err)
	if config.Config.User != "1002" || config.Config.Entrypoint[0] != "/bin/run" {
		t.Errorf("config %+v", config.Config)
	}
	root := mountRootfs(t, mounts)
	if got := read(t, root, "etc/content") + read(t, root, "etc/old"); got != "hellonew" {
		t.Errorf("files %q", got)
	}
	if _, err := os.Stat(filepath.Join(root, "etc/gone")); !os.IsNotExist(err) {
		t.Errorf("whiteout had no effect: %v", err)
	}
	var a, b syscall.Stat_t
	check(t, syscall.Stat(filepath.Join(root, "bin/run"), &a))
	check(t, syscall.Stat(filepath.Join(root, "bin/alias"), &b))
	if a.Ino != b.Ino || a.Nlink != 2 {
		t.Errorf("hard link: inodes %d %d, links %d", a.Ino, b.Ino, a.Nlink)
	}
	// What one container writes, another does not see.
	check(t, os.WriteFile(filepath.Join(root, "etc/content"), []byte("changed"), 0o644))
	mounts, _, err = s.Prepare(t.Context(), "c2", id)
	check(t, err)
	if got := read(t, mountRootfs(t, mounts), "etc/content"); got != "hello" {
		t.Errorf("second container reads %q", got)
	}
	if bytes, inodes, err := s.Usage(t.Context(), "c1"); err != nil || bytes == 0 || inodes != 3 {
		t.Errorf("usage %d bytes, %d inodes, %v", bytes, inodes, err)
	}
}

func TestPrepareIsIdempotent(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "app:1", small(t, "a"))
	s := open(t)
	id := pullOK(t, s, r.host+"/app:1")
	first, _, err := s.Prepare(t.Context(), "c1", id)
	check(t, err)
	check(t, os.WriteFile(filepath.Join(s.layerDir("c1"), "fs", "mine"), nil, 0o644))
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			again, _, err := s.Prepare(t.Context(), "c1", id)
			if err != nil || !reflect.DeepEqual(first, again) {
				t.Errorf("%v, %v", again, err)
			}
		})
	}
	group.Wait()
	read(t, s.layerDir("c1"), "fs", "mine")
	var mounts sync.Map
	for range 8 {
		group.Go(func() {
			m, _, err := s.Prepare(t.Context(), "c2", id)
			if err != nil {
				t.Error(err)
			}
			mounts.Store(fmt.Sprint(m), true)
		})
	}
	group.Wait()
	n := 0
	mounts.Range(func(any, any) bool { n++; return true })
	if n != 1 {
		t.Errorf("%d different answers", n)
	}
	left, _ := filepath.Glob(filepath.Join(s.uses.dir, unfinished+"*"))
	if len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

func TestPrepareRejects(t *testing.T) {
	s := open(t)
	if _, _, err := s.Prepare(t.Context(), "c1", "none:1"); !errdefs.IsNotFound(err) {
		t.Errorf("unknown image: %v", err)
	}
	for _, id := range []string{"", "..", "a/b", ".hidden", "new-1"} {
		if _, _, err := s.Prepare(t.Context(), id, "none:1"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("id %q: %v", id, err)
		}
	}
}

func TestReleaseIsIdempotent(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "app:1", small(t, "a"))
	s := open(t)
	id := pullOK(t, s, r.host+"/app:1")
	check(t, s.Release(t.Context(), "never"))
	_, _, err := s.Prepare(t.Context(), "c1", id)
	check(t, err)
	check(t, s.Release(t.Context(), "c1"))
	check(t, s.Release(t.Context(), "c1"))
	if _, _, err := s.Usage(t.Context(), "c1"); !errdefs.IsNotFound(err) {
		t.Errorf("usage after release: %v", err)
	}
	if left, err := os.ReadDir(s.trash()); err != nil || len(left) != 0 {
		t.Errorf("trash holds %v, %v", left, err)
	}
}

func TestRetainRemovesTheOthers(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "app:1", small(t, "a"))
	s := open(t)
	id := pullOK(t, s, r.host+"/app:1")
	for _, c := range []string{"c1", "c2", "c3"} {
		_, _, err := s.Prepare(t.Context(), c, id)
		check(t, err)
	}
	check(t, os.Remove(filepath.Join(s.layerDir("c3"), useFile)))
	check(t, s.Close())
	s = open(t, at(s.config.Root))
	check(t, s.Retain(t.Context(), []string{"c2", "unknown"}))
	left, err := os.ReadDir(s.uses.dir)
	check(t, err)
	if len(left) != 1 || left[0].Name() != "c2" {
		t.Errorf("left %v", left)
	}
}

func TestRemovedImageStaysForItsContainer(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "app:1", small(t, "hello"))
	s := open(t)
	empty := inventory(t, s)
	id := pullOK(t, s, r.host+"/app:1")
	mounts, _, err := s.Prepare(t.Context(), "c1", id)
	check(t, err)
	check(t, s.Remove(t.Context(), named(id)))
	check(t, s.collect(scope(t.Context())))
	if got := inventory(t, s); got.layers != empty.layers+3 || got.blobs != empty.blobs+1 {
		t.Errorf("with a container: %+v, expected three layers and the configuration", got)
	}
	if got := read(t, mountRootfs(t, mounts), "etc/content"); got != "hello" {
		t.Errorf("read %q", got)
	}
	if _, _, err := s.Prepare(t.Context(), "c2", id); !errdefs.IsNotFound(err) {
		t.Errorf("new container from removed image: %v", err)
	}
	check(t, s.Close())
	s = open(t, at(s.config.Root))
	again, config, err := s.Prepare(t.Context(), "c1", id)
	if err != nil || !reflect.DeepEqual(mounts, again) || config.Config.User != "1002" {
		t.Errorf("after restart: %v, %v", again, err)
	}
	check(t, s.Release(t.Context(), "c1"))
	if left := inventory(t, s); left != empty {
		t.Errorf("%+v is left, want %+v", left, empty)
	}
}

func TestImageWithVeryManyLayersCanBeMounted(t *testing.T) {
	r := newRegistry(t)
	var layers []v1.Layer
	for i := range 127 {
		layers = append(layers, layer(t, [2]string{fmt.Sprintf("file%d", i), "x"}))
	}
	r.push(t, "deep:1", makeImage(t, "", layers...))
	// No longer than the usual one: 127 layers, the most that registries take, fit there.
	root, err := os.MkdirTemp("/tmp", "i")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(root) })
	s := open(t, at(root))
	id := pullOK(t, s, r.host+"/deep:1")
	mounts, _, err := s.Prepare(t.Context(), strings.Repeat("c", 64), id)
	check(t, err)
	rootfs := mountRootfs(t, mounts)
	if read(t, rootfs, "file0")+read(t, rootfs, "file126") != "xx" {
		t.Error("files differ")
	}
}

func TestImageWithoutLayers(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "scratch:1", makeImage(t, "nobody:users"))
	s := open(t)
	id := pullOK(t, s, r.host+"/scratch:1")
	mounts, _, err := s.Prepare(t.Context(), "c1", id)
	check(t, err)
	check(t, os.WriteFile(filepath.Join(mountRootfs(t, mounts), "file"), nil, 0o644))
	if img, _ := s.Status(named(id)); img.Username != "nobody" || img.Uid != nil || img.Size == 0 {
		t.Errorf("status %v", img)
	}
}

func BenchmarkPrepare(b *testing.B) {
	r := newRegistry(b)
	r.push(b, "app:1", small(b, "a"))
	s := open(b)
	id := pullOK(b, s, r.host+"/app:1")
	n := 0
	for b.Loop() {
		n++
		if _, _, err := s.Prepare(b.Context(), fmt.Sprintf("c%d", n), id); err != nil {
			b.Fatal(err)
		}
	}
}
