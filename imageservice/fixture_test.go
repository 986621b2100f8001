package imageservice

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	fake "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("unpacking layers and mounting overlay need root")
	}
}

// open opens a service on an empty directory, or on one that an earlier service had.
func open(t testing.TB, change ...func(*Config)) *Service {
	t.Helper()
	needRoot(t)
	config := Config{Root: filepath.Join(t.TempDir(), "images")}
	for _, c := range change {
		c(&config)
	}
	s, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func at(root string) func(*Config) { return func(c *Config) { c.Root = root } }

// fakeRegistry is a registry in memory on a loopback port. Requests pass through its filter, if it has one, which
// returns true when it answered itself.
type fakeRegistry struct {
	host   string
	filter atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
	blobs  atomic.Int32 // GET requests for blobs
}

func newRegistry(t testing.TB) *fakeRegistry {
	t.Helper()
	r := &fakeRegistry{}
	inner := fake.New(fake.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Method == http.MethodGet && strings.Contains(q.URL.Path, "/blobs/") {
			r.blobs.Add(1)
		}
		if f := r.filter.Load(); f != nil && (*f)(w, q) {
			return
		}
		inner.ServeHTTP(w, q)
	}))
	t.Cleanup(server.Close)
	r.host = strings.TrimPrefix(server.URL, "http://")
	return r
}

func (r *fakeRegistry) intercept(f func(http.ResponseWriter, *http.Request) bool) {
	if f == nil {
		r.filter.Store(nil)
		return
	}
	r.filter.Store(&f)
}

// push stores an image and returns the digest of its manifest.
func (r *fakeRegistry) push(t testing.TB, repository string, img v1.Image) string {
	t.Helper()
	ref, err := name.ParseReference(r.host+"/"+repository, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest.String()
}

// mirrorAll is a registry configuration that sends every pull to r.
func (r *fakeRegistry) mirrorAll(t testing.TB) func(*Config) {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "_default"), 0o755); err != nil {
		t.Fatal(err)
	}
	toml := fmt.Sprintf("[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", r.host)
	if err := os.WriteFile(filepath.Join(dir, "_default", "hosts.toml"), []byte(toml), 0o644); err != nil {
		t.Fatal(err)
	}
	return func(c *Config) { c.RegistryConfigDir = dir }
}

// layer is a layer of one kind of entry each: a name that ends in "/" is a directory, a value that starts with "=>" a
// hard link; a name that starts with ".wh." is a whiteout by itself.
func layer(t testing.TB, files ...[2]string) v1.Layer {
	t.Helper()
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	for _, f := range files {
		header := &tar.Header{Name: f[0], Mode: 0o644, Size: int64(len(f[1])), Typeflag: tar.TypeReg}
		target, isLink := strings.CutPrefix(f[1], "=>")
		switch {
		case strings.HasSuffix(f[0], "/"):
			header.Typeflag, header.Mode, header.Size = tar.TypeDir, 0o755, 0
		case isLink:
			header.Typeflag, header.Linkname, header.Size = tar.TypeLink, target, 0
		}
		if err := w.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if header.Size > 0 {
			if _, err := w.Write([]byte(f[1])); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(buffer.Bytes())), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// makeImage is an image for this platform with layers and a user.
func makeImage(t testing.TB, user string, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", goruntime.GOARCH
	file.Config.User = user
	file.Config.Entrypoint = []string{"/bin/run"}
	if img, err = mutate.ConfigFile(img, file); err != nil {
		t.Fatal(err)
	}
	return img
}

// small is an image of three layers, the last of which removes and replaces; content tells images apart.
func small(t testing.TB, content string) v1.Image {
	t.Helper()
	return makeImage(t, "1002",
		layer(t, [2]string{"bin/", ""}, [2]string{"bin/run", "program"}, [2]string{"bin/alias", "=>bin/run"},
			[2]string{"etc/", ""}, [2]string{"etc/old", "old"}, [2]string{"etc/gone", "gone"}),
		layer(t, [2]string{"etc/content", content}),
		layer(t, [2]string{"etc/.wh.gone", ""}, [2]string{"etc/old", "new"}),
	)
}

func imageID(t testing.TB, img v1.Image) string {
	t.Helper()
	digest, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	return digest.String()
}

func pullOK(t testing.TB, s *Service, ref string) string {
	t.Helper()
	id, err := s.Pull(t.Context(), PullRequest{Ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// mountRootfs mounts what Prepare returned, as the keeper does, until the test ends.
func mountRootfs(t testing.TB, mounts []specs.Mount) string {
	t.Helper()
	target := t.TempDir()
	for _, m := range mounts {
		var flags uintptr
		if m.Type == "bind" {
			flags = syscall.MS_BIND | syscall.MS_REC
		}
		var data []string
		for _, o := range m.Options {
			if o != "rbind" && o != "rw" {
				data = append(data, o)
			}
		}
		if err := syscall.Mount(m.Source, target, m.Type, flags, strings.Join(data, ",")); err != nil {
			t.Fatalf("mount %+v: %v", m, err)
		}
		t.Cleanup(func() { syscall.Unmount(target, syscall.MNT_DETACH) })
	}
	return target
}

func read(t testing.TB, path ...string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// leftovers counts what the store holds, as the databases and the disk see it.
type leftovers struct{ names, blobs, ingests, layers, leases, files int }

func inventory(t testing.TB, s *Service) leftovers {
	t.Helper()
	ctx := scope(context.Background())
	var l leftovers
	records, err := s.store.images.List(ctx)
	check(t, err)
	l.names = len(records)
	check(t, s.store.content.Walk(ctx, func(content.Info) error { l.blobs++; return nil }))
	check(t, s.store.backend.Walk(ctx, func(context.Context, snapshots.Info) error { l.layers++; return nil }))
	leases, err := s.store.leases.List(ctx)
	check(t, err)
	l.leases = len(leases)
	for _, pattern := range []string{"content/ingest/*", "content/blobs/sha256/*", "snapshots/snapshots/*"} {
		found, err := filepath.Glob(filepath.Join(s.config.Root, pattern))
		check(t, err)
		if strings.Contains(pattern, "ingest") {
			l.ingests = len(found)
		} else {
			l.files += len(found)
		}
	}
	return l
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits for what happens in the background.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("did not happen within a minute: %s", what)
		}
	}
}

func (r *fakeRegistry) pushIndex(t testing.TB, repository string, index v1.ImageIndex) {
	t.Helper()
	ref, err := name.ParseReference(r.host+"/"+repository, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, index); err != nil {
		t.Fatal(err)
	}
}

func contentRef(ref string) content.WriterOpt { return content.WithRef(ref) }

// named is an image of the default handler.
func named(ref string) *runtime.ImageSpec { return &runtime.ImageSpec{Image: ref} }
