package namespace

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeper/idmap"
)

// ProbeUser returns nil when user namespaces can be had with root filesystems below dir: it makes one, and an overlay
// on a lower directory there whose owners it maps. Else the error says what the node cannot.
func ProbeUser(dir string, user *User) error {
	tmp := filepath.Join(dir, "userns-probe")
	if err := os.RemoveAll(tmp); err != nil { // of a daemon that was killed in the middle
		return fmt.Errorf("make directory: %w", err)
	}
	defer os.RemoveAll(tmp)
	for _, name := range []string{"layers/lower", "upper", "work", "root"} {
		if err := os.MkdirAll(filepath.Join(tmp, name), 0o755); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	if err := os.WriteFile(filepath.Join(tmp, "layers/lower/file"), nil, 0o644); err != nil {
		return fmt.Errorf("make file: %w", err)
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with its mount namespace
		done <- user.probe(tmp)
	}()
	return <-done
}

// probe mounts what ProbeUser laid out in dir.
func (u *User) probe(dir string) error {
	pid, end, err := u.hold(0)
	if err != nil {
		return err
	}
	defer end()
	userns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err != nil {
		return fmt.Errorf("open user namespace: %w", err)
	}
	defer userns.Close()
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return fmt.Errorf("make mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	root := filepath.Join(dir, "root")
	options, err := idmap.Lowers([]string{
		"lowerdir=" + filepath.Join(dir, "layers/lower"), "upperdir=" + filepath.Join(dir, "upper"),
		"workdir=" + filepath.Join(dir, "work"),
	}, root, int(userns.Fd()))
	if err != nil {
		return err
	}
	if err := unix.Mount("overlay", root, "overlay", 0, strings.Join(options, ",")); err != nil {
		return fmt.Errorf("mount overlay on directories with mapped owners: %w", err)
	}
	info, err := os.Stat(filepath.Join(root, "file"))
	if err != nil {
		return fmt.Errorf("read overlay: %w", err)
	}
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid != u.UIDs.Host {
		return fmt.Errorf("overlay on directories with mapped owners has owner %d, expected %d", uid, u.UIDs.Host)
	}
	return nil
}
