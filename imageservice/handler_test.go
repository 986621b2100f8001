package imageservice

import (
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// An image belongs to the handler that it was pulled for; of what it is made of there is one.
func TestImagesBelongToTheHandlerTheyWerePulledFor(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "app:1", small(t, "a"))
	r.push(t, "app:2", small(t, "b"))
	root := filepath.Join(t.TempDir(), "images")
	s := open(t, at(root))
	app := func(handler, tag string) *runtime.ImageSpec {
		return &runtime.ImageSpec{Image: r.host + "/app:" + tag, RuntimeHandler: handler}
	}
	pullFor := func(handler, tag string) string {
		id, err := s.Pull(t.Context(), PullRequest{Ref: app(handler, tag).Image, Handler: handler})
		check(t, err)
		return id
	}
	id := pullFor("", "1")
	check(t, s.collect(scope(t.Context())))
	before, fetched := inventory(t, s), r.blobs.Load()
	if again := pullFor("vm", "1"); again != id || r.blobs.Load() != fetched {
		t.Errorf("id %s for another handler after %d fetches, expected %s and none", again, r.blobs.Load()-fetched, id)
	}
	two := pullFor("vm", "2")
	if _, err := s.Pull(t.Context(), PullRequest{Ref: app("", "1").Image, Handler: "vm"}); err != nil {
		t.Error(err)
	}

	want := map[string][]string{"": {id}, "vm": {id, two}, "other": nil}
	sees := func(s *Service) {
		t.Helper()
		if n := len(s.List(nil)); n != len(want[""])+len(want["vm"]) {
			t.Errorf("%d images in all", n)
		}
		for handler, ids := range want {
			list := s.List(&runtime.ImageSpec{RuntimeHandler: handler})
			if handler != "" && len(list) != len(ids) {
				t.Errorf("%d images of %q, expected %d", len(list), handler, len(ids))
			}
			for _, tag := range []string{"1", "2"} {
				got, ok := s.Status(app(handler, tag))
				i := map[string]int{"1": 0, "2": 1}[tag]
				if ok != (i < len(ids)) || ok && (got.Id != ids[i] || got.Spec.RuntimeHandler != handler) {
					t.Errorf("status of app:%s for %q: %v", tag, handler, got)
				}
				if byID, _ := s.Status(&runtime.ImageSpec{Image: got.GetId(), RuntimeHandler: handler}); ok && byID != got {
					t.Errorf("status of app:%s for %q by id: %v", tag, handler, byID)
				}
				if list := s.List(app(handler, tag)); ok && (len(list) != 1 || list[0] != got) || !ok && len(list) != 0 {
					t.Errorf("list of app:%s for %q: %v", tag, handler, list)
				}
				if _, _, err := s.Resolve(app(handler, tag)); ok != (err == nil) || !ok && !errdefs.IsNotFound(err) {
					t.Errorf("resolve app:%s for %q: %v", tag, handler, err)
				}
			}
		}
	}
	sees(s)
	check(t, s.Close())
	s = open(t, at(root))
	sees(s)

	// A container can be made of an image of any handler, by its id.
	if _, _, err := s.Prepare(t.Context(), "c1", two); err != nil {
		t.Error(err)
	}
	if _, _, err := s.PrepareVolume(t.Context(), "c1", two, ""); err != nil {
		t.Error(err)
	}
	check(t, s.Release(t.Context(), "c1"))

	check(t, s.Remove(t.Context(), app("other", "1")))
	check(t, s.Remove(t.Context(), app("", "2")))
	sees(s)
	check(t, s.Remove(t.Context(), app("vm", "2")))
	want["vm"] = []string{id}
	sees(s)
	check(t, s.Remove(t.Context(), &runtime.ImageSpec{Image: id, RuntimeHandler: "vm"}))
	want["vm"] = nil
	sees(s)
	eventually(t, "all is as before the second handler", func() bool {
		check(t, s.collect(scope(t.Context())))
		return inventory(t, s) == before
	})
	if mount, _, err := s.Prepare(t.Context(), "c2", id); err != nil || len(mount) == 0 {
		t.Errorf("the default handler's image: %v", err)
	}
	check(t, s.Release(t.Context(), "c2"))
}
