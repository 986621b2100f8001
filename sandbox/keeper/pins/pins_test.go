package pins

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// newDir is an open pin directory with a pin "s/uts" in it, a UTS namespace of its own.
func newDir(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces and mounts are made")
	}
	dir := filepath.Join(t.TempDir(), "pins")
	for range 2 { // it is idempotent
		if err := Open(dir); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		_ = os.RemoveAll(filepath.Join(dir, "s"))
		if !Close(dir) {
			t.Errorf("%s is still in use", dir)
		}
	})
	if err := os.Mkdir(filepath.Join(dir, "s"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Touch(filepath.Join(dir, "s/uts")); err != nil {
		t.Fatal(err)
	}
	if err := thread(func() error { return pinUTS(dir) }); err != nil {
		t.Fatal(err)
	}
	return dir
}

// thread calls f on a thread that is thrown away.
func thread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

func pinUTS(dir string) error {
	if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil {
		return err
	}
	tree, err := Clone("/proc/thread-self/ns/uts")
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := Enter(dir); err != nil {
		return err
	}
	return tree.Mount("/s/uts")
}

func look(t *testing.T, dir string) *View {
	t.Helper()
	view, err := Look(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(view.Close)
	return view
}

func TestPinsAreNotInTheNodesTable(t *testing.T) {
	dir := newDir(t)
	pin := filepath.Join(dir, "s/uts")
	if Alive(pin) {
		t.Error("it is in the node's table")
	}
	if path := look(t, dir).Path(pin); !Alive(path) {
		t.Errorf("%s is not pinned", path)
	}
	mounts, err := os.ReadFile("/proc/thread-self/mountinfo")
	if n := strings.Count(string(mounts), dir); err != nil || n != 2 {
		t.Errorf("%d mounts in the node's table, %v; expected the directory and the mount namespace", n, err)
	}
	if Close(dir) {
		t.Fatal("closed with a pin in it")
	}
}

// A daemon that is killed and started again opens a directory with pins in it.
func TestPinsOutliveWhoOpenedThem(t *testing.T) {
	dir := newDir(t)
	if err := Open(dir); err != nil {
		t.Fatal(err)
	}
	if pin := filepath.Join(dir, "s/uts"); !Alive(look(t, dir).Path(pin)) {
		t.Errorf("%s is gone", pin)
	}
}

// An earlier version has its pins in the node's table.
func TestPinsInTheNodesTableAreFound(t *testing.T) {
	dir := newDir(t)
	pin := filepath.Join(dir, "s/net")
	if err := Pin("/proc/self/ns/net", pin); err != nil {
		t.Fatal(err)
	}
	if got := look(t, dir).Path(pin); got != pin {
		t.Errorf("got %s, expected %s", got, pin)
	}
	if got := look(t, dir).Path("/proc/1/ns/net"); got != "/proc/1/ns/net" {
		t.Errorf("got %s for what is no pin", got)
	}
	if err := unix.Unmount(pin, unix.MNT_DETACH); err != nil {
		t.Error(err)
	}
}

func TestRemovingTheFileUndoesThePin(t *testing.T) {
	dir := newDir(t)
	path := look(t, dir).Path(filepath.Join(dir, "s/uts"))
	if err := os.Remove(filepath.Join(dir, "s/uts")); err != nil {
		t.Fatal(err)
	}
	if err := Touch(filepath.Join(dir, "s/uts")); err != nil {
		t.Fatal(err)
	}
	if Alive(path) {
		t.Error("it is still mounted")
	}
}

// A mount namespace that is made while pins are there, such as a container's, must not keep them alive.
func TestMountNamespacesDoNotGetThePins(t *testing.T) {
	dir := newDir(t)
	err := thread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			return err
		}
		b, err := os.ReadFile("/proc/thread-self/mountinfo")
		if n := strings.Count(string(b), dir); n != 1 {
			t.Errorf("a copy has %d mounts, expected the directory only", n)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestBorrowedMountsAreTheSame(t *testing.T) {
	dir := newDir(t)
	err := thread(func() error {
		if err := Enter(dir); err != nil {
			return err
		}
		if err := os.Mkdir("/s/shm", 0o700); err != nil {
			return err
		}
		if err := unix.Mount("shm", "/s/shm", "tmpfs", 0, ""); err != nil {
			return err
		}
		return os.WriteFile("/s/shm/file", []byte("text"), 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	target := t.TempDir()
	err = thread(func() error {
		view, trees, err := Borrow(dir, []string{filepath.Join(dir, "s/shm")})
		if err != nil {
			return err
		}
		defer view.Close()
		defer trees[0].Close()
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := trees[0].Mount(target); err != nil {
			return err
		}
		if b, err := os.ReadFile(filepath.Join(target, "file")); string(b) != "text" {
			t.Errorf("read %q, %v", b, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(target, "file")); err == nil {
		t.Error("it is mounted outside, too")
	}
}

// A container must not get a directory of its own for one that it is to share.
func TestBorrowOfWhatIsNotMounted(t *testing.T) {
	dir := newDir(t)
	path := filepath.Join(dir, "s/shm")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	err := thread(func() error {
		view, trees, err := Borrow(dir, []string{path})
		if err == nil {
			trees[0].Close()
			view.Close()
		}
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "nothing is mounted at the pin /s/shm") {
		t.Errorf("got %v", err)
	}
}

func TestAliveIsFalseForTheFileThatARebootLeaves(t *testing.T) {
	path := filepath.Join(t.TempDir(), "net")
	if err := os.WriteFile(path, nil, 0o400); err != nil {
		t.Fatal(err)
	}
	if Alive(path) || Alive(path+"-missing") {
		t.Error("alive")
	}
}
