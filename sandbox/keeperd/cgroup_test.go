package keeperd

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

func TestPIDsAreUnlimitedUnlessLimited(t *testing.T) {
	ten, unlimited := int64(10), int64(-1)
	for _, test := range []struct {
		r    cgroups.Resources
		want *int64
	}{
		{cgroups.Resources{}, &unlimited},
		{cgroups.Resources{PidsLimit: &ten}, &ten},
		{cgroups.Resources{Unified: map[string]string{"pids.max": "77"}}, nil},
	} {
		unlimitPIDs(&test.r)
		if got := test.r.PidsLimit; (got == nil) != (test.want == nil) || got != nil && *got != *test.want {
			t.Errorf("%+v: limit %v, expected %v", test.r, got, test.want)
		}
	}
}

// The cgroup above the container's, or what there is of those above, is told; the root of the hierarchy never.
func TestCpusetsAreInherited(t *testing.T) {
	if cgroups.IsCgroup2UnifiedMode() {
		t.Skip("version 1 only")
	}
	root := filepath.Join(t.TempDir(), "cpuset")
	flag := func(dir string) string { return filepath.Join(root, dir, "cgroup.clone_children") }
	for _, dir := range []string{"", "pods"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(flag(dir), []byte("0"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cgroup{paths: map[string]string{"cpuset": filepath.Join(root, "c")}}.inheritCpuset()
	cgroup{paths: map[string]string{"cpuset": filepath.Join(root, "pods/pod/c")}}.inheritCpuset()
	for dir, want := range map[string]string{"": "0", "pods": "1"} {
		if b, err := os.ReadFile(flag(dir)); err != nil || string(b) != want {
			t.Errorf("%q: %q, %v; expected %q", dir, b, err, want)
		}
	}
}

// What is killed one by one, on v1 and on a kernel before 5.14, is frozen first, so that nothing forks away.
func TestACgroupIsFrozenAndThawed(t *testing.T) {
	dir := fmt.Sprintf("/sys/fs/cgroup/freezer/gantry-freeze-%d", os.Getpid())
	if cgroups.IsCgroup2UnifiedMode() {
		dir = fmt.Sprintf("/sys/fs/cgroup/gantry-freeze-%d", os.Getpid())
	}
	if freeze(dir) {
		t.Error("a cgroup that is not there was frozen")
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	sleep := exec.Command("sleep", "1000")
	t.Cleanup(func() {
		thaw(dir)
		_ = sleep.Process.Kill()
		_ = sleep.Wait()
		if err := removeDirs(dir); err != nil {
			t.Error(err)
		}
	})
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	if err := cgroups.WriteCgroupProc(dir, sleep.Process.Pid); err != nil {
		t.Fatal(err)
	}
	frozen := false
	for range 100 { // one try is short, for a loaded machine
		if frozen = freeze(dir); frozen {
			break
		}
	}
	if now, err := isFrozen(dir); !frozen || !now || err != nil {
		t.Errorf("freeze: %v, and it is frozen: %v, %v", frozen, now, err)
	}
	thaw(dir)
	if err := thawed(dir); err != nil {
		t.Error(err)
	}
}

// Most cgroups have none below them: that is told by the links, and the files of a cgroup are many to list.
func TestOnlyACgroupWithOthersBelowItIsListed(t *testing.T) {
	dir := fmt.Sprintf("/sys/fs/cgroup/freezer/gantry-below-%d", os.Getpid())
	if cgroups.IsCgroup2UnifiedMode() {
		dir = fmt.Sprintf("/sys/fs/cgroup/gantry-below-%d", os.Getpid())
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := removeDirs(dir); err != nil {
			t.Error(err)
		}
	})
	watch, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch)
	if _, err := unix.InotifyAddWatch(watch, dir, unix.IN_ACCESS|unix.IN_ONLYDIR); err != nil {
		t.Fatal(err)
	}
	listed := func() bool {
		n, err := unix.Read(watch, make([]byte, 4096))
		if err != nil && err != unix.EAGAIN {
			t.Fatal(err)
		}
		return n > 0
	}
	g := cgroup{paths: map[string]string{"": dir}}
	if err := removeBelow(g); err != nil || listed() {
		t.Errorf("without another below it: %v, and its files were listed", err)
	}
	below := filepath.Join(dir, "exec", "inner")
	if err := os.MkdirAll(below, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := removeBelow(g); err != nil || !listed() {
		t.Errorf("with another below it: %v, or its files were not listed", err)
	}
	if _, err := os.Stat(filepath.Dir(below)); !os.IsNotExist(err) {
		t.Errorf("what was below is there: %v", err)
	}
}
