package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// imageSources are what the guest's image is made by: a change makes it anew.
var imageSources = []string{"hack/vm/image.sh", "hack/vm/guest/vm-agent.service"}

// makeImage makes root.ext4 and vmlinuz in dir, unless they are there. It takes some minutes.
func makeImage(ctx context.Context, dir string) error {
	sum := sha256.New()
	for _, source := range imageSources {
		text, err := os.ReadFile(source)
		if err != nil {
			return err
		}
		sum.Write(text)
	}
	want := []byte(hex.EncodeToString(sum.Sum(nil)))
	mark := filepath.Join(dir, "built-for")
	if have, err := os.ReadFile(mark); err == nil && bytes.Equal(have, want) {
		return nil
	}
	fmt.Println("Making the guest's image ...")
	_ = os.Remove(mark)
	log, err := os.Create(filepath.Join(dir, "image.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	// In namespaces of its own: what debootstrap mounts or starts goes with it.
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--pid", "--fork", "--kill-child", "hack/vm/image.sh", dir)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("make the guest's image: %w; see %s", err, log.Name())
	}
	return os.WriteFile(mark, want, 0o644)
}
