package imageservice

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
)

func TestPullByTagDigestAndWithoutTag(t *testing.T) {
	r := newRegistry(t)
	img := small(t, "a")
	digest := r.push(t, "app:latest", img)
	r.push(t, "app:v1", img)
	byDigest := r.host + "/app@" + digest
	for _, c := range []struct {
		name, ref string
		tags      []string
	}{
		{"tag", r.host + "/app:v1", []string{r.host + "/app:v1"}},
		{"no tag", r.host + "/app", []string{r.host + "/app:latest"}},
		{"digest", byDigest, nil},
		{"tag and digest", r.host + "/app:v1@" + digest, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t)
			id := pullOK(t, s, c.ref)
			got, ok := s.Status(named(c.ref))
			if !ok || id != imageID(t, img) || got.Id != id {
				t.Fatalf("pulled %s, status %v", id, got)
			}
			if !slices.Equal(got.RepoTags, c.tags) || !slices.Equal(got.RepoDigests, []string{byDigest}) {
				t.Errorf("tags %v, digests %v", got.RepoTags, got.RepoDigests)
			}
			if got.Size == 0 || got.GetUid().GetValue() != 1002 || got.Username != "" || got.Spec.GetImage() == "" {
				t.Errorf("status %v", got)
			}
		})
	}
}

func TestPullThroughMirrorKeepsNames(t *testing.T) {
	r := newRegistry(t)
	img := small(t, "a")
	r.push(t, "library/busybox:1", img)
	r.push(t, "pause:3.9", img)
	s := open(t, r.mirrorAll(t))
	pullOK(t, s, "busybox:1")
	pullOK(t, s, "registry.k8s.io/pause:3.9")
	pullOK(t, s, "k8s.gcr.io/pause:3.9")
	if n := len(s.List(nil)); n != 1 {
		t.Fatalf("%d images, expected one with all names", n)
	}
	got, _ := s.Status(named("busybox:1"))
	want := []string{"docker.io/library/busybox:1", "k8s.gcr.io/pause:3.9", "registry.k8s.io/pause:3.9"}
	if !slices.Equal(got.RepoTags, want) || len(got.RepoDigests) != 3 {
		t.Errorf("tags %v, digests %v", got.RepoTags, got.RepoDigests)
	}
	_, imageRef, err := s.Resolve(named("k8s.gcr.io/pause:3.9"))
	if err != nil || !strings.HasPrefix(imageRef, "k8s.gcr.io/pause@sha256:") {
		t.Errorf("image ref %s, %v", imageRef, err)
	}
}

func TestPullOfMovedTagTakesTheName(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "app:v1", small(t, "old"))
	s := open(t)
	old := pullOK(t, s, r.host+"/app:v1")
	r.push(t, "app:v1", small(t, "new"))
	if id := pullOK(t, s, r.host+"/app:v1"); id == old {
		t.Fatal("the new image was not pulled")
	}
	if got, ok := s.Status(named(old)); !ok || len(got.RepoTags) != 0 || len(got.RepoDigests) != 1 {
		t.Errorf("old image %v", got)
	}
}

func TestPullOfIndexTakesThisPlatform(t *testing.T) {
	r := newRegistry(t)
	mine := small(t, "mine")
	other := small(t, "other")
	file, _ := other.ConfigFile()
	file = file.DeepCopy()
	file.Architecture = "s390x"
	other, _ = mutate.ConfigFile(other, file)
	index := mutate.AppendManifests(empty.Index, addendum(other, "s390x"), addendum(mine, goruntime.GOARCH))
	r.pushIndex(t, "multi:1", index)
	r.push(t, "foreign:1", other)
	s := open(t)
	if id := pullOK(t, s, r.host+"/multi:1"); id != imageID(t, mine) {
		t.Errorf("pulled %s", id)
	}
	_, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/foreign:1"})
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "s390x") {
		t.Errorf("foreign image: %v", err)
	}
}

func TestPullOfAnImageThatDoesNotSayItsPlatform(t *testing.T) {
	r := newRegistry(t)
	img := small(t, "anywhere")
	file, _ := img.ConfigFile()
	file = file.DeepCopy()
	file.OS, file.Architecture = "", ""
	img, err := mutate.ConfigFile(img, file)
	check(t, err)
	r.push(t, "anywhere:1", img)
	s := open(t)
	pullOK(t, s, r.host+"/anywhere:1")
	_, _, err = s.Prepare(t.Context(), "c1", r.host+"/anywhere:1")
	check(t, err)
}

func addendum(img v1.Image, architecture string) mutate.IndexAddendum {
	return mutate.IndexAddendum{
		Add:        img,
		Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: architecture}},
	}
}

func TestPullOfBigLayerInRanges(t *testing.T) {
	r := newRegistry(t)
	noise := make([]byte, 3*rangeSize+17)
	rand.Read(noise)
	img := makeImage(t, "", layer(t, [2]string{"noise", string(noise)}))
	r.push(t, "big:1", img)
	s := open(t)
	pullOK(t, s, r.host+"/big:1")
	mounts, _, err := s.Prepare(t.Context(), "c1", r.host+"/big:1")
	check(t, err)
	if read(t, mountRootfs(t, mounts), "noise") != string(noise) {
		t.Error("content differs")
	}
}

func TestPullWithCredentials(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "private:1", small(t, "a"))
	r.intercept(func(w http.ResponseWriter, q *http.Request) bool {
		if q.Header.Get("Authorization") == "Bearer sesame" {
			return false
		}
		if user, password, ok := q.BasicAuth(); ok && user == "user" && password == "sec:ret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	for _, c := range []struct {
		name string
		auth *runtime.AuthConfig
		ok   bool
	}{
		{"user and password", &runtime.AuthConfig{Username: "user", Password: "sec:ret"}, true},
		{"auth field with NUL", &runtime.AuthConfig{Auth: "dXNlcjpzZWM6cmV0AAA="}, true},
		{"right server", &runtime.AuthConfig{Username: "user", Password: "sec:ret",
			ServerAddress: "http://" + r.host + "/v1/"}, true},
		{"registry token", &runtime.AuthConfig{RegistryToken: "sesame"}, true},
		{"none", nil, false},
		{"wrong password", &runtime.AuthConfig{Username: "user", Password: "hunter2"}, false},
		{"wrong token", &runtime.AuthConfig{RegistryToken: "hunter2"}, false},
		{"other server", &runtime.AuthConfig{Username: "user", Password: "sec:ret",
			ServerAddress: "registry.example"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t)
			_, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/private:1", Auth: c.auth})
			if c.ok {
				check(t, err)
				return
			}
			if !errdefs.IsUnauthorized(err) || !strings.Contains(err.Error(), r.host+"/private:1") ||
				!strings.Contains(err.Error(), "authorization failed") {
				t.Errorf("error %v", err)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("error tells the secret: %v", err)
			}
		})
	}
}

func TestPullErrors(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "app:1", small(t, "a"))
	status := func(code int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(code); return true }
	}
	for _, c := range []struct {
		name, ref string
		filter    func(http.ResponseWriter, *http.Request) bool
		kind      error
		prefix    string
	}{
		{"no such image", r.host + "/none:1", nil, errdefs.ErrNotFound, "pull image"},
		{"no such tag", r.host + "/app:2", nil, errdefs.ErrNotFound, "pull image"},
		{"bad name", "UPPER/Case:::", nil, errdefs.ErrInvalidArgument, "image reference"},
		{"nobody listens", "127.0.0.1:1/app:1", nil, crierrors.ErrRegistryUnavailable, "RegistryUnavailable: "},
		{"unknown host", "registry.invalid/app:1", nil, crierrors.ErrRegistryUnavailable, "RegistryUnavailable: "},
		{"server error", r.host + "/app:1", status(503), crierrors.ErrRegistryUnavailable, "RegistryUnavailable: "},
		{"too many", r.host + "/app:1", status(429), crierrors.ErrRegistryUnavailable, "RegistryUnavailable: "},
		{"forbidden", r.host + "/app:1", status(403), errdefs.ErrPermissionDenied, "pull image"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t)
			r.intercept(c.filter)
			defer r.intercept(nil)
			before := inventory(t, s)
			_, err := s.Pull(t.Context(), PullRequest{Ref: c.ref})
			if !errors.Is(err, c.kind) || !strings.HasPrefix(err.Error(), c.prefix) ||
				strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, expected kind %v", err, c.kind)
			}
			if c.prefix != "image reference" && !strings.Contains(err.Error(), c.ref) {
				t.Errorf("error does not name the image: %v", err)
			}
			if after := inventory(t, s); after != before {
				t.Errorf("left %+v, before %+v", after, before)
			}
		})
	}
}

func TestPullOfDamagedLayerLeavesNothing(t *testing.T) {
	r := newRegistry(t)
	img := small(t, "a")
	r.push(t, "app:1", img)
	layers, err := img.Layers()
	check(t, err)
	digest, err := layers[1].Digest()
	check(t, err)
	size, err := layers[1].Size()
	check(t, err)
	r.intercept(func(w http.ResponseWriter, q *http.Request) bool {
		if !strings.HasSuffix(q.URL.Path, digest.String()) {
			return false
		}
		w.Write(make([]byte, size))
		return true
	})
	s := open(t)
	before := inventory(t, s)
	ref := r.host + "/app:1"
	_, err = s.Pull(t.Context(), PullRequest{Ref: ref})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), ref) ||
		!strings.Contains(err.Error(), digest.String()) {
		t.Errorf("error %v", err)
	}
	if _, ok := s.Status(named(ref)); ok {
		t.Error("the image is visible")
	}
	if after := inventory(t, s); after != before {
		t.Errorf("left %+v, before %+v", after, before)
	}
	r.intercept(nil)
	pullOK(t, s, ref)
}

// slow makes layer requests hang until release is called; reached tells when one does.
func slow(t *testing.T, r *fakeRegistry) (reached <-chan struct{}, release func()) {
	t.Helper()
	came, gate := make(chan struct{}), make(chan struct{})
	var once, opened sync.Once
	r.intercept(func(_ http.ResponseWriter, q *http.Request) bool {
		if q.Method != http.MethodGet || !strings.Contains(q.URL.Path, "/blobs/") {
			return false
		}
		once.Do(func() { close(came) })
		select {
		case <-gate:
		case <-q.Context().Done():
		}
		return false
	})
	release = func() { opened.Do(func() { close(gate) }) }
	t.Cleanup(release)
	return came, release
}

func TestPullObeysDeadlineAndCleansUp(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "app:1", small(t, "a"))
	s := open(t)
	before := inventory(t, s)
	expired, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	if _, err := s.Pull(expired, PullRequest{Ref: r.host + "/app:1"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("expired context: %v", err)
	}
	slow(t, r)
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := s.Pull(short, PullRequest{Ref: r.host + "/app:1"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("short context: %v", err)
	}
	if took := time.Since(start); took > time.Minute {
		t.Errorf("took %s", took)
	}
	eventually(t, "cancelled pull leaves nothing", func() bool { return inventory(t, s) == before })
}

func TestPullGivesUpWithoutProgress(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "app:1", small(t, "a"))
	s := open(t, func(c *Config) { c.PullProgressTimeout = 200 * time.Millisecond })
	slow(t, r)
	_, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/app:1"})
	if !errors.Is(err, crierrors.ErrRegistryUnavailable) || !strings.HasPrefix(err.Error(), "RegistryUnavailable: ") ||
		!strings.Contains(err.Error(), "sends nothing") {
		t.Errorf("error %v", err)
	}
}

func TestSharedPullOutlivesOneWaiter(t *testing.T) {
	r := newRegistry(t)
	img := small(t, "a")
	r.push(t, "app:1", img)
	s := open(t)
	reached, release := slow(t, r)
	ref := r.host + "/app:1"
	first, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 2)
	go func() {
		_, err := s.Pull(first, PullRequest{Ref: ref})
		errs <- err
	}()
	<-reached
	ids := make(chan string, 1)
	go func() {
		id, err := s.Pull(t.Context(), PullRequest{Ref: ref})
		ids <- id
		errs <- err
	}()
	eventually(t, "second caller joins", func() bool {
		s.pulls.mu.Lock()
		defer s.pulls.mu.Unlock()
		p := s.pulls.running[pullKey(ref, "", nil)]
		return p != nil && p.waiters == 2
	})
	cancel()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled waiter: %v", err)
	}
	r.intercept(nil)
	release()
	if id := <-ids; id != imageID(t, img) {
		t.Errorf("other waiter got %q", id)
	}
	check(t, <-errs)
	if n := r.blobs.Load(); n != 4 { // configuration and three layers
		t.Errorf("%d blobs were fetched, expected 4", n)
	}
}

func TestPullsOfImagesWithCommonLayers(t *testing.T) {
	r := newRegistry(t)
	s := open(t)
	var group sync.WaitGroup
	for _, n := range []string{"a", "b", "c", "d", "e"} {
		r.push(t, n+":1", small(t, n))
	}
	for _, n := range []string{"a", "b", "c", "d", "e"} {
		group.Go(func() {
			if _, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/" + n + ":1"}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if n := len(s.List(nil)); n != 5 {
		t.Errorf("%d images", n)
	}
}

func TestPullReportsProgress(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "app:1", small(t, "a"))
	s := open(t)
	last := map[string]Progress{}
	_, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/app:1", Progress: func(p Progress) {
		if p.Offset < last[p.Digest].Offset {
			t.Errorf("progress went back: %+v", p)
		}
		last[p.Digest] = p
	}})
	check(t, err)
	if len(last) != 5 {
		t.Errorf("progress of %d blobs, expected 5", len(last))
	}
	for _, p := range last {
		if !p.Done || p.Offset != p.Total {
			t.Errorf("last report %+v", p)
		}
	}
}

func TestBrokenConnectionIsTakenUpAgain(t *testing.T) {
	r := newRegistry(t)
	noise := make([]byte, 4<<20)
	rand.Read(noise)
	img := makeImage(t, "", layer(t, [2]string{"noise", string(noise)}))
	r.push(t, "app:1", img)
	layers, err := img.Layers()
	check(t, err)
	digest, err := layers[0].Digest()
	check(t, err)
	compressed, err := layers[0].Compressed()
	check(t, err)
	blob, err := io.ReadAll(compressed)
	check(t, err)
	var requests, breaks atomic.Int32
	r.intercept(func(w http.ResponseWriter, q *http.Request) bool {
		if !strings.HasSuffix(q.URL.Path, digest.String()) {
			return false
		}
		if requests.Add(1) <= breaks.Load() {
			w.Header().Set("Content-Length", strconv.Itoa(len(blob)))
			w.Write(blob[:len(blob)/2])
			panic(http.ErrAbortHandler)
		}
		http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(blob))
		return true
	})
	s := open(t)
	breaks.Store(1)
	pullOK(t, s, r.host+"/app:1")

	other := open(t)
	requests.Store(0)
	breaks.Store(1000)
	_, err = other.Pull(t.Context(), PullRequest{Ref: r.host + "/app:1"})
	if !errors.Is(err, crierrors.ErrRegistryUnavailable) {
		t.Errorf("always broken: %v", err)
	}
}

func TestUntrustedCertificateIsRegistryUnavailable(t *testing.T) {
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	mirror := &fakeRegistry{host: strings.TrimPrefix(server.URL, "https://")}
	s := open(t, mirror.mirrorAll(t), func(c *Config) {
		path := filepath.Join(c.RegistryConfigDir, "_default", "hosts.toml")
		toml := fmt.Sprintf("server = %q\n", server.URL)
		check(t, os.WriteFile(path, []byte(toml), 0o644))
	})
	_, err := s.Pull(t.Context(), PullRequest{Ref: "registry.invalid/app:1"})
	if !errors.Is(err, crierrors.ErrRegistryUnavailable) || !strings.Contains(err.Error(), "x509") {
		t.Errorf("error %v", err)
	}
}

// An artifact (a manifest whose configuration is not an image's) has no root filesystem: it must not become an empty image.
func TestArtifactIsRefused(t *testing.T) {
	r := newRegistry(t)
	artifact := mutate.ConfigMediaType(makeImage(t, "", layer(t, [2]string{"model", "weights"})), "application/vnd.example.model+json")
	r.push(t, "model:1", artifact)
	s := open(t)
	before := inventory(t, s)
	_, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/model:1"})
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "application/vnd.example.model+json") {
		t.Errorf("error %v", err)
	}
	eventually(t, "nothing is left", func() bool { return inventory(t, s) == before })
}
