package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/gantry-cri/gantry/test/e2e/images"
	"github.com/gantry-cri/gantry/test/e2e/node"
)

// makePayload makes payload.ext4 in dir: the second disk, with the programs, tests and images. It has the shape of the
// source tree, so that programs find each other as they do there.
func makePayload(ctx context.Context, dir string) error {
	tree := filepath.Join(dir, "payload")
	if err := os.RemoveAll(tree); err != nil {
		return err
	}
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return err
	}
	if err := makeRegistry(ctx, filepath.Join(tree, "registry")); err != nil {
		return err
	}
	for _, command := range payloadCommands(tree, filepath.Join(dir, "payload.ext4")) {
		cmd := exec.CommandContext(ctx, command[0], command[1:]...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("make the payload: %v: %w", command, err)
		}
	}
	return os.RemoveAll(tree)
}

// payloadCommands build and copy, in this order.
func payloadCommands(tree, disk string) [][]string {
	build := func(out, source string) []string {
		return []string{"go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(tree, out), source}
	}
	tests := func(out, source string) []string {
		return []string{"go", "test", "-c", "-trimpath", "-tags=e2e", "-ldflags=-s -w", "-o", filepath.Join(tree, out), source}
	}
	// What has cgo in it is linked as the keeper is, and the keeper is of the version that its tests expect.
	static := func(out, source string, verb ...string) []string {
		return append(append([]string{"env", "CGO_ENABLED=1", "go"}, verb...), "-trimpath", "-tags=seccomp netgo osusergo",
			"-ldflags=-s -w -linkmode external -extldflags=-static -X main.version=test", "-o", filepath.Join(tree, out), source)
	}
	return [][]string{
		{"mkdir", filepath.Join(tree, ".work")},
		{"cp", "-r", "bin", "hack/vm/guest", "packaging", tree},
		{"cp", "-r", ".work/bin", ".work/critest", filepath.Join(tree, ".work")},
		{"rm", "-rf", filepath.Join(tree, ".work/critest/src"), filepath.Join(tree, ".work/bin/criu")}, // the guest has its own
		build("bin/agent", "./hack/vm/agent"),
		build("bin/critest", "./hack/critest"),
		tests("test/vm/vm.test", "./test/vm"),
		tests("test/e2e/e2e.test", "./test/e2e"),
		static("test/keeperd/keeperd.test", "./sandbox/keeperd", "test", "-c"),
		static("test/keeperd/gantry-keeper", "./cmd/gantry-keeper", "build"),
		{"rm", "-f", disk},
		{"mke2fs", "-q", "-t", "ext4", "-L", "payload", "-m", "0", "-d", tree, disk, "1G"},
	}
}

// makeRegistry fills the storage of a registry with the images of the tests, and builds critest for them.
func makeRegistry(ctx context.Context, dir string) error {
	list := append(images.E2E(), images.Critest()...)
	set, err := images.Build(ctx, list)
	if err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "hack/critest/build.sh", set.Digest(images.CritestDigestRef))
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build critest: %w", err)
	}
	registry, err := node.StartRegistry(ctx, ".work/bin", dir, false)
	if err != nil {
		return err
	}
	defer registry.Stop()
	return set.Push(ctx, images.Registry{Address: registry.Address})
}
