//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A device comes by its node, by a link to it, or with all that are in a directory; with its permissions and no others.
func TestDevices(t *testing.T) {
	dir := t.TempDir()
	const major, minor = 10, 229 // fuse, which no container has by itself
	if err := os.Mkdir(filepath.Join(dir, "all"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"node", "all/one", "all/two"} {
		if err := unix.Mknod(filepath.Join(dir, name), unix.S_IFCHR|0o666, int(unix.Mkdev(major, minor))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("node", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	p := runPod(t)
	opens := func(c *container, mode, device string) bool {
		return c.execSync(t, 20, "sh", "-c", "exec 3"+mode+" "+device).ExitCode == 0
	}
	c := p.start(t, "c", "sleep 1000", func(c *runtime.ContainerConfig) {
		c.Devices = []*runtime.Device{
			{ContainerPath: "/dev/by-link", HostPath: filepath.Join(dir, "link"), Permissions: "rw"},
			{ContainerPath: "/dev/many", HostPath: filepath.Join(dir, "all"), Permissions: "rw"},
		}
	})
	for _, device := range []string{"/dev/by-link", "/dev/many/one", "/dev/many/two"} {
		wantEqual(t, "number of "+device, c.exec(t, "stat -c %F:%t:%T "+device), "character special file:a:e5")
		if !opens(c, "<>", device) {
			t.Errorf("%s cannot be opened", device)
		}
	}
	c = p.start(t, "readable", "sleep 1000", func(c *runtime.ContainerConfig) {
		c.Devices = []*runtime.Device{{ContainerPath: "/dev/r", HostPath: filepath.Join(dir, "node"), Permissions: "r"}}
	})
	wantEqual(t, "reading", opens(c, "<", "/dev/r"), true)
	wantEqual(t, "writing with permission r", opens(c, "<>", "/dev/r"), false)
	c = p.start(t, "none", "sleep 1000")
	c.exec(t, "mknod /dev/own c 10 229")
	wantEqual(t, "opening without the device", opens(c, "<", "/dev/own"), false)
}

// mountTmpfs mounts an empty filesystem in the test's own mount namespace, which is the daemon's, until the test ends.
func mountTmpfs(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

func TestRecursiveReadOnlyMount(t *testing.T) {
	dir := t.TempDir()
	mountTmpfs(t, filepath.Join(dir, "below"))
	c := runPod(t).start(t, "c", "sleep 1000", func(c *runtime.ContainerConfig) {
		c.Mounts = []*runtime.Mount{
			{ContainerPath: "/ro", HostPath: dir, Readonly: true},
			{ContainerPath: "/rro", HostPath: dir, Readonly: true, RecursiveReadOnly: true},
		}
	})
	for path, writable := range map[string]bool{"/ro": false, "/ro/below": true, "/rro": false, "/rro/below": false} {
		got := c.execSync(t, 20, "touch", path+"/new").ExitCode == 0
		wantEqual(t, path+" is writable", got, writable)
	}
}

// What is mounted later, on the host or in the container, is seen by the other as the propagation says.
func TestMountPropagation(t *testing.T) {
	dir := t.TempDir()
	mountTmpfs(t, dir)
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	p := runPod(t, func(c *runtime.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	c := p.start(t, "c", "sleep 1000", func(c *runtime.ContainerConfig) {
		c.Linux.SecurityContext.Privileged = true
		for name, propagation := range map[string]runtime.MountPropagation{
			"private": runtime.MountPropagation_PROPAGATION_PRIVATE,
			"slave":   runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
			"shared":  runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL,
		} {
			c.Mounts = append(c.Mounts, &runtime.Mount{ContainerPath: "/" + name, HostPath: dir, Propagation: propagation})
		}
	})
	mountTmpfs(t, filepath.Join(dir, "late"))
	if err := os.WriteFile(filepath.Join(dir, "late", "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, seen := range map[string]bool{"private": false, "slave": true, "shared": true} {
		got := c.execSync(t, 20, "test", "-e", "/"+name+"/late/file").ExitCode == 0
		wantEqual(t, "a later mount of the host is seen through "+name, got, seen)
	}
	for name, seen := range map[string]bool{"private": false, "slave": false, "shared": true} {
		c.exec(t, "mkdir /"+name+"/of-"+name+" && mount -t tmpfs none /"+name+"/of-"+name+" && touch /"+name+"/of-"+name+"/file")
		_, err := os.Stat(filepath.Join(dir, "of-"+name, "file"))
		wantEqual(t, "a mount of the container is seen through "+name, err == nil, seen)
	}
	c.exec(t, "umount /shared/of-shared")
}

// Mounts are made in the order of their depth, a later one on the same place wins, and links in the image stay in it.
func TestOrderOfMounts(t *testing.T) {
	dirs := map[string]string{}
	for _, name := range []string{"top", "below", "first", "second", "linked"} {
		dirs[name] = t.TempDir()
		if err := os.WriteFile(filepath.Join(dirs[name], name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c := runPod(t).start(t, "c", "sleep 1000", func(c *runtime.ContainerConfig) {
		c.Mounts = []*runtime.Mount{
			{ContainerPath: "/m/below", HostPath: dirs["below"]},
			{ContainerPath: "/m", HostPath: dirs["top"]},
			{ContainerPath: "/same", HostPath: dirs["first"]},
			{ContainerPath: "/same", HostPath: dirs["second"]},
		}
	})
	got := strings.Fields(c.exec(t, "ls /m/top /m/below/below /same/* 2>&1"))
	wantEqual(t, "what is seen", strings.Join(got, " "), "/m/below/below /m/top /same/second")
}

// A privileged container needs a privileged sandbox; a command must come from somewhere; a user has one name.
func TestContradictionsAreRefused(t *testing.T) {
	p := runPod(t)
	for _, test := range []struct {
		name   string
		change func(*runtime.ContainerConfig)
		words  []string
	}{
		{"privileged in an ordinary sandbox", security(func(s *runtime.LinuxContainerSecurityContext) { s.Privileged = true }),
			[]string{"privileged"}},
		{"group without user", security(func(s *runtime.LinuxContainerSecurityContext) {
			s.RunAsGroup = &runtime.Int64Value{Value: 5}
		}), []string{"run_as_group"}},
		{"user twice", security(func(s *runtime.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsUsername = &runtime.Int64Value{Value: 5}, "nobody"
		}), []string{"run_as_user"}},
		{"seccomp profile by a relative path", security(func(s *runtime.LinuxContainerSecurityContext) {
			s.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: "profile.json"}
		}), []string{"localhost_ref"}},
		{"image and host path", func(c *runtime.ContainerConfig) {
			c.Mounts = []*runtime.Mount{{ContainerPath: "/m", HostPath: "/etc", Image: c.Image}}
		}, []string{"host_path"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := containerConfig("c", "true")
			test.change(config)
			_, err := p.tryCreate(t, config)
			wantCode(t, err, codes.InvalidArgument, test.words...)
		})
	}
	if n := len(p.containers(t)); n != 0 {
		t.Errorf("%d containers were made", n)
	}
}
