package namespace

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeper/pins"
)

// newUser is a user namespace that cat holds.
func newUser(t *testing.T) *User {
	t.Helper()
	holder, err := exec.LookPath("cat")
	if err != nil {
		t.Fatal(err)
	}
	return &User{UIDs: IDMap{Host: 100000, Length: 1000}, GIDs: IDMap{Host: 200000, Length: 1000}, Holder: holder}
}

// nsIoctl asks the kernel about a pinned namespace.
func nsIoctl(t *testing.T, path string, request uintptr) uintptr {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, 0)
	if errno != 0 {
		t.Fatalf("ioctl of %s: %v", path, errno)
	}
	return fd
}

func TestUserNamespaceOwnsTheOthers(t *testing.T) {
	dir := filepath.Join(newDir(t), "s")
	opts := Options{Net: true, IPC: true, UTS: true, Hostname: "mapped", User: newUser(t),
		Sysctls: map[string]string{"net.ipv4.ip_forward": "1", "kernel.shmmni": "1234", "fs.mqueue.msg_max": "77"}}
	if err := Make(dir, opts); err != nil {
		t.Fatal(err)
	}
	var user unix.Stat_t
	if err := unix.Stat(find(t, dir, Userns), &user); err != nil || !pins.Alive(find(t, dir, Userns)) {
		t.Fatalf("user namespace is not pinned: %v", err)
	}
	for _, kind := range []string{Net, IPC, UTS} {
		const getUserns = 0xb701 // NS_GET_USERNS (ioctl_ns(2))
		fd := int(nsIoctl(t, find(t, dir, kind), getUserns))
		var owner unix.Stat_t
		err := unix.Fstat(fd, &owner)
		_ = unix.Close(fd)
		if err != nil || owner.Ino != user.Ino {
			t.Errorf("%s belongs to user namespace %d, %v; expected %d", kind, owner.Ino, err, user.Ino)
		}
	}
	got := in(t, dir, func() string {
		var u unix.Utsname
		_ = unix.Uname(&u)
		values := []string{unix.ByteSliceToString(u.Nodename[:])}
		for key, want := range opts.Sysctls {
			if b, _ := os.ReadFile("/proc/" + sysctlPath(key)); strings.TrimSpace(string(b)) != want {
				values = append(values, key+"="+string(b))
			}
		}
		return strings.Join(values, " ")
	})
	if got != "mapped" {
		t.Errorf("inside: %q, expected the hostname and every sysctl as given", got)
	}
	if info, err := os.Stat(find(t, dir, Shm)); err != nil || info.Sys().(*syscall.Stat_t).Uid != 100000 || info.Sys().(*syscall.Stat_t).Gid != 200000 {
		t.Errorf("/dev/shm is not of the namespace's root: %+v, %v", info.Sys(), err)
	}
	if err := Remove(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", dir, err)
	}
}

func TestUserNamespaceThatCannotBeMade(t *testing.T) {
	dir := filepath.Join(newDir(t), "s")
	user := newUser(t)
	user.Holder = "/no/such/program"
	if err := Make(dir, Options{Net: true, User: user}); err == nil || !strings.Contains(err.Error(), user.Holder) {
		t.Errorf("got %v, expected an error that names the program", err)
	}
	if err := Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := ProbeUser(t.TempDir(), user); err == nil || !strings.Contains(err.Error(), user.Holder) {
		t.Errorf("probe: %v, expected an error that names the program", err)
	}
}

// A pod's author chooses the sysctls, and the kubelet tries again and again.
func TestUserNamespaceThatFailsIsNotHeld(t *testing.T) {
	parent := newDir(t)
	attempt := func() {
		dir := filepath.Join(parent, "s")
		opts := Options{Net: true, User: newUser(t), Sysctls: map[string]string{"net.no_such_thing": "1"}}
		if err := Make(dir, opts); err == nil {
			t.Error("a sysctl that does not exist was set")
		}
		if err := Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
	mounts := func() (n int) {
		entries, _ := os.ReadDir("/proc/self/fd")
		for _, e := range entries {
			if target, _ := os.Readlink("/proc/self/fd/" + e.Name()); strings.Contains(target, "user:[") {
				n++
			}
		}
		return n
	}
	attempt()
	before := mounts()
	for range 5 {
		attempt()
	}
	if after := mounts(); after > before {
		t.Errorf("%d user namespaces are held, %d before", after, before)
	}
}

func TestProbeLeavesNothing(t *testing.T) {
	newDir(t) // for root
	dir := t.TempDir()
	for range 2 {
		if err := ProbeUser(dir, newUser(t)); err != nil {
			t.Skip("the kernel lacks user namespaces or overlay on idmapped mounts: ", err)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(mounts), dir) {
		t.Error("a mount is left")
	}
}
