// Package namespace makes Linux namespaces that live without a process: each is pinned by a mount (package pins). It is
// not about the namespaces of a single container (mount, PID, cgroup), which the keeper makes.
package namespace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeper/pins"
)

// Files of a pin directory.
const (
	Net    = "net"
	IPC    = "ipc"
	UTS    = "uts"
	Userns = "user"
	Shm    = "shm"
)

// ShmSize is the size of a sandbox's /dev/shm: 64 MiB, as every runtime has it.
const ShmSize = 64 << 20

// Options says which namespaces to make and how they begin.
type Options struct {
	Net, IPC, UTS bool
	// NetInTable pins the network namespace in the node's table of mounts, where every program finds it at the same path
	// whichever daemon runs.
	NetInTable bool
	// InTable pins all namespaces and /dev/shm there, where a keeper of keeper.ProtocolTablePins looks for them.
	InTable bool
	// Hostname is set in the new UTS namespace.
	Hostname string
	// Sysctls are written in the new namespaces; the keys are dotted. CheckSysctls has been called.
	Sysctls map[string]string
	// User, when not nil, makes a user namespace that owns the others.
	User *User
}

// Make makes the namespaces of opts and pins them as files in dir, which it makes in a directory that pins.Open has
// opened; with an IPC namespace also the sandbox's /dev/shm. When it fails, Remove cleans up.
func Make(dir string, opts Options) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make pin directory: %w", err)
	}
	done := make(chan error, 1)
	go func() {
		// The thread is never unlocked: it ends with the goroutine, and nobody else runs in its namespaces.
		runtime.LockOSThread()
		done <- makeInThread(dir, opts)
	}()
	return <-done
}

func makeInThread(dir string, opts Options) error {
	kinds := map[string]int{}
	if opts.Net {
		kinds[Net] = unix.CLONE_NEWNET
	}
	if opts.IPC {
		kinds[IPC] = unix.CLONE_NEWIPC
	}
	if opts.UTS {
		kinds[UTS] = unix.CLONE_NEWUTS
	}
	flags := 0
	for _, f := range kinds {
		flags |= f
	}
	if flags == 0 {
		return nil
	}
	if opts.User != nil {
		defer opts.User.release()
	}
	if err := opts.enterNew(kinds, flags); err != nil {
		return err
	}
	if opts.UTS {
		if err := unix.Sethostname([]byte(opts.Hostname)); err != nil {
			return fmt.Errorf("set hostname %q: %w", opts.Hostname, err)
		}
	}
	if err := opts.writeSysctls(); err != nil {
		return err
	}
	return opts.pin(dir, kinds)
}

// pin pins the namespaces of the calling thread, and leaves it in the mount namespace that they are mounted in.
func (o *Options) pin(dir string, kinds map[string]int) error {
	trees := map[string]pins.Tree{}
	defer func() {
		for kind, tree := range trees {
			if kind != Userns { // which is o.User's
				tree.Close()
			}
		}
	}()
	for kind := range kinds {
		own := "/proc/thread-self/ns/" + kind
		if kind == Net && o.NetInTable {
			if err := pins.Pin(own, filepath.Join(dir, kind)); err != nil {
				return err
			}
			continue
		}
		tree, err := pins.Clone(own)
		if err != nil {
			return err
		}
		trees[kind] = tree
	}
	if o.User != nil {
		trees[Userns] = o.User.tree
	}
	for kind := range trees {
		if err := pins.Touch(filepath.Join(dir, kind)); err != nil {
			return err
		}
	}
	inside := dir
	if !o.InTable {
		if err := pins.Enter(filepath.Dir(dir)); err != nil {
			return err
		}
		inside = "/" + filepath.Base(dir)
	}
	for kind, tree := range trees {
		if err := tree.Mount(filepath.Join(inside, kind)); err != nil {
			return err
		}
	}
	if o.IPC {
		return makeShm(inside, o.User)
	}
	return nil
}

// enterNew moves the calling thread to new namespaces.
func (o *Options) enterNew(kinds map[string]int, flags int) error {
	if o.User != nil {
		return o.User.enterNew(kinds, flags)
	}
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	return nil
}

// makeShm mounts a sandbox's /dev/shm in dir. It belongs to root, or to the root of user.
func makeShm(dir string, user *User) error {
	path := filepath.Join(dir, Shm)
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("make shm: %w", err)
	}
	options := fmt.Sprintf("mode=1777,size=%d", ShmSize)
	if user != nil {
		options += fmt.Sprintf(",uid=%d,gid=%d", user.UIDs.Host, user.GIDs.Host)
	}
	err := unix.Mount("shm", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options)
	if err != nil {
		return fmt.Errorf("mount shm %s: %w", path, err)
	}
	return nil
}

// Remove unpins everything in dir and removes it. It is idempotent and safe on what Make left half-done.
func Remove(dir string) error {
	var errs []error
	for _, name := range []string{Net, IPC, UTS, Userns, Shm} {
		path := filepath.Join(dir, name)
		// Of the node's table; from that of the pins it goes with the file. Detached: a container that still dies must not
		// make this EBUSY. A path mounted over twice needs two rounds.
		for unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("unpin: %w", err))
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, fmt.Errorf("unpin: %w", err))
	}
	return errors.Join(errs...)
}

// announceDir is where ip-netns(8) and other tools look for network namespaces.
const announceDir = "/run/netns"

// Announce makes a network namespace known to tools such as ip-netns(8), as gantry-<first 12 digits of the id>. It is a
// symbolic link and not a mount: another program may mount over the directory, and a mount of ours below that would be
// busy for ever. Nothing depends on it, so it is done as well as may be.
//
// What netns is may change with the daemon, so one of before is replaced.
func Announce(id, netns string) {
	_ = os.MkdirAll(announceDir, 0o755)
	if old, err := os.Readlink(announcePath(id)); err == nil && old != netns {
		_ = os.Remove(announcePath(id))
	}
	_ = os.Symlink(netns, announcePath(id))
}

// Withdraw undoes Announce.
func Withdraw(id string) {
	if os.Remove(announcePath(id)) == nil {
		_ = os.Remove(announceDir) // only goes when empty
	}
}

func announcePath(id string) string {
	return filepath.Join(announceDir, "gantry-"+id[:min(12, len(id))])
}

// ipcSysctls belong to the IPC namespace (ipc_namespaces(7)).
var ipcSysctls = map[string]bool{
	"kernel.msgmax": true, "kernel.msgmnb": true, "kernel.msgmni": true, "kernel.sem": true, "kernel.shmall": true,
	"kernel.shmmax": true, "kernel.shmmni": true, "kernel.shm_rmid_forced": true,
}

// CheckSysctls checks that every sysctl belongs to a namespace that the sandbox has of its own: anything else would
// change the host. The error satisfies errdefs.ErrInvalidArgument.
func CheckSysctls(sysctls map[string]string, net, ipc bool) error {
	for key := range sysctls {
		bad := func(why string) error {
			return fmt.Errorf("linux.sysctls[%q]: %s: %w", key, why, errdefs.ErrInvalidArgument)
		}
		name := strings.ReplaceAll(key, "/", ".")
		switch {
		case name == "" || strings.Contains(name, "..") || strings.ContainsAny(name, " \x00\n"):
			return bad("expected a dotted name")
		case strings.HasPrefix(name, "net."):
			if !net {
				return bad("belongs to the network namespace, and the sandbox is on the host's")
			}
		case ipcSysctls[name] || strings.HasPrefix(name, "fs.mqueue."):
			if !ipc {
				return bad("belongs to the IPC namespace, and the sandbox uses the host's")
			}
		default:
			return bad("is not a namespaced sysctl; it would change the host")
		}
	}
	return nil
}

// writeSysctls sets the sysctls in the namespaces of the calling thread. It does so in a /proc of its own: the kernel
// finds a name below /proc/sys/net by going through what it has cached of that name for every network namespace
// (proc_sys_compare), so in the node's /proc one more sandbox would take the longer the more there are.
func (o *Options) writeSysctls() error {
	if len(o.Sysctls) == 0 {
		return nil
	}
	proc, err := mountProc()
	if err != nil {
		return fmt.Errorf("mount /proc for sysctls: %w", err)
	}
	defer unix.Close(proc)
	for key, value := range o.Sysctls {
		write := func() error { return writeAt(proc, sysctlPath(key), value) }
		err := write()
		if errors.Is(err, os.ErrPermission) && o.User != nil {
			err = o.User.asRoot(write)
		}
		if err != nil {
			return fmt.Errorf("linux.sysctls[%q]: set %q: %w", key, value, err)
		}
	}
	return nil
}

// mountProc returns the root of a new proc filesystem that is mounted nowhere and ends with the descriptor.
func mountProc() (int, error) {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, os.NewSyscallError("fsconfig", err)
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC,
		unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	return root, os.NewSyscallError("fsmount", err)
}

func writeAt(dir int, path, value string) error {
	fd, err := unix.Openat(dir, path, unix.O_WRONLY|unix.O_TRUNC|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

// sysctlPath turns a key into a path below /proc as sysctl(8) does: the first separator decides, so that a name with
// dots in it (an interface's) can be written with slashes.
func sysctlPath(key string) string {
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '.' {
		key = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, key)
	}
	return "sys/" + key
}
