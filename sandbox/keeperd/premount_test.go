package keeperd_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// mountProbe tells all that a process can know of how its file systems were mounted.
const mountProbe = `umask; cat /proc/self/mountinfo
for l in 0 1 2; do busybox readlink /proc/self/fd/$l; done
busybox find /dev /etc -exec busybox stat -c '%n %N %f %u %g %t:%T %h' {} +
[ ! -d /sys/fs/cgroup ] || busybox find /sys/fs/cgroup -maxdepth 1 -exec busybox stat -c '%n %N %f %u %g' {} +
for f in hostname hosts resolv.conf; do cat /etc/$f; done
echo x >/dev/null && busybox head -c 4 /dev/zero | busybox od; busybox df -P /dev | busybox tail -n 1
for f in /etc/hosts /sys/fs/cgroup/x /dev/new; do (: >>$f) 2>/dev/null && echo $f can be written to; done
echo end
`

// mountLines makes the table of mounts independent of ids: each line has the place of the mount that it is in.
func mountLines(out string) string {
	at := map[string]string{}
	pattern := regexp.MustCompile(`(?m)^(\d+) (\d+) \d+:\d+ (\S+) (\S+) (\S+)((?: (?:shared|master|propagate_from):\d+)*) - (.*)$`)
	for _, m := range pattern.FindAllStringSubmatch(out, -1) {
		at[m[1]] = m[4]
	}
	return pattern.ReplaceAllStringFunc(out, func(line string) string {
		m := pattern.FindStringSubmatch(line)
		propagation := regexp.MustCompile(`:\d+`).ReplaceAllString(m[6], "")
		return fmt.Sprintf("%s in %s: %s %s%s %s", m[4], at[m[2]], m[3], m[5], propagation, m[7])
	})
}

// mounted starts the probe in a container and returns what it finds, without what differs each time, and the destinations
// of the mounts and devices that were left to libcontainer, with "cgroup" if it makes that tree.
func (n *node) mounted(change func(*keeper.StartRequest)) (found string, left []string) {
	n.t.Helper()
	c := n.run(change, "sh", "-c", mountProbe+"sleep 1000")
	c.eventually("the probe has looked", func() bool { return strings.HasSuffix(c.output("stdout"), "end\n") })
	var state struct {
		Config struct {
			Mounts  []struct{ Destination, Device string }
			Devices []struct{ Path string }
		}
	}
	b, err := os.ReadFile(filepath.Join(n.dir, "keeper/lc", c.ID, "state.json"))
	if err == nil {
		err = json.Unmarshal(b, &state)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	for _, m := range state.Config.Mounts {
		left = append(left, m.Destination)
		if m.Device == "cgroup" {
			left = append(left, m.Device) // its tree, too
		}
	}
	for _, d := range state.Config.Devices {
		left = append(left, d.Path)
	}
	c.delete()
	found = strings.NewReplacer(c.ID, "ID", n.dir, "DIR").Replace(c.output("stdout"))
	// From inside, a file of the host has its path on the file system that it is on, which may be mounted below the root.
	found = regexp.MustCompile(`\S*/keeper/c/`).ReplaceAllString(found, "DIR/keeper/c/")
	lines := strings.Split(mountLines(found), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n"), left
}

// usualMounts makes the spec one as a pod's container has it, with files of the sandbox in dir.
func usualMounts(t *testing.T, dir string) func(*keeper.StartRequest) {
	t.Helper()
	for _, name := range []string{"hostname", "hosts", "resolv.conf"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("the sandbox's "+name+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "shm"), 0o1777); err != nil {
		t.Fatal(err)
	}
	return func(r *keeper.StartRequest) {
		r.Spec.Mounts = slices.DeleteFunc(r.Spec.Mounts, func(m specs.Mount) bool { return m.Destination == "/dev/shm" })
		r.Spec.Mounts = append(r.Spec.Mounts,
			specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}})
		for _, at := range []string{"/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/dev/shm"} {
			r.Spec.Mounts = append(r.Spec.Mounts, private(filepath.Join(dir, filepath.Base(at)), at))
		}
		r.Spec.Mounts = append(r.Spec.Mounts, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
			Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}})
	}
}

func private(source, destination string, more ...string) specs.Mount {
	return specs.Mount{Type: "bind", Source: source, Destination: destination, Options: append(more, "rbind", "rprivate")}
}

// link puts a link into the writable layer.
func link(t *testing.T, r *keeper.StartRequest, target, name string) {
	t.Helper()
	path := filepath.Join(strings.TrimPrefix(r.Rootfs[0].Options[1], "upperdir="), name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

// mountCase is a container for which the keeper and libcontainer have to agree.
type mountCase struct {
	name   string
	change change
	left   []string // what libcontainer mounts besides innerMounts
	plain  bool     // libcontainer mounts all
}

// What libcontainer mounts in any case, only from inside the namespaces, the last by a bind; the sandbox's files; the
// devices that every container has. inEtc is what is left where the files' names may be links in a volume.
var (
	innerMounts = []string{"/proc", "/sys", "/dev/mqueue", "/sys/fs/cgroup"}
	etcFiles    = []string{"/etc/hostname", "/etc/hosts", "/etc/resolv.conf"}
	nodes       = strings.Fields("/dev/null /dev/random /dev/full /dev/tty /dev/zero /dev/urandom")
	inEtc       = slices.Clip(slices.Concat(etcFiles, nodes, []string{"/dev/shm"}))
)

// mountWorld is what the containers of the cases are given: directories with a file hosts, one with a link to /etc, one
// on a mount with options; and a user namespace.
type mountWorld struct{ dir, volume, linked, flagged, users string }

func newMountWorld(t *testing.T) mountWorld {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	volume := filepath.Join(dir, "volume")
	if err := os.MkdirAll(volume+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(volume+"/hosts", []byte("the volume's hosts\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	linked := filepath.Join(dir, "linked")
	if err := errors.Join(os.Mkdir(linked, 0o755), os.Symlink("/etc", linked+"/link")); err != nil {
		t.Fatal(err)
	}
	flagged := filepath.Join(dir, "flagged")
	if err := os.Mkdir(flagged, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("flagged", flagged, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOATIME, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(flagged, 0) })
	if err := os.WriteFile(flagged+"/hosts", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return mountWorld{dir: dir, volume: volume, linked: linked, flagged: flagged, users: newUserns(t)}
}

type change = func(*testing.T, *keeper.StartRequest)

// add puts mounts after the others.
func add(mounts ...specs.Mount) change {
	return func(_ *testing.T, r *keeper.StartRequest) { r.Spec.Mounts = append(r.Spec.Mounts, mounts...) }
}

// first puts mounts before the others of as many names: in the order in which a sandbox has them.
func first(mounts ...specs.Mount) change {
	return func(_ *testing.T, r *keeper.StartRequest) { r.Spec.Mounts = append(mounts, r.Spec.Mounts...) }
}

// replace puts mounts in the place of those at the same destination, or right after /dev.
func replace(mounts ...specs.Mount) change {
	return func(_ *testing.T, r *keeper.StartRequest) {
		for _, m := range mounts {
			r.Spec.Mounts = slices.DeleteFunc(r.Spec.Mounts, func(o specs.Mount) bool { return o.Destination == m.Destination })
		}
		i := slices.IndexFunc(r.Spec.Mounts, func(o specs.Mount) bool { return o.Destination == "/dev" })
		r.Spec.Mounts = slices.Insert(r.Spec.Mounts, i+1, mounts...)
	}
}

// withVolumes have volumes and links at odd places.
func (w mountWorld) withVolumes() []mountCase {
	return []mountCase{
		{name: "volumes", change: add(private(w.volume, "/volume"), private(w.volume, "/dev/volume", "ro"),
			private(w.volume+"/hosts", "/dev/termination-log")), left: []string{"/volume", "/dev/volume", "/dev/termination-log"}},
		{name: "volume by a link", left: []string{"/run-link/volume"}, change: func(t *testing.T, r *keeper.StartRequest) {
			link(t, r, "/tmp", "run-link")
			first(private(w.volume, "/run-link/volume"))(t, r)
		}},
		{name: "volume at /etc", change: first(private(w.volume, "/etc")), left: append(inEtc, "/etc")},
		{name: "volume at a link to /etc", left: append(inEtc, "/other"),
			change: func(t *testing.T, r *keeper.StartRequest) {
				link(t, r, "etc", "other")
				first(private(w.volume, "/other"))(t, r)
			}},
		{name: "file is a link", left: []string{"/etc/resolv.conf"}, change: func(t *testing.T, r *keeper.StartRequest) {
			link(t, r, "../tmp/resolv.conf", "etc/resolv.conf")
			if err := os.MkdirAll(strings.TrimPrefix(r.Rootfs[0].Options[1], "upperdir=")+"/tmp", 0o755); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "/dev is a link", left: append(strings.Fields("/dev /dev/pts /dev/shm"), nodes...),
			change: func(t *testing.T, r *keeper.StartRequest) { link(t, r, "tmp", "dev") }},
		{name: "options of the source", change: replace(private(w.flagged, "/dev/shm"), private(w.flagged+"/hosts", "/etc/hosts", "ro"))},
		{name: "file at /dev/shm", left: []string{"/dev/shm"}, change: replace(private(w.volume+"/hosts", "/dev/shm"))},
		{name: "volume below /dev/shm before it", left: []string{"/link", "/dev/shm"},
			change: func(t *testing.T, r *keeper.StartRequest) {
				link(t, r, "dev/shm/volume", "link")
				replace(private(w.volume, "/link"))(t, r)
			}},
		{name: "volume by a link in a volume", left: append(inEtc, "/volume", "/volume/link", "/dev", "/dev/pts"),
			change: first(private(w.linked, "/volume"), private(w.volume, "/volume/link"))},
		{name: "the host's /sys", change: replace(private("/sys", "/sys")), left: nodes},
	}
}

// ofAllKinds differ in devices, namespaces and propagation.
func (w mountWorld) ofAllKinds() []mountCase {
	mode, owner := os.FileMode(0o640), uint32(1000)
	var tree []string // of cgroups, where it is not always libcontainer's
	if !cgroups.IsCgroup2UnifiedMode() {
		tree = []string{"cgroup"}
	}
	return []mountCase{
		{name: "usual"},
		{name: "read-only", change: func(_ *testing.T, r *keeper.StartRequest) {
			r.Spec.Root.Readonly = true
			for i, m := range r.Spec.Mounts {
				if slices.Contains(etcFiles, m.Destination) {
					r.Spec.Mounts[i].Options = append(m.Options, "ro")
				}
			}
		}},
		{name: "devices", change: func(_ *testing.T, r *keeper.StartRequest) {
			r.Spec.Linux.Resources.Devices[0].Allow = true
			r.Spec.Linux.Devices = []specs.LinuxDevice{
				{Path: "/dev/snd/deep", Type: "c", Major: 1, Minor: 3, FileMode: &mode, UID: &owner, GID: &owner},
				{Path: "/dev/disk", Type: "b", Major: 7, Minor: 0}, {Path: "/dev/shm/in", Type: "c", Major: 1, Minor: 5},
				{Path: "/elsewhere/null", Type: "c", Major: 1, Minor: 3},
				{Path: "/dev/null", Type: "c", Major: 1, Minor: 3, FileMode: &mode},
			}
		}, left: []string{"/elsewhere/null", "/dev/shm/in"}},
		{name: "device above a volume", left: []string{"/dev/above", "/dev/above/volume"},
			change: func(t *testing.T, r *keeper.StartRequest) {
				add(private(w.volume, "/dev/above/volume"))(t, r)
				r.Spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/above", Type: "c", Major: 1, Minor: 3}}
			}},
		{name: "device in a volume", left: []string{"/dev/volume", "/dev/volume/null"},
			change: func(t *testing.T, r *keeper.StartRequest) {
				add(private(w.volume, "/dev/volume"))(t, r)
				r.Spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/volume/null", Type: "c", Major: 1, Minor: 3}}
			}},
		{name: "propagation from the host", change: func(_ *testing.T, r *keeper.StartRequest) {
			r.Spec.Linux.RootfsPropagation = "rslave"
		}},
		{name: "propagation to the host", plain: true, change: func(_ *testing.T, r *keeper.StartRequest) {
			r.Spec.Linux.RootfsPropagation = "rshared"
		}},
		{name: "user namespace", plain: true, change: func(_ *testing.T, r *keeper.StartRequest) { mapped(w.users)(r) }},
		{name: "own cgroup namespace", left: tree, change: func(_ *testing.T, r *keeper.StartRequest) {
			r.Spec.Linux.Namespaces = append(r.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
		}},
	}
}

// TestMountsMadeBeforehandAreLibcontainers compares what a container finds when the keeper mounts beforehand with what it
// finds when libcontainer does.
func TestMountsMadeBeforehandAreLibcontainers(t *testing.T) {
	w := newMountWorld(t)
	usual := usualMounts(t, w.dir)
	inner := innerMounts
	if cgroups.IsCgroup2UnifiedMode() {
		inner = append(slices.Clip(inner), "cgroup")
	}
	for _, tc := range slices.Concat(w.withVolumes(), w.ofAllKinds()) {
		t.Run(tc.name, func(t *testing.T) {
			change := func(r *keeper.StartRequest) {
				usual(r)
				if tc.change != nil {
					tc.change(t, r)
				}
			}
			fast, left := newOpenNode(t).mounted(change)
			shipped := binary
			binary = plainKeeper(t, "-plain-mounts")
			defer func() { binary = shipped }()
			plain, all := newOpenNode(t).mounted(change)
			if fast != plain {
				t.Errorf("mounted beforehand and by libcontainer:\n%s", difference(fast, plain))
			}
			want := slices.Concat(inner, tc.left)
			if tc.plain {
				want = all
			}
			slices.Sort(want)
			slices.Sort(left)
			if !slices.Equal(left, want) {
				t.Errorf("libcontainer was left %q, expected %q", left, want)
			}
		})
	}
}

// TestAVolumeThatIsDeadHoldsNoStart has a volume at one of the sandbox's files, on a file system that never answers. The
// start that is given up has to end: the keeper cannot be killed as init is.
func TestAVolumeThatIsDeadHoldsNoStart(t *testing.T) {
	for _, at := range []string{"/etc/hosts", "/dev/shm"} {
		n := newOpenNode(t)
		dead := filepath.Join(n.dir, "dead")
		if err := os.Mkdir(dead, 0o755); err != nil {
			t.Fatal(err)
		}
		server, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Skipf("no FUSE: %v", err)
		}
		err = unix.Mount("dead", dead, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", server))
		t.Cleanup(func() { // who waits for it goes on
			_ = unix.Close(server)
			_ = unix.Unmount(dead, unix.MNT_DETACH)
		})
		if err != nil {
			t.Skipf("no FUSE: %v", err)
		}
		c := n.container(func(r *keeper.StartRequest) {
			r.Spec.Mounts = slices.DeleteFunc(r.Spec.Mounts, func(m specs.Mount) bool { return m.Destination == at })
			r.Spec.Mounts = append(r.Spec.Mounts, private(dead+"/volume", at))
		}, "true")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, _, err = n.client.Start(ctx, c.StartRequest)
		cancel()
		if err == nil {
			t.Errorf("%s: the container was started", at)
		}
		c.delete()
	}
}
