package idmap

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSplitAndEscapeAreInverse(t *testing.T) {
	dirs := []string{"/a", `/b:c`, `/d\e`, "/f,g", "/"}
	escaped := make([]string, len(dirs))
	for i, dir := range dirs {
		escaped[i] = escaper.Replace(dir)
	}
	if got := split(strings.Join(escaped, ":")); !slices.Equal(got, dirs) {
		t.Errorf("%q, expected %q", got, dirs)
	}
}

func TestCommonIsAboveAll(t *testing.T) {
	for _, tc := range []struct {
		paths []string
		want  string
	}{
		{nil, "/"}, {[]string{"/a"}, "/"}, {[]string{"/a/b"}, "/a"}, {[]string{"/a/b/c", "/a/bc"}, "/a"},
		{[]string{"/a/b", "/c"}, "/"}, {[]string{"/s/1/fs", "/s/22/fs"}, "/s"},
	} {
		if got := Common(tc.paths); got != tc.want {
			t.Errorf("%q: %s, expected %s", tc.paths, got, tc.want)
		}
	}
}

const host = 123456

// inUserns calls f, in a mount namespace of its own, with a descriptor of a user namespace.
func inUserns(t *testing.T, f func(userns int) error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners are mapped")
	}
	cmd := exec.Command("sleep", "60")
	ids := []syscall.SysProcIDMap{{HostID: host, Size: 1000}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
	if err := cmd.Start(); err != nil {
		t.Skip("the kernel lacks user namespaces: ", err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	userns, err := os.Open(filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "ns/user"))
	if err != nil {
		t.Fatal(err)
	}
	defer userns.Close()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = f(int(userns.Fd()))
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func makeLayer(t *testing.T, dir string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, filepath.Base(dir)), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestLowersHaveMappedOwners(t *testing.T) {
	for name, other := range map[string]string{"one mount": "", "two mounts": "/dev/shm"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if other == "" {
				other = dir
			} else if made, err := os.MkdirTemp(other, "idmap-"); err == nil {
				other = made
				defer os.RemoveAll(made)
			}
			target := filepath.Join(dir, "target")
			if err := os.Mkdir(target, 0o755); err != nil {
				t.Fatal(err)
			}
			value := escaper.Replace(makeLayer(t, filepath.Join(dir, "a:a"))) + ":" + makeLayer(t, filepath.Join(other, "b"))
			inUserns(t, func(userns int) error {
				options, err := Lowers([]string{"ro", "lowerdir=" + value}, target, userns)
				if err != nil {
					return err
				}
				if err := unix.Mount("overlay", target, "overlay", 0, strings.Join(options[1:], ",")); err != nil {
					return err
				}
				for _, file := range []string{"a:a", "b"} {
					var st unix.Stat_t
					if err := unix.Stat(filepath.Join(target, file), &st); err != nil || st.Uid != host || st.Gid != host {
						t.Errorf("%s has owner %d:%d, %v; expected %d", file, st.Uid, st.Gid, err, host)
					}
				}
				return nil
			})
		})
	}
}

func TestMountSaysWhatCannotBeMapped(t *testing.T) {
	target := t.TempDir()
	inUserns(t, func(userns int) error {
		if err := Mount("/proc/sys", target, userns); err == nil || !strings.Contains(err.Error(), "map owners of /proc/sys") {
			t.Errorf("got %v, expected an error that names what it is about", err)
		}
		return nil
	})
}
