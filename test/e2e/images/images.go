// Package images builds the container images of the tests from pieces of this machine (Debian's busybox and small
// static Go programs) and pushes them to a registry. Nothing is downloaded. It is not an image store and not part of
// the product.
package images

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Registry says where to push.
type Registry struct {
	// Address is host:port of a registry that speaks plain HTTP.
	Address string
	// Username and Password are the credentials; both empty means anonymous.
	Username, Password string
}

// Set is a list of built images.
type Set struct {
	images  map[string]v1.Image // by reference
	digests map[string]string   // by reference
}

// Build builds the images of a list.
func Build(ctx context.Context, list []Image) (*Set, error) {
	b, err := newBuilder(ctx)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(b.dir)
	set := &Set{images: make(map[string]v1.Image), digests: make(map[string]string)}
	for _, image := range list {
		built, err := b.build(image)
		if err != nil {
			return nil, fmt.Errorf("build image %s: %w", image.Refs[0], err)
		}
		digest, err := built.Digest()
		if err != nil {
			return nil, fmt.Errorf("digest image %s: %w", image.Refs[0], err)
		}
		for _, ref := range image.Refs {
			set.images[ref], set.digests[ref] = built, digest.String()
		}
	}
	return set, nil
}

// Digest is the digest of the manifest that a reference names, "" for a reference that is not in the set.
func (s *Set) Digest(ref string) string { return s.digests[ref] }

// Push pushes every image under all its references. A reference keeps its repository and tag; its registry host is
// replaced by the address: every host is meant to be mirrored there.
func (s *Set) Push(ctx context.Context, registry Registry) error {
	for ref, image := range s.images {
		if err := push(ctx, registry, ref, image); err != nil {
			return fmt.Errorf("push image %s: %w", ref, err)
		}
	}
	return nil
}

// Push builds the images of a list and pushes them.
func Push(ctx context.Context, registry Registry, list []Image) error {
	set, err := Build(ctx, list)
	if err != nil {
		return err
	}
	return set.Push(ctx, registry)
}

func push(ctx context.Context, registry Registry, ref string, image v1.Image) error {
	_, repository, found := strings.Cut(ref, "/")
	if !found {
		return fmt.Errorf("reference %q has no registry host", ref)
	}
	target, err := name.ParseReference(registry.Address+"/"+repository, name.Insecure)
	if err != nil {
		return err
	}
	auth := authn.Anonymous
	if registry.Username != "" {
		auth = &authn.Basic{Username: registry.Username, Password: registry.Password}
	}
	return remote.Write(target, image, remote.WithContext(ctx), remote.WithAuth(auth))
}

// builder keeps what several images share.
type builder struct {
	ctx     context.Context
	dir     string // for compiled programs
	busybox v1.Layer
}

func newBuilder(ctx context.Context) (*builder, error) {
	entries, err := busyboxEntries()
	if err != nil {
		return nil, err
	}
	layer, err := newLayer(entries)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "gantry-images-")
	if err != nil {
		return nil, fmt.Errorf("make directory for programs: %w", err)
	}
	return &builder{ctx: ctx, dir: dir, busybox: layer}, nil
}

func (b *builder) build(image Image) (v1.Image, error) {
	var layers []v1.Layer
	if !image.Bare {
		layers = append(layers, b.busybox)
	}
	entries := slices.Clone(image.entries)
	for _, p := range image.programs {
		body, err := b.compile(p.source)
		if err != nil {
			return nil, err
		}
		entries = append(entries, file(p.path, p.mode, body))
	}
	if len(entries) > 0 {
		layer, err := newLayer(entries)
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer)
	}
	built, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		return nil, err
	}
	config, err := built.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Config = "linux", runtime.GOARCH, image.Config
	if !slices.ContainsFunc(config.Config.Env, func(e string) bool { return strings.HasPrefix(e, "PATH=") }) {
		config.Config.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, config.Config.Env...)
	}
	return mutate.ConfigFile(built, config)
}

// compile builds one of the programs below prog/ as a static binary.
func (b *builder) compile(source string) ([]byte, error) {
	binary := filepath.Join(b.dir, source)
	if body, err := os.ReadFile(binary); err == nil {
		return body, nil
	}
	cmd := exec.CommandContext(b.ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", binary,
		"github.com/gantry-cri/gantry/test/e2e/images/prog/"+source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("compile %s: %w\n%s", source, err, out)
	}
	return os.ReadFile(binary)
}
