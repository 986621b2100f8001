package keeperd

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMountPointsOfAContainerGoWithIt(t *testing.T) {
	l := layout{root: t.TempDir()}
	if err := os.Mkdir(filepath.Join(l.root, "rootfs"), 0o711); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		for _, id := range []string{"a", "ab"} {
			if _, err := l.makeMountPoint(id); err != nil {
				t.Fatal(err)
			}
		}
	}
	left := func() int {
		entries, _ := os.ReadDir(filepath.Join(l.root, "rootfs"))
		return len(entries)
	}
	// What a keeper that was killed in the middle of a removal left.
	if err := os.Remove(l.mountPoint("a", 2)); err != nil || left() != 5 {
		t.Fatalf("%d are left, %v", left(), err)
	}
	for range 2 {
		if err := l.removeFiles("a"); err != nil || left() != 3 {
			t.Errorf("%d are left, want those of the other container; %v", left(), err)
		}
	}
	if err := l.removeFiles("ab"); err != nil || left() != 0 {
		t.Errorf("%d are left, %v", left(), err)
	}
}
