package namespace

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeper/pins"
)

func newDir(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces and mounts are made")
	}
	dir := filepath.Join(t.TempDir(), "pins")
	if err := pins.Open(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !pins.Close(dir) {
			t.Errorf("%s is still in use", dir)
		}
	})
	return dir
}

// find is how the test finds a pin.
func find(t *testing.T, dir, kind string) string {
	t.Helper()
	view, err := pins.Look(filepath.Dir(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(view.Close)
	return view.Path(filepath.Join(dir, kind))
}

// in runs f in the namespaces pinned in dir, on a thread that is thrown away.
func in(t *testing.T, dir string, f func() string) string {
	t.Helper()
	out := make(chan string, 1)
	paths := []string{find(t, dir, Net), find(t, dir, IPC), find(t, dir, UTS)}
	go func() {
		runtime.LockOSThread()
		for _, path := range paths {
			fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				err = unix.Setns(fd, 0)
				_ = unix.Close(fd)
			}
			if err != nil {
				out <- err.Error()
				return
			}
		}
		out <- f()
	}()
	return <-out
}

func TestMakePinsNamespacesThatLiveAlone(t *testing.T) {
	dir := filepath.Join(newDir(t), "s")
	opts := Options{Net: true, IPC: true, UTS: true, Hostname: "pod-host",
		Sysctls: map[string]string{"net.ipv4.ip_forward": "1", "kernel.shmmni": "1234", "fs.mqueue.msg_max": "77"}}
	if err := Make(dir, opts); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{Net, IPC, UTS} {
		if !pins.Alive(find(t, dir, kind)) {
			t.Errorf("%s is not pinned", kind)
		}
	}
	if mounts, _ := os.ReadFile("/proc/thread-self/mountinfo"); strings.Contains(string(mounts), dir) {
		t.Error("a pin is in the node's table of mounts")
	}
	shm := find(t, dir, Shm)
	got := in(t, dir, func() string {
		var u unix.Utsname
		_ = unix.Uname(&u)
		values := []string{unix.ByteSliceToString(u.Nodename[:])}
		for key := range opts.Sysctls {
			b, _ := os.ReadFile("/proc/" + sysctlPath(key))
			if strings.TrimSpace(string(b)) != opts.Sysctls[key] {
				values = append(values, key+"="+string(b))
			}
		}
		return strings.Join(values, " ")
	})
	if got != "pod-host" {
		t.Errorf("inside: %q, expected the hostname and every sysctl as given", got)
	}
	if host, _ := os.Hostname(); host == "pod-host" {
		t.Error("the host's name was changed")
	}
	var st unix.Statfs_t
	if err := unix.Statfs(shm, &st); err != nil || st.Blocks*uint64(st.Bsize) != ShmSize {
		t.Errorf("shm has %d bytes, %v; expected %d", st.Blocks*uint64(st.Bsize), err, ShmSize)
	}
	for range 2 {
		if err := Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", dir, err)
	}
}

func TestMakeThatFailsCanBeRemoved(t *testing.T) {
	dir := filepath.Join(newDir(t), "s")
	err := Make(dir, Options{Net: true, Sysctls: map[string]string{"net.ipv4.no_such_thing": "1"}})
	if err == nil || !strings.Contains(err.Error(), "net.ipv4.no_such_thing") {
		t.Errorf("got %v, expected an error that names the sysctl", err)
	}
	if err := Remove(dir); err != nil {
		t.Fatal(err)
	}
}

// What other programs are told of has to be where they look.
func TestNetworkNamespaceInTheTable(t *testing.T) {
	dir := filepath.Join(newDir(t), "s")
	if err := Make(dir, Options{Net: true, UTS: true, NetInTable: true}); err != nil {
		t.Fatal(err)
	}
	if path := filepath.Join(dir, Net); !pins.Alive(path) || find(t, dir, Net) != path {
		t.Errorf("%s is not pinned where it says", path)
	}
	if pins.Alive(filepath.Join(dir, UTS)) {
		t.Error("the UTS namespace is in the node's table, too")
	}
	for range 2 {
		if err := Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// A keeper of an older build looks for all of them in the node's table.
func TestAllInTheTable(t *testing.T) {
	dir := filepath.Join(newDir(t), "s")
	if err := Make(dir, Options{Net: true, IPC: true, UTS: true, InTable: true, Hostname: "pod-host"}); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{Net, IPC, UTS, Shm} {
		path := filepath.Join(dir, kind)
		if !pins.InTable(path) || find(t, dir, kind) != path || kind != Shm && !pins.Alive(path) {
			t.Errorf("%s is not pinned where it says", path)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Join(dir, Shm), &st); err != nil || st.Blocks*uint64(st.Bsize) != ShmSize {
		t.Errorf("shm has %d bytes, %v; expected %d", st.Blocks*uint64(st.Bsize), err, ShmSize)
	}
	if err := Remove(dir); err != nil {
		t.Fatal(err)
	}
}

func TestSysctlsOfTheHostAreRefused(t *testing.T) {
	for _, tc := range []struct {
		key      string
		net, ipc bool
		ok       bool
	}{
		{"net.ipv4.ip_forward", true, true, true},
		{"net.ipv4.ip_forward", false, true, false},
		{"net/ipv4/conf/eth0.100/forwarding", true, true, true},
		{"kernel.shmmax", true, true, true},
		{"kernel.shmmax", true, false, false},
		{"fs.mqueue.msg_max", true, true, true},
		{"kernel.core_pattern", true, true, false},
		{"kernel.panic", true, true, false},
		{"net.ipv4..ip_forward", true, true, false},
		{"net/../kernel/core_pattern", true, true, false},
		{"", true, true, false},
	} {
		err := CheckSysctls(map[string]string{tc.key: "1"}, tc.net, tc.ipc)
		if tc.ok != (err == nil) || (err != nil && !errdefs.IsInvalidArgument(err)) {
			t.Errorf("%q net=%t ipc=%t: %v", tc.key, tc.net, tc.ipc, err)
		}
	}
}

func TestSysctlPathTakesEitherSeparator(t *testing.T) {
	for key, want := range map[string]string{
		"net.ipv4.ip_forward":               "sys/net/ipv4/ip_forward",
		"net/ipv4/conf/eth0.100/forwarding": "sys/net/ipv4/conf/eth0.100/forwarding",
		"net.ipv4.conf.eth0/100.forwarding": "sys/net/ipv4/conf/eth0.100/forwarding",
	} {
		if got := sysctlPath(key); got != want {
			t.Errorf("%s: %s, expected %s", key, got, want)
		}
	}
}
