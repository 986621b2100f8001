//go:build e2e

package e2e

import (
	"bytes"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/images"
	"github.com/gantry-cri/gantry/test/e2e/node"
)

// tryPull pulls an image and returns the error of the call.
func tryPull(t *testing.T, ref string, auth *runtime.AuthConfig) error {
	t.Helper()
	_, err := shared.Images.PullImage(timeout(t), &runtime.PullImageRequest{
		Image: &runtime.ImageSpec{Image: ref}, Auth: auth,
	})
	return err
}

// wantNoImage checks that nothing is known of a reference.
func wantNoImage(t *testing.T, ref string) {
	t.Helper()
	response, err := shared.Images.ImageStatus(timeout(t), &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatal(err)
	}
	if response.Image != nil {
		t.Errorf("image %s is there: %v", ref, response.Image)
	}
}

// mirror makes a registry host of its own for a test; its name is returned.
func mirror(t *testing.T, name, address string) string {
	t.Helper()
	host := name + ".test"
	if err := shared.MirrorHost(host, address); err != nil {
		t.Fatal(err)
	}
	return host
}

func TestPullTellsTheSameImageByAllNames(t *testing.T) {
	id := pull(t, shared, images.Busybox)
	for _, ref := range []string{images.Busybox, id, strings.TrimPrefix(id, "sha256:")[:12]} {
		response, err := shared.Images.ImageStatus(timeout(t), &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: ref}})
		if err != nil {
			t.Fatal(err)
		}
		if response.Image.GetId() != id || response.Image.GetSize() == 0 {
			t.Errorf("status of %s is %v, expected id %s", ref, response.Image, id)
		}
	}
	users := pull(t, shared, images.Users)
	response, err := shared.Images.ImageStatus(timeout(t), &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: users}})
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "user name in image status", response.Image.GetUsername(), "app")
}

func TestPullOfAMissingImage(t *testing.T) {
	for _, ref := range []string{"registry.test/gantry/nothing:1", "registry.test/gantry/busybox:no-such-tag"} {
		wantCode(t, tryPull(t, ref, nil), codes.NotFound, ref)
		wantNoImage(t, ref)
	}
	if code := status.Code(tryPull(t, "registry.test/UPPER:1", nil)); code != codes.InvalidArgument {
		t.Errorf("a reference that cannot be has code %v", code)
	}
}

func TestCredentials(t *testing.T) {
	private, err := node.StartRegistry(timeout(t), toolsDir, filepath.Join(node.Dir(), "private"), true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(private.Stop)
	push := images.Registry{Address: private.Address, Username: node.RegistryUser, Password: node.RegistryPassword}
	ref := mirror(t, "private", private.Address) + "/gantry/private:1"
	if err := images.Push(timeout(t), push, []images.Image{{Refs: []string{ref}}}); err != nil {
		t.Fatal(err)
	}
	for what, auth := range map[string]*runtime.AuthConfig{
		"none": nil, "wrong": {Username: node.RegistryUser, Password: "guessed"},
	} {
		err := tryPull(t, ref, auth)
		if err == nil {
			t.Fatalf("pull with credentials %s succeeded", what)
		}
		if text := err.Error(); strings.Contains(text, "guessed") || !strings.Contains(text, "authoriz") && !strings.Contains(text, "401") {
			t.Errorf("error with credentials %s: %v", what, err)
		}
		wantNoImage(t, ref)
	}
	right := &runtime.AuthConfig{Username: node.RegistryUser, Password: node.RegistryPassword}
	if err := tryPull(t, ref, right); err != nil {
		t.Fatalf("pull with the right credentials: %v", err)
	}
}

func TestRegistryDown(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	address := strings.TrimPrefix(server.URL, "http://")
	server.Close()
	ref := mirror(t, "down", address) + "/gantry/busybox:1"
	err := tryPull(t, ref, nil)
	if err == nil || !strings.Contains(err.Error(), "RegistryUnavailable") {
		t.Errorf("the kubelet's reason RegistryUnavailable is missing: %v", err)
	}
	wantNoImage(t, ref)
}

func TestCorruptLayerLeavesNothing(t *testing.T) {
	var corrupt atomic.Bool
	corrupt.Store(true)
	proxy := httptest.NewServer(corruptingProxy(t, &corrupt))
	t.Cleanup(proxy.Close)
	ref := mirror(t, "corrupt", strings.TrimPrefix(proxy.URL, "http://")) + "/gantry/big:1"
	before := blobBytes(t)
	err := tryPull(t, ref, nil)
	if err == nil || !strings.Contains(err.Error(), "sha256:") {
		t.Errorf("pull of a corrupt layer: %v", err)
	}
	wantNoImage(t, ref)
	// Layers that were whole may stay until the next collection; the corrupt one of 8 MiB may not.
	eventually(t, "the corrupt layer is gone", func() bool { return blobBytes(t)-before < 4<<20 })
	corrupt.Store(false)
	if err := tryPull(t, ref, nil); err != nil {
		t.Errorf("pull after the registry was mended: %v", err)
	}
	removeImage(t, ref)
}

// corruptingProxy is the shared registry with every big blob changed in one bit.
func corruptingProxy(t *testing.T, corrupt *atomic.Bool) http.Handler {
	t.Helper()
	target, err := url.Parse("http://" + registry.Address)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ModifyResponse = func(r *http.Response) error {
		if !corrupt.Load() || r.Request.Method != http.MethodGet || r.ContentLength < 4<<20 {
			return nil
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return err
		}
		r.Body.Close()
		body[len(body)/2] ^= 1
		r.Body = io.NopCloser(bytes.NewReader(body))
		return nil
	}
	return proxy
}

// blobBytes is how much the shared node's image store holds.
func blobBytes(t *testing.T) int64 {
	t.Helper()
	var sum int64
	filepath.WalkDir(filepath.Join(shared.Root(), "images"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !strings.HasSuffix(path, ".db") {
			if info, err := d.Info(); err == nil {
				sum += info.Size()
			}
		}
		return nil
	})
	return sum
}

func removeImage(t *testing.T, ref string) {
	t.Helper()
	_, err := shared.Images.RemoveImage(timeout(t), &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatalf("remove image %s: %v", ref, err)
	}
}

func TestRemovedImageFreesItsSpace(t *testing.T) {
	removeImage(t, images.Big)
	var before int64
	eventually(t, "what other tests removed is collected", func() bool {
		before = blobBytes(t)
		time.Sleep(time.Second)
		return blobBytes(t) == before
	})
	pull(t, shared, images.Big)
	if grown := blobBytes(t) - before; grown < 8<<20 {
		t.Errorf("store grew by %d bytes only", grown)
	}
	removeImage(t, images.Big)
	removeImage(t, images.Big) // again: idempotent
	wantNoImage(t, images.Big)
	eventually(t, "the space is free", func() bool { return blobBytes(t)-before < 1<<20 })
}

func TestImageOfARunningContainerCanBeRemoved(t *testing.T) {
	p := runPod(t)
	p.start(t, "server", "", webServer)
	removeImage(t, images.Web)
	if got := fetch(t, "http://"+p.ip(t)+"/missing-from-the-store"); !strings.Contains(got, "hello") {
		t.Errorf("server answered %q", got)
	}
}

func TestPullsOfOneImageAtOnce(t *testing.T) {
	removeImage(t, images.Big)
	errs := make(chan error, 4)
	for range cap(errs) {
		go func() {
			_, err := shared.Images.PullImage(t.Context(), &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: images.Big}})
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	removeImage(t, images.Big)
}
