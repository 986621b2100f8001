package images

import (
	"context"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func build(t *testing.T, list []Image) *Set {
	t.Helper()
	set, err := Build(context.Background(), list)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func TestBuildGivesTheSameDigestsEveryTime(t *testing.T) {
	list := []Image{marked("registry.test/one:1", "other.test/one:2"), marked("registry.test/two:1")}
	first, second := build(t, list), build(t, list)
	for _, ref := range []string{"registry.test/one:1", "other.test/one:2", "registry.test/two:1"} {
		if d := first.Digest(ref); d == "" || second.Digest(ref) != d {
			t.Errorf("digest of %s is %q at first and %q then", ref, d, second.Digest(ref))
		}
	}
	if first.Digest("registry.test/one:1") != first.Digest("other.test/one:2") {
		t.Error("two references of one image have different digests")
	}
	if first.Digest("registry.test/one:1") == first.Digest("registry.test/two:1") {
		t.Error("two images have the same digest")
	}
}

func TestPushedImagesArePullableByTheirTags(t *testing.T) {
	server := httptest.NewServer(registry.New())
	t.Cleanup(server.Close)
	address := strings.TrimPrefix(server.URL, "http://")
	set := build(t, []Image{marked("registry.test/some/where:1", "other.test/else:2")})
	if err := set.Push(context.Background(), Registry{Address: address}); err != nil {
		t.Fatal(err)
	}
	for _, repository := range []string{"some/where:1", "else:2"} {
		ref, err := name.ParseReference(address+"/"+repository, name.Insecure)
		if err != nil {
			t.Fatal(err)
		}
		descriptor, err := remote.Get(ref)
		if err != nil {
			t.Fatal(err)
		}
		if got := descriptor.Digest.String(); got != set.Digest("other.test/else:2") {
			t.Errorf("digest of %s is %s", repository, got)
		}
	}
}

func TestAllImagesBuild(t *testing.T) {
	set := build(t, slices.Concat(E2E(), Critest()))
	if set.Digest(CritestDigestRef) == "" {
		t.Errorf("no digest for %s", CritestDigestRef)
	}
	// critest removes one of the two and expects exactly these two tags to go.
	if set.Digest("registry.k8s.io/pause:3.9") != set.Digest("k8s.gcr.io/pause:3.9") {
		t.Error("pause:3.9 differs between registries")
	}
	if set.Digest("registry.k8s.io/pause:3.9") == set.Digest("registry.k8s.io/pause:3.10") {
		t.Error("pause:3.9 and pause:3.10 are the same image")
	}
}
