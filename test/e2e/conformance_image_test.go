//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/images"
)

// ownImage pushes an image that no other test has, under tags of one repository, and returns them.
func ownImage(t *testing.T, tags ...string) []string {
	t.Helper()
	name := strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-"))
	image := images.Image{Config: v1.Config{Cmd: []string{"sh"}, User: "1001", Labels: map[string]string{"test": name}}}
	for _, tag := range tags {
		image.Refs = append(image.Refs, "registry.test/gantry/"+name+":"+tag)
	}
	err := images.Push(timeout(t), images.Registry{Address: registry.Address}, []images.Image{image})
	if err != nil {
		t.Fatal(err)
	}
	return image.Refs
}

// image is the status of an image, nil when there is none.
func image(t *testing.T, ref string) *runtime.Image {
	t.Helper()
	response, err := shared.Images.ImageStatus(timeout(t), &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatalf("status of image %s: %v", ref, err)
	}
	return response.Image
}

// listed are the images of the list with that id.
func listed(t *testing.T, id string) []*runtime.Image {
	t.Helper()
	list, err := shared.Images.ListImages(timeout(t), &runtime.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(list.Images, func(i *runtime.Image) bool { return i.Id != id })
}

func tryRemoveImage(t *testing.T, ref string) error {
	t.Helper()
	_, err := shared.Images.RemoveImage(timeout(t), &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: ref}})
	return err
}

// An image by digest has no tag until it is pulled by one, and then every name tells the same.
func TestImageByDigestAndTags(t *testing.T) {
	t.Parallel()
	refs := ownImage(t, "1", "2")
	id := pull(t, shared, refs[0])
	byTag := image(t, refs[0])
	wantEqual(t, "tags", fmt.Sprint(byTag.RepoTags), fmt.Sprint(refs[:1]))
	wantEqual(t, "number of digests", len(byTag.RepoDigests), 1)
	wantEqual(t, "uid", byTag.Uid.GetValue(), 1001)
	digest := byTag.RepoDigests[0]
	if err := tryRemoveImage(t, id); err != nil {
		t.Fatal(err)
	}
	if image(t, digest) != nil || image(t, refs[0]) != nil || image(t, id) != nil || len(listed(t, id)) != 0 {
		t.Error("a removed image is told of")
	}
	wantEqual(t, "id by digest", pull(t, shared, digest), id)
	wantEqual(t, "number of tags after a pull by digest", len(image(t, id).RepoTags), 0)
	wantEqual(t, "digests", fmt.Sprint(image(t, id).RepoDigests), fmt.Sprint([]string{digest}))
	wantEqual(t, "id by the second tag", pull(t, shared, refs[1]), id)
	wantEqual(t, "id by the first tag", pull(t, shared, refs[0]), id)
	both := image(t, id)
	slices.Sort(both.RepoTags)
	wantEqual(t, "tags", fmt.Sprint(both.RepoTags), fmt.Sprint(refs))
	hexID := strings.TrimPrefix(id, "sha256:")
	for _, ref := range []string{refs[0], refs[1], digest, hexID, hexID[:12], id[:20]} {
		got := image(t, ref)
		if got != nil {
			slices.Sort(got.RepoTags)
		}
		if !proto.Equal(got, both) {
			t.Errorf("image by %s is %v, expected %v", ref, got, both)
		}
	}
	wantEqual(t, "number of entries in the list", len(listed(t, id)), 1)
	// All names go at once, whichever was given.
	if err := tryRemoveImage(t, refs[1]); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{refs[0], refs[1], digest, id} {
		if image(t, ref) != nil {
			t.Errorf("the image is there by %s after it was removed by another name", ref)
		}
	}
}

// Pulls and removals of one image, all at once, do not fail each other.
func TestPullsAndRemovalsOfOneImageAtOnce(t *testing.T) {
	t.Parallel()
	refs := ownImage(t, "1")
	for range 3 {
		id := pull(t, shared, refs[0])
		wantAllGood(t, "remove", atOnce(5, func(int) error { return tryRemoveImage(t, id) }))
		if len(listed(t, id)) != 0 {
			t.Error("the image is listed after it was removed")
		}
		wantAllGood(t, "pull or remove", atOnce(8, func(i int) error {
			if i%2 == 0 {
				return tryRemoveImage(t, refs[0])
			}
			return tryPull(t, refs[0], nil)
		}))
	}
	id := pull(t, shared, refs[0])
	wantEqual(t, "number of entries", len(listed(t, id)), 1)
	p := runPod(t)
	p.start(t, "c", "true", func(c *runtime.ContainerConfig) { c.Image.Image = refs[0] }).waitExit(t)
	if err := tryRemoveImage(t, id); err != nil {
		t.Error(err)
	}
}

// The kubelet never removes an image in use; somebody else may, and the containers go on, before and after their start.
func TestImageRemovedWhileItIsUsed(t *testing.T) {
	t.Parallel()
	refs := ownImage(t, "1")
	p := runPod(t)
	use := func(c *runtime.ContainerConfig) { c.Image.Image = refs[0] }
	runs := p.start(t, "runs", "sleep 1000", use)
	created := p.create(t, "created", "test -e /bin/sh && exit 5", use)
	id := created.status(t).ImageId
	if err := tryRemoveImage(t, id); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "exec in the running container", runs.exec(t, "busybox echo works"), "works")
	if err := created.start(t); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "exit code of the created container", created.waitExit(t).ExitCode, 5)
	wantEqual(t, "image id that is told", created.status(t).ImageId, id)
	config := containerConfig("late", "true")
	config.Image.Image = id
	_, err := p.node.Runtime.CreateContainer(timeout(t), p.createRequest(config))
	wantNotFound(t, err)
	use(config)
	if c, err := p.tryCreate(t, config); err != nil { // pulls it again
		t.Error(err)
	} else if err := c.start(t); err != nil {
		t.Error(err)
	}
}

func TestRefsThatAreNone(t *testing.T) {
	t.Parallel()
	for _, ref := range []string{"Upper/Case", "a b", "registry.test/x@sha256:12", "-", "http://registry.test/x", strings.Repeat("a/", 300)} {
		if err := tryPull(t, ref, nil); err == nil {
			t.Errorf("pulled %q", ref)
		}
		if got := image(t, ref); got != nil {
			t.Errorf("image %q is %v", ref, got)
		}
		if err := tryRemoveImage(t, ref); err != nil {
			t.Errorf("remove %q: %v", ref, err)
		}
	}
}

// The kubelet reads through these fields without asking whether they are there.
func TestImageFilesystem(t *testing.T) {
	t.Parallel()
	response, err := shared.Images.ImageFsInfo(timeout(t), &runtime.ImageFsInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(response.ImageFilesystems) == 0 {
		t.Fatal("no filesystem")
	}
	fs := response.ImageFilesystems[0]
	if fs.UsedBytes.GetValue() == 0 || fs.InodesUsed.GetValue() == 0 || fs.Timestamp == 0 ||
		!strings.HasPrefix(fs.FsId.GetMountpoint(), shared.Root()) {
		t.Errorf("the image filesystem is %v", fs)
	}
}
