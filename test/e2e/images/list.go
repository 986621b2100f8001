package images

import (
	"fmt"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Image describes an image to build.
type Image struct {
	// Refs are the references under which it is pushed, with registry hosts.
	Refs []string
	// Config is the image's own configuration; PATH is added to its environment.
	Config v1.Config
	// Bare leaves out the busybox layer.
	Bare     bool
	entries  []entry
	programs []program
}

// program is a Go program below prog/ that is compiled into an image.
type program struct {
	source, path string
	mode         int64
}

// Names of the images that the end-to-end tests use; their host exists nowhere and is always mirrored.
const (
	Busybox = "registry.test/gantry/busybox:1"
	Web     = "registry.test/gantry/web:1"
	NNP     = "registry.test/gantry/nnp:1"
	Users   = "registry.test/gantry/users:1"
	Big     = "registry.test/gantry/big:1"
	Pause   = "registry.test/gantry/pause:1"
	Data    = "registry.test/gantry/data:1"
)

func shell() v1.Config { return v1.Config{Cmd: []string{"sh"}} }

// E2E lists the images of the end-to-end tests and of the demonstration.
func E2E() []Image {
	return []Image{
		{Refs: []string{Busybox}, Config: shell()},
		{
			Refs: []string{Web}, Config: v1.Config{Cmd: []string{"/usr/sbin/httpd"}},
			programs: []program{{"web", "usr/sbin/httpd", 0o755}},
		},
		{
			Refs: []string{NNP}, Config: v1.Config{Entrypoint: []string{"/nnp"}},
			programs: []program{{"nnp", "nnp", 0o4755}},
		},
		{
			Refs: []string{Users},
			Config: v1.Config{
				User: "app", Cmd: []string{"sh"}, WorkingDir: "/srv/app", StopSignal: "SIGUSR1",
				Env: []string{"FROM_IMAGE=image", "BOTH=image"},
			},
			entries: []entry{
				text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/srv/app:/bin/sh\n"+
					"nobody:x:65534:65534:nobody:/nonexistent:/bin/sh\n"),
				text("etc/group", "root:x:0:\napp:x:1000:\nextra:x:50000:app\nnogroup:x:65534:\n"),
				dir("srv", 0o755), {name: "srv/app", mode: 0o755, dir: true, uid: 1000, gid: 1000},
				file("srv/not-executable", 0o644, []byte("#!/bin/sh\n")),
			},
		},
		{Refs: []string{Big}, Config: shell(), entries: []entry{file("big", 0o644, noise(8<<20))}},
		{
			Refs: []string{Data},
			Config: v1.Config{
				Cmd: []string{"sh"}, Volumes: map[string]struct{}{"/declared/new": {}, "/data/sub": {}},
			},
			entries: []entry{
				dir("data", 0o755), dir("data/sub", 0o755), text("data/sub/file", "from the image"),
				script("data/run", "echo ran"), dir("outside", 0o755), text("outside/own", "the image's own"),
				{name: "data/escape", symlink: "/../../../../../../outside"}, {name: "data/host", symlink: "/proc/1/root"},
				{name: "data/alias", symlink: "/data/sub"},
			},
		},
		{
			Refs: []string{Pause}, Bare: true, Config: v1.Config{User: "65535:65535", Entrypoint: []string{"/pause"}},
			programs: []program{{"pause", "pause", 0o755}},
		},
	}
}

// noise is n bytes that do not compress and are the same every time.
func noise(n int) []byte {
	b := make([]byte, n)
	x := uint64(88172645463325252)
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x)
	}
	return b
}

const (
	k8sRegistry     = "registry.k8s.io/"
	e2eImages       = k8sRegistry + "e2e-test-images/"
	stagingRegistry = "gcr.io/k8s-staging-cri-tools/"
)

// CritestDigestRef is pushed by tag; critest pulls it by digest, which has to be compiled into it.
const CritestDigestRef = stagingRegistry + "test-image-digest:latest"

// Critest lists the images that critest 1.36 has compiled in, as stand-ins that behave as its tests need.
func Critest() []Image {
	pause := func(version string, refs ...string) Image {
		return Image{
			Refs: refs, Bare: true,
			Config: v1.Config{
				User: "65535:65535", Entrypoint: []string{"/pause"},
				Labels: map[string]string{"version": version},
			},
			programs: []program{{"pause", "pause", 0o755}},
		}
	}
	list := []Image{
		pause("3.10", k8sRegistry+"pause:3.10.2", k8sRegistry+"pause:3.10.1", k8sRegistry+"pause:3.10"),
		pause("3.9", k8sRegistry+"pause:3.9", "k8s.gcr.io/pause:3.9"),
		{Refs: []string{e2eImages + "busybox:1.29-2"}, Config: shell()},
		{
			Refs: []string{e2eImages + "nginx:1.14-2"}, Config: v1.Config{Cmd: []string{"/usr/sbin/nginx"}},
			programs: []program{{"web", "usr/sbin/nginx", 0o755}},
		},
		{
			Refs: []string{e2eImages + "httpd:2.4.39-4"}, Config: v1.Config{Cmd: []string{"/usr/sbin/httpd"}},
			programs: []program{{"web", "usr/sbin/httpd", 0o755}},
		},
		{
			Refs:     []string{stagingRegistry + "hostnet-nginx-amd64:latest"},
			Config:   v1.Config{Cmd: []string{"/usr/sbin/nginx"}, Env: []string{"PORT=12003"}},
			programs: []program{{"web", "usr/sbin/nginx", 0o755}},
		},
		{
			Refs: []string{e2eImages + "nonewprivs:1.3"}, Config: v1.Config{Entrypoint: []string{"/nnp"}},
			programs: []program{{"nnp", "nnp", 0o4755}},
		},
		{
			Refs:   []string{stagingRegistry + "test-image-predefined-group:latest"},
			Config: v1.Config{User: "1000", Cmd: []string{"sh"}},
			entries: []entry{
				text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/home:/bin/sh\n"),
				text("etc/group", "root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n"),
			},
		},
		marked(CritestDigestRef),
		marked(stagingRegistry+"test-image-tags:1", stagingRegistry+"test-image-tags:2", stagingRegistry+"test-image-tags:3"),
	}
	for suffix, user := range map[string]string{
		"uid": "1002", "username": "www-data", "uid-group": "1003:1004", "username-group": "www-data:1004",
	} {
		list = append(list, Image{
			Refs:   []string{stagingRegistry + "test-image-user-" + suffix + ":latest"},
			Config: v1.Config{User: user, Cmd: []string{"sh"}},
		})
	}
	for _, ref := range []string{
		"test-image-1:latest", "test-image-2:latest", "test-image-3:latest", "test-image-latest:latest",
		"test-image-tag:test", "test-image-tag:all",
	} {
		list = append(list, marked(stagingRegistry+ref))
	}
	for _, tag := range []string{"1.35.0-glibc", "1-uclibc", "1", "1-glibc", "1-musl"} {
		list = append(list, marked("public.ecr.aws/docker/library/busybox:"+tag))
	}
	return list
}

// marked is an image that differs from all others.
func marked(refs ...string) Image {
	return Image{Refs: refs, Config: shell(), entries: []entry{text("marker", fmt.Sprintf("%s\n", refs[0]))}}
}

// Agnhost is the image of the Kubernetes project's own test program.
const Agnhost = "registry.test/gantry/agnhost:1"

// Kubelet lists the images of the tests with a kubelet. The argument is the path of the built agnhost.
func Kubelet(agnhost string) ([]Image, error) {
	own, err := built(Agnhost, agnhost)
	return append(E2E(), own), err
}

// MetricsServer is the image of sigs.k8s.io/metrics-server.
const MetricsServer = "registry.test/gantry/metrics-server:1"

// Cluster lists the images of the tests with several nodes: Busybox, Agnhost and, if wanted, MetricsServer. The
// programs are in the directory tools.
func Cluster(tools string, metrics bool) ([]Image, error) {
	own, err := built(Agnhost, filepath.Join(tools, "agnhost"))
	list := []Image{E2E()[0], own}
	if metrics && err == nil {
		var server Image
		server, err = built(MetricsServer, filepath.Join(tools, "metrics-server"))
		list = append(list, server)
	}
	return list, err
}

// built is an image with a program that make has built.
func built(ref, path string) (Image, error) {
	body, err := os.ReadFile(path)
	if err != nil {
		return Image{}, fmt.Errorf("read program of an image (make k8s and make cluster build them): %w", err)
	}
	name := filepath.Base(path)
	return Image{
		Refs: []string{ref}, Config: v1.Config{Entrypoint: []string{"/" + name}, Cmd: []string{"pause"}},
		entries: []entry{file(name, 0o755, body)},
	}, nil
}
