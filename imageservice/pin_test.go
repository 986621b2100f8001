package imageservice

import (
	"testing"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestPin(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "app:1", small(t, "a"))
	r.push(t, "other:1", small(t, "b"))
	s := open(t)
	app, other := r.host+"/app:1", r.host+"/other:1"
	pullOK(t, s, app)
	pullOK(t, s, other)
	want := func(s *Service, pinned bool) {
		t.Helper()
		if img, ok := s.Status(named(app)); !ok || img.Pinned != pinned {
			t.Errorf("%s: %v, expected pinned %t", app, img, pinned)
		}
	}
	if _, err := s.Pull(t.Context(), PullRequest{Ref: app, Handler: "vm"}); err != nil {
		t.Fatal(err)
	}
	check(t, s.Pin(t.Context(), app, true))
	want(s, true)
	img, ok := s.Status(&runtime.ImageSpec{Image: app, RuntimeHandler: "vm"})
	if !ok || img.Pinned {
		t.Errorf("the image of another handler: %v, expected it not to be pinned", img)
	}
	check(t, s.Remove(t.Context(), named(other)))
	want(s, true)
	check(t, s.Tag(t.Context(), app, app+"-again"))
	want(s, true)
	check(t, s.Close())
	s = open(t, at(s.config.Root))
	want(s, true)
	check(t, s.Pin(t.Context(), app, false))
	want(s, false)
	if err := s.Pin(t.Context(), other, true); !errdefs.IsNotFound(err) {
		t.Errorf("an image that is not there: %v", err)
	}
}
