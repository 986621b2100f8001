package host

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/spec"
)

func TestGatherFollowsLinksOfSources(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(".", link); err != nil {
		t.Fatal(err)
	}
	config := &runtime.ContainerConfig{Mounts: []*runtime.Mount{
		{HostPath: link, Propagation: runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL}, {HostPath: dir}, nil,
	}}
	host, err := Gather(t.Context(), nil, config, false)
	if err != nil {
		t.Fatal(err)
	}
	if host.Sources[link] != dir || host.Sources[dir] != dir {
		t.Errorf("got sources %v, want %s", host.Sources, dir)
	}
	if _, ok := host.SharedSources[dir]; !ok {
		t.Error("nobody asked what mount the source is on")
	}
}

func TestGatherRefusesWhatIsNotThere(t *testing.T) {
	dir := t.TempDir()
	none, file := filepath.Join(dir, "none"), filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	localhost := func(ref string) *runtime.ContainerConfig {
		return &runtime.ContainerConfig{Linux: &runtime.LinuxContainerConfig{
			SecurityContext: &runtime.LinuxContainerSecurityContext{Seccomp: &runtime.SecurityProfile{
				ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: ref,
			}},
		}}
	}
	for field, config := range map[string]*runtime.ContainerConfig{
		"mounts[1].host_path \"" + none: {Mounts: []*runtime.Mount{{HostPath: dir}, {HostPath: none}}},
		"mounts[0].host_path \"" + file: {Mounts: []*runtime.Mount{{HostPath: file + "/below"}}},
		"mounts[0].host_path \"a\"":     {Mounts: []*runtime.Mount{{HostPath: "a"}}},
		"devices[0].host_path \"" + none: {
			Devices: []*runtime.Device{{HostPath: none}},
		},
		"devices[0].host_path \"" + file:                         {Devices: []*runtime.Device{{HostPath: file}}},
		"devices[0].host_path \"" + dir:                          {Devices: []*runtime.Device{{HostPath: dir}}},
		"devices[0].host_path \"\"":                              {Devices: []*runtime.Device{nil}},
		"linux.security_context.seccomp.localhost_ref \"" + none: localhost(none),
		"linux.security_context.seccomp.localhost_ref \"" + dir:  localhost(dir),
	} {
		_, err := Gather(t.Context(), nil, config, false)
		if !errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("got error %v, want an invalid argument that begins with %s", err, field)
		}
	}
}

func TestGatherMakesMissingSourcesWhenTold(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	config := &runtime.ContainerConfig{Mounts: []*runtime.Mount{{HostPath: dir}}}
	host, err := Gather(t.Context(), nil, config, true)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(host.Sources[dir]); err != nil || !info.IsDir() {
		t.Errorf("no directory at %q: %v", host.Sources[dir], err)
	}
}

func TestGatherReadsSeccompProfile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "p.json")
	if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	config := &runtime.ContainerConfig{Linux: &runtime.LinuxContainerConfig{
		SecurityContext: &runtime.LinuxContainerSecurityContext{
			SeccompProfilePath: "localhost/" + file, //nolint:staticcheck // SA1019: older clients send only this one.
		},
	}}
	host, err := Gather(t.Context(), nil, config, false)
	if err != nil || string(host.SeccompProfile) != "{}" {
		t.Errorf("got %q, %v", host.SeccompProfile, err)
	}
}

func TestGatherFindsDevices(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/dev/null", link); err != nil {
		t.Fatal(err)
	}
	config := &runtime.ContainerConfig{Devices: []*runtime.Device{{HostPath: "/dev/null"}, {HostPath: link}}}
	host, err := Gather(t.Context(), nil, config, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/dev/null", link} {
		found := host.Devices[path]
		if len(found) != 1 || found[0].Path != path || found[0].Type != "c" || found[0].Major != 1 || found[0].Minor != 3 {
			t.Errorf("at %s: got %+v, want the null device", path, found)
		}
	}
}

func TestGatherExpandsDirectoriesOfDevices(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mknod needs root")
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "by"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]uint32{"a": unix.S_IFCHR | 0o640, "by/b": unix.S_IFBLK | 0o600} {
		if err := unix.Mknod(filepath.Join(dir, name), mode, int(unix.Mkdev(1, 7))); err != nil {
			t.Skipf("mknod of devices is not allowed here: %v", err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	found, err := devicesAt(link)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range found {
		got = append(got, d.Path+" "+d.Type+" "+d.FileMode.String())
	}
	if want := []string{link + "/a c -rw-r-----", link + "/by/b b -rw-------"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestPrivilegedGetsAllDevicesButTheContainersOwn(t *testing.T) {
	config := &runtime.ContainerConfig{Linux: &runtime.LinuxContainerConfig{
		SecurityContext: &runtime.LinuxContainerSecurityContext{Privileged: true},
	}}
	sandbox := &runtime.PodSandboxConfig{Linux: &runtime.LinuxPodSandboxConfig{
		SecurityContext: &runtime.LinuxSandboxSecurityContext{Privileged: true},
	}}
	host, err := Gather(t.Context(), sandbox, config, false)
	if err != nil {
		t.Fatal(err)
	}
	has := func(path string) bool {
		return slices.ContainsFunc(host.AllDevices, func(d specs.LinuxDevice) bool { return strings.HasPrefix(d.Path, path) })
	}
	if !has("/dev/null") {
		t.Error("the null device is missing")
	}
	for _, path := range []string{"/dev/console", "/dev/pts/", "/dev/shm/", "/dev/fd"} {
		if has(path) {
			t.Errorf("%s is the host's", path)
		}
	}
}

func TestParsePropagation(t *testing.T) {
	for fields, want := range map[string]propagation{
		"": {}, "shared:1": {shared: true}, "master:2": {slave: true}, "shared:3 master:4 propagate_from:5": {true, true},
		"unbindable": {},
	} {
		if got := parsePropagation(fields); got != want {
			t.Errorf("%q: got %+v, want %+v", fields, got, want)
		}
	}
}

func TestStuckLookupIsAbandonedAndJoined(t *testing.T) {
	l := &lookupTable{limit: 1}
	release := make(chan struct{})
	var runs atomic.Int32
	stuck := func() (string, error) {
		runs.Add(1)
		<-release
		return "late", nil
	}
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		if _, err := lookup(ctx, l, "dead", stuck); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got error %v, want the deadline's", err)
		}
		cancel()
	}
	if _, err := lookup(t.Context(), l, "other", func() (int, error) { return 1, nil }); !errdefs.IsUnavailable(err) {
		t.Errorf("got error %v beyond the limit, want unavailable", err)
	}
	joined := make(chan string)
	go func() {
		value, _ := lookup(context.WithoutCancel(t.Context()), l, "dead", stuck)
		joined <- value
	}()
	close(release)
	if got := <-joined; got != "late" {
		t.Errorf("joined lookup got %q", got)
	}
	if n := runs.Load(); n > 2 { // The last one may have come after the first had ended.
		t.Errorf("%d lookups ran for one stuck path", n)
	}
	if got, err := lookup(t.Context(), l, "other", func() (int, error) { return 1, nil }); got != 1 || err != nil {
		t.Errorf("got %d, %v when the disk was back", got, err)
	}
}

func TestPanicOfALookupIsAnError(t *testing.T) {
	_, err := lookup(t.Context(), &lookupTable{limit: 1}, "k", func() (int, error) { panic("boom") })
	if !errdefs.IsInternal(err) {
		t.Errorf("got error %v", err)
	}
}

// probeOf makes a tree of files for a nodeProbe.
func probeOf(t *testing.T, files map[string]string) nodeProbe {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(content, "ROOT", dir)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return nodeProbe{proc: dir + "/proc", sys: dir + "/sys"}
}

func TestNodeOfCgroupV1(t *testing.T) {
	p := probeOf(t, map[string]string{
		"proc/self/mountinfo": "33 31 0:30 / ROOT/mem rw - cgroup cgroup rw,memory\n" +
			"34 31 0:31 / /h rw - cgroup cgroup rw,hugetlb\n",
		"sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages":     "0",
		"sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages":  "0",
		"sys/kernel/mm/hugepages/hugepages-64kB/nr_hugepages":       "0",
		"sys/kernel/mm/hugepages/hugepages-16777216kB/nr_hugepages": "0",
		"mem/memory.memsw.limit_in_bytes":                           "1",
		"sys/fs/cgroup/memory/tasks":                                "",
		"proc/self/oom_score_adj":                                   "-5\n",
		"proc/self/status":                                          "Name:\tx\nSeccomp:\t0\n",
		"sys/module/apparmor/parameters/enabled":                    "Y\n",
	})
	node, err := p.facts()
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(node.HugePageSizes)
	if want := []string{"16GB", "1GB", "2MB", "64KB"}; !slices.Equal(node.HugePageSizes, want) {
		t.Errorf("got huge pages %v, want %v", node.HugePageSizes, want)
	}
	if node.CgroupV2 || !node.SwapAccounting || !node.Seccomp || !node.AppArmor || node.SELinux {
		t.Errorf("got %+v", node)
	}
	if floor, err := p.oomScoreFloor(false); floor != -5 || err != nil {
		t.Errorf("got the floor %d, %v, want -5", floor, err)
	}
	if floor, err := p.oomScoreFloor(true); floor != -1000 || err != nil {
		t.Errorf("got the floor %d, %v with CAP_SYS_RESOURCE, want -1000", floor, err)
	}
}

func TestNodeOfCgroupV2(t *testing.T) {
	files := map[string]string{
		"sys/fs/cgroup/cgroup.controllers":                      "cpu memory hugetlb pids\n",
		"sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "0",
		"proc/swaps": "",
	}
	p := probeOf(t, files)
	if sizes, err := p.hugePageSizes(true); err != nil || !slices.Equal(sizes, []string{"2MB"}) {
		t.Errorf("got huge pages %v, %v", sizes, err)
	}
	if ok, err := p.swapAccounting(true); !ok || err != nil {
		t.Errorf("got swap %t, %v with no cgroup to look at, want the kernel's", ok, err)
	}
	files["sys/fs/cgroup/system.slice/memory.max"] = "max"
	if ok, _ := probeOf(t, files).swapAccounting(true); ok {
		t.Error("swap can be limited where there is no file for it")
	}
	files["sys/fs/cgroup/system.slice/memory.swap.max"] = "max"
	if ok, _ := probeOf(t, files).swapAccounting(true); !ok {
		t.Error("swap cannot be limited where there is a file for it")
	}
	files["sys/fs/cgroup/cgroup.controllers"] = "cpu memory\n"
	if sizes, _ := probeOf(t, files).hugePageSizes(true); len(sizes) > 0 {
		t.Errorf("got huge pages %v without the controller", sizes)
	}
}

func TestFactsOfThisNode(t *testing.T) {
	node, err := nodeProbe{proc: "/proc", sys: "/sys"}.facts()
	if err != nil {
		t.Fatal(err)
	}
	if node.Hostname == "" || node.OOMScoreFloor < -1000 || node.OOMScoreFloor > 1000 {
		t.Errorf("got %+v", node)
	}
	// All that the node says must be what spec takes.
	in := spec.Input{
		Node:       node,
		Config:     &runtime.ContainerConfig{Command: []string{"true"}},
		Namespaces: spec.Namespaces{Network: "/n", IPC: "/i", UTS: "/u", PID: "/p"},
	}
	s, _, err := spec.Build(in)
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 && !slices.Contains(s.Process.Capabilities.Bounding, "CAP_CHOWN") {
		t.Errorf("root has the capabilities %v", node.Capabilities)
	}
}
