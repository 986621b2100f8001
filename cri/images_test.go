package cri

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
)

func spec(ref string) *runtime.ImageSpec { return &runtime.ImageSpec{Image: ref} }

func TestPullImagePassesCredentials(t *testing.T) {
	n := newNode(t)
	want := &runtime.AuthConfig{Username: "u", Password: "p", ServerAddress: "example.org"}
	n.images.pull = func(_ context.Context, image *runtime.ImageSpec, auth *runtime.AuthConfig) (string, error) {
		wantMessage(t, auth, want)
		return "sha256:of-" + image.Image, nil
	}
	resp, err := n.image.PullImage(testContext(t), &runtime.PullImageRequest{Image: spec("app"), Auth: want})
	if err != nil || resp.ImageRef != "sha256:of-app" {
		t.Errorf("got %v, %v", resp, err)
	}
}

func TestPullImageErrors(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		want codes.Code
		text string
	}{
		{"registry", errors.New("RegistryUnavailable: 503"), codes.Unknown, "RegistryUnavailable: 503"},
		{"signature", errors.New("SignatureValidationFailed: x"), codes.Unknown, "SignatureValidationFailed: x"},
		{"missing", errdefs.ErrNotFound, codes.NotFound, "not found"},
		{"login", errdefs.ErrUnauthenticated, codes.Unauthenticated, "unauthorized"},
		{"other", errors.New("no space left on device"), codes.Unknown, "no space left on device"},
	} {
		n := newNode(t)
		n.images.err = test.err
		n.images.pull = nil
		_, err := n.image.PullImage(testContext(t), &runtime.PullImageRequest{Image: spec("app")})
		if got := status.Convert(err); test.err != nil && (got.Code() != test.want || got.Message() != test.text) {
			t.Errorf("%s: got %v %q, want %v %q", test.name, got.Code(), got.Message(), test.want, test.text)
		}
	}
}

func TestPullImageEndsWithItsClient(t *testing.T) {
	n := newNode(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	n.images.pull = func(ctx context.Context, _ *runtime.ImageSpec, _ *runtime.AuthConfig) (string, error) {
		cancel()
		<-ctx.Done()
		ended <- ctx.Err()
		return "", ctx.Err()
	}
	_, err := n.image.PullImage(ctx, &runtime.PullImageRequest{Image: spec("app")})
	wantCode(t, err, codes.Canceled)
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("the pull goes on")
	}
}

func TestImageCallsNeedAnImage(t *testing.T) {
	n := newNode(t)
	ctx := testContext(t)
	for _, image := range []*runtime.ImageSpec{nil, {}} {
		_, err := n.image.PullImage(ctx, &runtime.PullImageRequest{Image: image})
		wantCode(t, err, codes.InvalidArgument)
		_, err = n.image.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: image})
		wantCode(t, err, codes.InvalidArgument)
		_, err = n.image.RemoveImage(ctx, &runtime.RemoveImageRequest{Image: image})
		wantCode(t, err, codes.InvalidArgument)
	}
	_, err := n.image.PullImage(ctx, &runtime.PullImageRequest{
		Image: &runtime.ImageSpec{Image: "app", RuntimeHandler: "other"},
	})
	wantCode(t, err, codes.InvalidArgument)
}

func TestImageStatus(t *testing.T) {
	n := newNode(t)
	ctx := testContext(t)
	want := &runtime.Image{
		Id: "sha256:i", RepoTags: []string{"app:1"}, Size: 7, Uid: &runtime.Int64Value{Value: 5}, Pinned: true,
	}
	n.images.images["app:1"] = want
	got, err := n.image.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: spec("app:1")})
	if err != nil {
		t.Fatal(err)
	}
	wantMessage(t, got, &runtime.ImageStatusResponse{Image: want})
	got, err = n.image.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: spec("app:1"), Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	wantMessage(t, got, &runtime.ImageStatusResponse{
		Image: want, Info: map[string]string{"info": `{"ref":"app:1"}`},
	})
	got, err = n.image.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: spec("other"), Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	wantMessage(t, got, &runtime.ImageStatusResponse{})
}

func TestListImagesFilters(t *testing.T) {
	n := newNode(t)
	one, two := &runtime.Image{Id: "one"}, &runtime.Image{Id: "two"}
	n.images.images = map[string]*runtime.Image{"one": one, "app:1": one, "two": two}
	for ref, want := range map[string]int{"": 2, "app:1": 1, "two": 1, "other": 0} {
		filter := &runtime.ImageFilter{Image: spec(ref)}
		resp, err := n.image.ListImages(testContext(t), &runtime.ListImagesRequest{Filter: filter})
		if err != nil || len(resp.Images) != want {
			t.Errorf("%q: got %v, %v, want %d images", ref, resp, err, want)
		}
	}
}

func TestRemoveImageIsIdempotent(t *testing.T) {
	n := newNode(t)
	n.images.err = errdefs.ErrNotFound
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			_, err := n.image.RemoveImage(testContext(t), &runtime.RemoveImageRequest{Image: spec("app")})
			wantCode(t, err, codes.OK)
		})
	}
	wg.Wait()
	if got := strings.Join(n.images.removed, ""); got != "appappappappapp" {
		t.Errorf("got removed %q", got)
	}
	n.images.err = errors.New("disk error")
	_, err := n.image.RemoveImage(testContext(t), &runtime.RemoveImageRequest{Image: spec("app")})
	wantCode(t, err, codes.Unknown)
}

func TestImageFsInfoHasWhatIsReadBlindly(t *testing.T) {
	n := newNode(t)
	usage := &runtime.FilesystemUsage{Timestamp: 5, FsId: &runtime.FilesystemIdentifier{Mountpoint: "/var/lib/gantry"}}
	n.images.usage = usage
	resp, err := n.image.ImageFsInfo(testContext(t), &runtime.ImageFsInfoRequest{})
	if err != nil || len(resp.ImageFilesystems) != 1 || len(resp.ContainerFilesystems) != 0 {
		t.Fatalf("got %v, %v", resp, err)
	}
	wantMessage(t, resp.ImageFilesystems[0], &runtime.FilesystemUsage{
		Timestamp: 5, FsId: usage.FsId, UsedBytes: &runtime.UInt64Value{}, InodesUsed: &runtime.UInt64Value{},
	})
	if usage.UsedBytes != nil {
		t.Error("the store's message was changed")
	}
	n.images.usage = nil
	_, err = n.image.ImageFsInfo(testContext(t), &runtime.ImageFsInfoRequest{})
	wantCode(t, err, codes.Unavailable)
}

func TestRuntimeHandlersOfImagesAreChecked(t *testing.T) {
	n := newNode(t) // whose handlers are "" and "special"
	ctx := testContext(t)
	// "gone" was a handler when the image was pulled.
	n.images.images["gonesha256:i"] = &runtime.Image{Id: "sha256:i", Spec: &runtime.ImageSpec{RuntimeHandler: "gone"}}
	for handler, want := range map[string]struct{ there, pull codes.Code }{
		"":        {codes.OK, codes.OK},
		"special": {codes.OK, codes.OK},
		"kata":    {codes.InvalidArgument, codes.InvalidArgument},
		"gone":    {codes.OK, codes.InvalidArgument},
	} {
		image := &runtime.ImageSpec{Image: "sha256:i", RuntimeHandler: handler}
		one, err := n.image.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: image})
		if status.Code(err) != want.there || (one.GetImage() != nil) != (handler == "gone") {
			t.Errorf("status for %q: %v, %v", handler, one, err)
		}
		list, err := n.image.ListImages(ctx, &runtime.ListImagesRequest{Filter: &runtime.ImageFilter{Image: image}})
		if status.Code(err) != want.there || (len(list.GetImages()) > 0) != (handler == "gone") {
			t.Errorf("list for %q: %v, %v", handler, list, err)
		}
		if _, err = n.image.RemoveImage(ctx, &runtime.RemoveImageRequest{Image: image}); status.Code(err) != want.there {
			t.Errorf("remove for %q: %v", handler, err)
		}
		if _, err := n.image.PullImage(ctx, &runtime.PullImageRequest{Image: image}); status.Code(err) != want.pull {
			t.Errorf("pull for %q: %v", handler, err)
		}
	}
}

func TestContainerStatusNamesTheImagesOfVolumesByDigest(t *testing.T) {
	config := &runtime.ContainerConfig{Mounts: []*runtime.Mount{
		{ContainerPath: "/a", HostPath: "/a"},
		{ContainerPath: "/b", Image: spec("data"), ImageSubPath: "sub", Readonly: true},
	}}
	got := containerStatus(&sandbox.ContainerStatus{
		Config: config, VolumeRefs: map[string]string{"data": "data@sha256:d"},
	}).Mounts
	want := &runtime.Mount{
		ContainerPath: "/b", ImageSubPath: "sub", Readonly: true,
		Image: &runtime.ImageSpec{Image: "data", ImageRef: "data@sha256:d"},
	}
	if len(got) != 2 || !proto.Equal(got[0], config.Mounts[0]) || !proto.Equal(got[1], want) {
		t.Errorf("mounts %v", got)
	}
	if config.Mounts[1].Image.ImageRef != "" {
		t.Error("the shared configuration was changed")
	}
}
