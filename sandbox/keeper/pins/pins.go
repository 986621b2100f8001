// Package pins is where the namespaces and the /dev/shm of sandboxes are mounted: in a mount namespace of its own, and
// not in the node's. Each mount namespace that is made, a container's too, begins as a copy of its maker's table of
// mounts, and who watches the table reads all of it at each change: with the pins in it, one more pod costs more the
// more there are.
//
// It does not make the namespaces that are pinned (package sandbox/namespace), nor containers of them.
//
// # What holds it
//
// The mount namespace has no process. It is mounted itself, as a file of the directory of the pins in the node's table,
// so it lives as long as the node is up, whoever dies. The directory is a tmpfs that is in both: in the node's table
// with no more than that one mount below it, in the other as the root, with the pins below it. A container's table gets
// no copy of the mount of a mount namespace (kernel: copy_tree without CL_COPY_MNT_NS_FILE), so none keeps it alive.
// And a file that is removed takes with it what other mount namespaces have mounted on it (kernel: vfs_unlink,
// detach_mounts): a pin is undone by removing its file from wherever.
package pins

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Anchor is the name of the file that the mount namespace is mounted on; no sandbox has such an id.
const Anchor = ".mounts"

// Dir is the directory of the pins below a state directory.
func Dir(stateDir string) string { return filepath.Join(stateDir, "pins") }

// Open makes dir the directory of the pins. It is idempotent.
func Open(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make pin directory: %w", err)
	}
	mounted, err := isMountPoint(dir)
	if err != nil {
		return err
	}
	if !mounted {
		const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
		if err := unix.Mount("gantry-pins", dir, "tmpfs", flags, "mode=0700"); err != nil {
			return fmt.Errorf("mount pin directory %s: %w", dir, err)
		}
	}
	// Private, so that nothing below propagates to where it would keep alive what it pins. Again, as a kill may have come
	// between the two.
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make pin directory %s private: %w", dir, err)
	}
	if Alive(filepath.Join(dir, Anchor)) {
		return nil
	}
	return makeNamespace(dir)
}

// Close undoes Open when no pin is left; it reports whether it did.
func Close(dir string) bool {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 1 || len(entries) == 1 && entries[0].Name() != Anchor {
		return false
	}
	_ = unix.Unmount(filepath.Join(dir, Anchor), unix.MNT_DETACH)
	return unix.Unmount(dir, 0) == nil
}

// Alive reports whether path is a pinned namespace: a file of nsfs, not the empty file below it.
func Alive(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// InTable reports whether something is mounted at path in the table of the calling thread: a pin made for a keeper that
// looks for it there, or one that plugins find. A directory is told where the kernel can (5.8 and later).
func InTable(path string) bool {
	mounted, _ := mountRoot(path)
	return mounted || Alive(path)
}

// mountRoot reports whether path is the root of a mount, and whether the kernel can tell (5.8 and later).
func mountRoot(path string) (is, told bool) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, 0, &st); err != nil {
		return false, false
	}
	const root = unix.STATX_ATTR_MOUNT_ROOT
	return st.Attributes&root != 0, st.Attributes_mask&root != 0
}

func isMountPoint(dir string) (bool, error) {
	var own, parent unix.Stat_t
	if err := unix.Stat(dir, &own); err != nil {
		return false, fmt.Errorf("stat %s: %w", dir, err)
	}
	if err := unix.Stat(filepath.Dir(dir), &parent); err != nil {
		return false, fmt.Errorf("stat %s: %w", filepath.Dir(dir), err)
	}
	return own.Dev != parent.Dev, nil
}

// idBatch is how many ids of namespaces a CPU takes at a time (kernel/cookie: COOKIE_LOCAL_BATCH), and idTries how
// often a new batch is begun.
const (
	idBatch = 4096
	idTries = 3
)

// makeNamespace makes the mount namespace and mounts it.
//
// The kernel lets a mount namespace be mounted only in an older one (mnt_ns_loop), and since 6.18 it judges that by ids
// that each CPU has a batch of, so that a new one may seem the older. Then the batch is used up.
func makeNamespace(dir string) (err error) {
	anchor := filepath.Join(dir, Anchor)
	if err := Touch(anchor); err != nil {
		return err
	}
	for try := range idTries {
		err = mountNew(dir, anchor, try*idBatch)
		if !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("make mount namespace of the pins: %w", err)
	}
	return nil
}

// mountNew makes a mount namespace, after so many others, and mounts it on anchor.
func mountNew(dir, anchor string, others int) error {
	made, mounted := make(chan error, 1), make(chan struct{})
	var tid int
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		tid = unix.Gettid()
		err := useIDs(others)
		if err == nil {
			err = moveIn(dir)
		}
		made <- err
		<-mounted // it is the namespace's only holder until then
	}()
	defer close(mounted)
	if err := <-made; err != nil {
		return err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/mnt", tid), anchor, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount it on %s: %w", anchor, err)
	}
	return nil
}

// useIDs uses up n ids of namespaces on one CPU, to which it binds the calling thread.
func useIDs(n int) error {
	if n == 0 {
		return nil
	}
	var allowed, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return fmt.Errorf("get affinity: %w", err)
	}
	for cpu := 0; one.Count() == 0; cpu++ {
		if allowed.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("set affinity: %w", err)
	}
	for range n {
		if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
	}
	return nil
}

// moveIn moves the calling thread to a new mount namespace with nothing but dir and what is mounted below it.
func moveIn(dir string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("enter %s: %w", dir, err)
	}
	// The old root comes to lie on the new one, without a directory for it (pivot_root(2), Notes).
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount old root: %w", err)
	}
	return nil
}

// Enter moves the calling thread, which must be locked, to the mount namespace of the pin directory dir, and its root
// and current directory to that directory there.
func Enter(dir string) error {
	ns, err := unix.Open(filepath.Join(dir, Anchor), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("enter mount namespace of the pins: %w", err)
	}
	defer unix.Close(ns)
	err = unix.Unshare(unix.CLONE_FS) // the kernel wants it of who changes the mount namespace
	if err == nil {
		err = unix.Setns(ns, unix.CLONE_NEWNS)
	}
	if err != nil {
		return fmt.Errorf("enter mount namespace of the pins: %w", err)
	}
	return nil
}

// View is a way to the pins from outside of their mount namespace.
type View struct {
	dir  string
	root *os.File
}

// Look opens a view of the pin directory dir. The caller closes it.
func Look(dir string) (*View, error) {
	opened := make(chan error, 1)
	v := &View{dir: dir}
	go func() {
		runtime.LockOSThread() // for good
		opened <- v.open()
	}()
	if err := <-opened; err != nil {
		return nil, err
	}
	return v, nil
}

// open opens the view and leaves the calling thread in the mount namespace.
func (v *View) open() error {
	if err := Enter(v.dir); err != nil {
		return err
	}
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open root of the pins: %w", err)
	}
	v.root = os.NewFile(uintptr(root), v.dir)
	return nil
}

// Close ends the view: paths that it gave lead nowhere after that.
func (v *View) Close() { _ = v.root.Close() }

// Path turns the path of a pin below the directory into one by which every process of the node's PID namespace can open
// it as long as this process has the view. Other paths come back as they are, and so do those of pins that are in the
// node's table.
func (v *View) Path(pin string) string {
	name, ok := strings.CutPrefix(pin, v.dir+"/")
	if !ok || InTable(pin) {
		return pin
	}
	return fmt.Sprintf("/proc/%d/fd/%d/%s", os.Getpid(), v.root.Fd(), name)
}

// Pin mounts the file source of nsfs, a namespace of the calling thread or process, at target in the node's table.
func Pin(source, target string) error {
	if err := Touch(target); err != nil {
		return err
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin namespace %s: %w", target, err)
	}
	return nil
}

// Touch makes the file that a namespace is pinned on.
func Touch(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY|unix.O_CLOEXEC, 0o400)
	if err != nil {
		return fmt.Errorf("pin namespace: %w", err)
	}
	return f.Close()
}

// Tree is a mount that is nowhere yet.
type Tree struct{ fd int }

// Clone takes the mount at a path as a tree of its own, without what is mounted below it. The path must be one of nsfs
// or be in the calling thread's mount namespace.
func Clone(path string) (Tree, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return Tree{-1}, fmt.Errorf("clone mount of %s: %w", path, err)
	}
	return Tree{fd}, nil
}

// Mount puts the tree at target in the calling thread's mount namespace.
func (t Tree) Mount(target string) error {
	if err := unix.MoveMount(t.fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount at %s: %w", target, err)
	}
	return nil
}

// Close lets go of the tree; what was not mounted goes.
func (t Tree) Close() {
	if t.fd >= 0 {
		_ = unix.Close(t.fd)
	}
}

// cloneMount is Clone of a path that has to be the root of a mount, where the kernel can tell (5.8 and later).
func cloneMount(path string) (Tree, error) {
	if is, told := mountRoot(path); told && !is {
		return Tree{-1}, fmt.Errorf("nothing is mounted at the pin %s", path)
	}
	return Clone(path)
}

// Borrow opens a view and clones the mounts at the paths shared, which are below the directory, from the calling
// thread, which must be locked for good; it comes back to its own mount namespace. A path at which nothing is mounted
// is an error: a container would get a directory of its own where it is to share one.
func Borrow(dir string, shared []string) (v *View, trees []Tree, err error) {
	home, err := unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open own mount namespace: %w", err)
	}
	defer unix.Close(home)
	v = &View{dir: dir}
	err = v.open()
	for _, path := range shared {
		var t Tree
		if err == nil {
			t, err = cloneMount(strings.TrimPrefix(path, dir))
		}
		if err == nil {
			trees = append(trees, t)
		}
	}
	if back := unix.Setns(home, unix.CLONE_NEWNS); back != nil {
		err = errors.Join(err, fmt.Errorf("leave mount namespace of the pins: %w", back))
	}
	if err != nil {
		for _, t := range trees {
			t.Close()
		}
		if v.root != nil {
			v.Close()
		}
		return nil, nil, err
	}
	return v, trees, nil
}
