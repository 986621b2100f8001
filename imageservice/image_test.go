package imageservice

import (
	"encoding/json"
	"reflect"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestStatusIsTheSameForEveryKindOfReference(t *testing.T) {
	r := newRegistry(t)
	img := small(t, "a")
	digest := r.push(t, "library/busybox:latest", img)
	s := open(t, r.mirrorAll(t))
	id := pullOK(t, s, "busybox")
	want := s.List(nil)[0]
	hex := strings.TrimPrefix(id, "sha256:")
	for _, ref := range []string{id, hex, hex[:12], "sha256:" + hex[:12], "busybox", "busybox:latest",
		"docker.io/library/busybox:latest", "docker.io/busybox", "library/busybox", "busybox@" + digest,
		"docker.io/library/busybox@" + digest} {
		if got, ok := s.Status(named(ref)); !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("status of %s: %v", ref, got)
		}
		if list := s.List(named(ref)); len(list) != 1 || list[0].Id != id {
			t.Errorf("list with %s: %v", ref, list)
		}
		if gotID, imageRef, err := s.Resolve(named(ref)); err != nil || gotID != id ||
			imageRef != "docker.io/library/busybox@"+digest {
			t.Errorf("resolve %s: %s %s %v", ref, gotID, imageRef, err)
		}
	}
	unknown := "sha256:" + strings.Repeat("0", 64)
	for _, ref := range []string{"", "none", "busybox:2", hex[:2], "sha256:", unknown, "@"} {
		if got, ok := s.Status(named(ref)); ok {
			t.Errorf("status of %q: %v", ref, got)
		}
		if _, _, err := s.Resolve(named(ref)); !errdefs.IsNotFound(err) {
			t.Errorf("resolve %q: %v", ref, err)
		}
		if list := s.List(named(ref)); ref != "" && len(list) != 0 {
			t.Errorf("list with %q: %v", ref, list)
		}
	}
}

func TestInfoTellsConfigAndChain(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "app:1", small(t, "a"))
	s := open(t)
	id := pullOK(t, s, r.host+"/app:1")
	info, err := s.Info(named(id))
	check(t, err)
	var parsed struct {
		ChainID   string
		ImageSpec struct{ Config struct{ User string } }
	}
	check(t, json.Unmarshal([]byte(info["info"]), &parsed))
	if !strings.HasPrefix(parsed.ChainID, "sha256:") || parsed.ImageSpec.Config.User != "1002" {
		t.Errorf("info %s", info["info"])
	}
	if _, err := s.Info(named("none")); !errdefs.IsNotFound(err) {
		t.Errorf("unknown image: %v", err)
	}
}

func TestImageUserIsUIDOrName(t *testing.T) {
	for user, want := range map[string]*runtime.Image{
		"":          {},
		"0":         {Uid: &runtime.Int64Value{}},
		"1003:1004": {Uid: &runtime.Int64Value{Value: 1003}},
		"www-data":  {Username: "www-data"},
		"app:1004":  {Username: "app"},
	} {
		img := &image{id: "sha256:1"}
		img.config.Config.User = user
		got := newIndex(map[string]*image{"a:1": img}, nil, nil).sorted[0].cri
		if got.Username != want.Username || !reflect.DeepEqual(got.Uid, want.Uid) {
			t.Errorf("user %q: uid %v, name %q", user, got.Uid, got.Username)
		}
	}
}

func TestPrefixMustBeUnique(t *testing.T) {
	x := newIndex(map[string]*image{"a:1": {id: "sha256:aaa1"}, "b:1": {id: "sha256:aaa2"}, "c:1": {id: "sha256:bbb"}}, nil, nil)
	for ref, want := range map[string]string{"aaa": "", "aaa1": "sha256:aaa1", "aaa2": "sha256:aaa2", "ccc": "",
		"bbb": "sha256:bbb", "bb": "", "sha256:aaa1": "sha256:aaa1"} {
		got := ""
		if e := x.find(named(ref)); e != nil {
			got = e.id
		}
		if got != want {
			t.Errorf("find %s: %q, expected %q", ref, got, want)
		}
	}
}

func TestRemoveTakesAllNamesAndFreesSpace(t *testing.T) {
	r := newRegistry(t)
	img := small(t, "a")
	r.push(t, "app:1", img)
	r.push(t, "app:2", img)
	r.push(t, "other:1", small(t, "b"))
	s := open(t)
	pullOK(t, s, r.host+"/other:1")
	check(t, s.collect(scope(t.Context())))
	before, usage := inventory(t, s), s.FsInfo().UsedBytes.Value
	pullOK(t, s, r.host+"/app:1")
	id := pullOK(t, s, r.host+"/app:2")
	check(t, s.collect(scope(t.Context())))
	if s.FsInfo().UsedBytes.Value <= usage {
		t.Error("usage did not grow")
	}
	var group sync.WaitGroup
	for range 5 {
		group.Go(func() {
			if err := s.Remove(t.Context(), named(r.host+"/app:1")); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for _, ref := range []string{id, r.host + "/app:1", r.host + "/app:2"} {
		if _, ok := s.Status(named(ref)); ok {
			t.Errorf("%s is still there", ref)
		}
	}
	if n := len(s.List(nil)); n != 1 {
		t.Errorf("%d images", n)
	}
	if got := inventory(t, s); got != before || s.FsInfo().UsedBytes.Value != usage {
		t.Errorf("%+v with %d bytes is left, want %+v with %d", got, s.FsInfo().UsedBytes.Value, before, usage)
	}
	check(t, s.Remove(t.Context(), named(id)))
}

func TestTagMovesNames(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "a:1", small(t, "a"))
	r.push(t, "b:1", small(t, "b"))
	s := open(t)
	a, b := pullOK(t, s, r.host+"/a:1"), pullOK(t, s, r.host+"/b:1")
	check(t, s.Tag(t.Context(), a, "mine"))
	if got, _ := s.Status(named("mine")); got.GetId() != a || !slices.Contains(got.RepoTags, "docker.io/library/mine:latest") {
		t.Errorf("status %v", got)
	}
	check(t, s.Tag(t.Context(), b, "mine"))
	if got, _ := s.Status(named("mine")); got.GetId() != b {
		t.Errorf("status %v", got)
	}
	if err := s.Tag(t.Context(), "none", "mine"); !errdefs.IsNotFound(err) {
		t.Errorf("unknown source: %v", err)
	}
	if err := s.Tag(t.Context(), a, "mine@sha256:"+strings.Repeat("0", 64)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("digest as target: %v", err)
	}
}

func TestPullAndRemoveOfManyAtOnce(t *testing.T) {
	r := newRegistry(t)
	for _, n := range []string{"a", "b", "c"} {
		r.push(t, n+":1", small(t, n))
	}
	s := open(t)
	var group sync.WaitGroup
	for _, n := range []string{"a", "b", "c"} {
		group.Go(func() {
			for range 5 {
				id, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/" + n + ":1"})
				if err != nil {
					t.Error(err)
					return
				}
				if _, ok := s.Status(named(id)); !ok {
					t.Errorf("%s is not visible after its pull", n)
				}
				if _, _, err := s.Prepare(t.Context(), "container-"+n, id); err != nil {
					t.Error(err)
				}
				if err := s.Remove(t.Context(), named(id)); err != nil {
					t.Error(err)
				}
				if _, ok := s.Status(named(id)); ok {
					t.Errorf("%s is visible after its removal", n)
				}
				if err := s.Release(t.Context(), "container-"+n); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
}

func TestImagePulledAgainAfterRemovalHasItsNewLayers(t *testing.T) {
	r := newRegistry(t)
	img := small(t, "hello")
	r.push(t, "app:1", img)
	index := mutate.AppendManifests(empty.Index, addendum(img, goruntime.GOARCH))
	r.pushIndex(t, "app:index", index)
	s := open(t)
	pullOK(t, s, r.host+"/app:1")
	id := pullOK(t, s, r.host+"/app:index") // the same image by way of another target
	check(t, s.Remove(t.Context(), named(id)))
	check(t, s.collect(scope(t.Context())))
	for _, ref := range []string{r.host + "/app:index", r.host + "/app:1"} {
		pullOK(t, s, ref)
		mounts, _, err := s.Prepare(t.Context(), "c1", ref)
		check(t, err)
		if got := read(t, mountRootfs(t, mounts), "etc/content"); got != "hello" {
			t.Errorf("read %q", got)
		}
	}
}
