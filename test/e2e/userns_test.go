//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/images"
)

// usernsOf is a user namespace of 65536 ids.
func usernsOf(host uint32) *runtime.UserNamespace {
	ids := []*runtime.IDMapping{{HostId: host, Length: 65536}}
	return &runtime.UserNamespace{Mode: runtime.NamespaceMode_POD, Uids: ids, Gids: ids}
}

// inUserns changes a pod into one with a user namespace.
func inUserns(host uint32) func(*runtime.PodSandboxConfig) {
	return func(c *runtime.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = usernsOf(host)
	}
}

// joining changes a container into one of such a pod: mounts are mapped too, as the kubelet does.
func joining(host uint32, changes ...func(*runtime.ContainerConfig)) func(*runtime.ContainerConfig) {
	return func(c *runtime.ContainerConfig) {
		for _, change := range changes {
			change(c)
		}
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = usernsOf(host)
		for _, m := range c.Mounts {
			m.UidMappings, m.GidMappings = usernsOf(host).Uids, usernsOf(host).Gids
		}
	}
}

// needUserns skips a test where the kernel cannot map the owners of an overlay's layers (5.19) or has no user namespaces.
func needUserns(t *testing.T) {
	t.Helper()
	status, err := shared.Runtime.Status(timeout(t), &runtime.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range status.RuntimeHandlers {
		if !h.GetFeatures().GetUserNamespaces() {
			t.Skip("the kernel lacks user namespaces or overlay on idmapped mounts")
		}
	}
}

// owner is the owner of a file on the host.
func owner(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

func TestUserNamespaceMapsIDs(t *testing.T) {
	needUserns(t)
	p := runPod(t, inUserns(200000), func(c *runtime.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1", "net.ipv4.ip_local_port_range": "20000 20999"}
	})
	c := p.start(t, "c", "echo up; echo again > /proc/self/fd/1; echo third > /dev/stderr; exec sleep 1000", joining(200000))
	wantEqual(t, "uid_map", strings.Join(strings.Fields(c.exec(t, "cat /proc/self/uid_map")), " "), "0 200000 65536")
	wantEqual(t, "gid_map", strings.Join(strings.Fields(c.exec(t, "cat /proc/self/gid_map")), " "), "0 200000 65536")
	wantEqual(t, "user inside", c.exec(t, "id -u"), "0")
	c.waitLog(t, "again")
	c.waitLog(t, "third")
	pids := processesWith(t, c.id)
	if len(pids) == 0 {
		t.Fatal("no process")
	}
	for _, pid := range pids {
		wantEqual(t, "owner of the process", owner(t, fmt.Sprintf("/proc/%d", pid)), "200000:200000")
	}
	wantEqual(t, "owner of the image's files", c.exec(t, "stat -c %u:%g /bin/busybox /etc /"), "0:0\n0:0\n0:0")
	wantEqual(t, "hostname", c.exec(t, "hostname"), p.config.Hostname)
	wantEqual(t, "ipc sysctl", c.exec(t, "cat /proc/sys/kernel/shm_rmid_forced"), "1")
	wantEqual(t, "net sysctl", c.exec(t, "cat /proc/sys/net/ipv4/ip_local_port_range | tr '\\t' ' '"), "20000 20999")
	c.exec(t, "echo 127.0.0.9 more >> /etc/hosts && cat /etc/hostname /etc/resolv.conf && touch /dev/shm/x && ls /dev/mqueue")
	wantEqual(t, "owner in /dev/shm", c.exec(t, "stat -c %u:%g /dev/shm /dev/shm/x"), "0:0\n0:0")
	c.exec(t, "echo > /dev/null && head -c1 /dev/zero > /dev/full; test -r /sys/class/net/eth0/address && mount | grep -q /sys/fs/cgroup")
	for _, forbidden := range []string{"mknod /dev/kmsg2 c 1 11", "mount -o remount,rw /sys", "cat /proc/1/root/../../etc/shadow > /dev/null"} {
		if r := c.execSync(t, 60, "sh", "-c", forbidden); r.ExitCode == 0 {
			t.Errorf("%s: succeeded", forbidden)
		}
	}
}

func TestUserNamespaceOfImageUser(t *testing.T) {
	needUserns(t)
	p := runPod(t, inUserns(200000))
	c := p.start(t, "c", "echo up > /dev/stdout; exec sleep 1000", joining(200000, func(c *runtime.ContainerConfig) {
		c.Image.Image = images.Users
	}))
	c.waitLog(t, "up")
	wantEqual(t, "user", c.exec(t, "id -u; id -G"), "1000\n1000 50000")
	c.exec(t, "touch /srv/app/mine")
	wantEqual(t, "owner inside", c.exec(t, "stat -c %u:%g /srv/app /srv/app/mine"), "1000:1000\n1000:1000")
	for _, pid := range processesWith(t, c.id) {
		wantEqual(t, "owner of the process", owner(t, fmt.Sprintf("/proc/%d", pid)), "201000:201000")
	}
	upper := filepath.Join(shared.Root(), "images/containers", c.id, "fs")
	wantEqual(t, "owner on disk", owner(t, filepath.Join(upper, "srv/app/mine")), "201000:201000")
}

func TestTwoMappingsOfOneImageAndVolume(t *testing.T) {
	needUserns(t)
	volume := t.TempDir()
	if err := os.WriteFile(filepath.Join(volume, "given"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	memory, err := os.MkdirTemp("/dev/shm", "userns-") // a tmpfs, as the kubelet's secrets are
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(memory) })
	ref := pull(t, shared, images.Data)
	for i, host := range []uint32{300000, 400000} {
		p := runPodOn(t, shared, podConfig(t, shared, fmt.Sprint("-", i)), inUserns(host))
		c := p.start(t, "c", "exec sleep 1000", joining(host, func(c *runtime.ContainerConfig) {
			c.Image.Image = images.Data
			c.Mounts = []*runtime.Mount{
				{ContainerPath: "/vol", HostPath: volume},
				{ContainerPath: "/ro", HostPath: volume, Readonly: true},
				{ContainerPath: "/rro", HostPath: volume, Readonly: true, RecursiveReadOnly: true},
				{ContainerPath: "/etc/given", HostPath: filepath.Join(volume, "given")},
				{ContainerPath: "/mem", HostPath: memory},
				{ContainerPath: "/image", Image: &runtime.ImageSpec{Image: ref}, Readonly: true},
				{ContainerPath: "/part", Image: &runtime.ImageSpec{Image: ref}, ImageSubPath: "data/sub", Readonly: true},
				{ContainerPath: "/etc/one", Image: &runtime.ImageSpec{Image: ref}, ImageSubPath: "data/sub/file", Readonly: true},
			}
		}))
		wantEqual(t, "owner of what the host made", c.exec(t, "stat -c %u:%g /vol/given /ro/given /rro/given /etc/given /mem"), strings.Repeat("0:0\n", 4)+"0:0")
		wantEqual(t, "owner in image volumes", c.exec(t, "stat -c %u:%g /image/data /part/file /etc/one"), "0:0\n0:0\n0:0")
		wantEqual(t, "content of image volumes", c.exec(t, "cat /image/data/sub/file /part/file /etc/one"), strings.Repeat("from the image", 3))
		if r := c.execSync(t, 60, "touch", "/image/new"); r.ExitCode == 0 {
			t.Error("image volume is writable")
		}
		for _, path := range []string{"/ro/new", "/rro/new"} {
			if r := c.execSync(t, 60, "touch", path); r.ExitCode == 0 {
				t.Errorf("read-only volume is writable: %s", path)
			}
		}
		c.exec(t, "cat /vol/given > /dev/null; echo x >> /data/sub/file; rm /data/run; touch /root.txt /declared/new/y; chmod u+s /bin/busybox")
		c.exec(t, fmt.Sprintf("touch /vol/by-root-%d; touch /vol/by-user-%[1]d; chown 7:8 /vol/by-user-%[1]d /root.txt", i))
		wantEqual(t, "owner of a root's file on the host", owner(t, fmt.Sprintf("%s/by-root-%d", volume, i)), "0:0")
		wantEqual(t, "owner of a user's file on the host", owner(t, fmt.Sprintf("%s/by-user-%d", volume, i)), "7:8")
		upper := filepath.Join(shared.Root(), "images/containers", c.id, "fs")
		for path, want := range map[string]string{
			"": fmt.Sprintf("%d:%[1]d", host), "declared/new": fmt.Sprintf("%d:%[1]d", host),
			"data/sub/file": fmt.Sprintf("%d:%[1]d", host), "root.txt": fmt.Sprintf("%d:%d", host+7, host+8),
		} {
			wantEqual(t, "owner on disk of /"+path, owner(t, filepath.Join(upper, path)), want)
		}
	}
}

func TestPodsInAndOutsideUserNamespacesTalk(t *testing.T) {
	needUserns(t)
	mapped := runPodOn(t, shared, podConfig(t, shared, "-mapped"), inUserns(200000))
	plain := runPodOn(t, shared, podConfig(t, shared, "-plain"))
	mapped.start(t, "server", "", webServer, joining(200000))
	plain.start(t, "server", "", webServer)
	inMapped := mapped.start(t, "client", "sleep 1000", joining(200000))
	inPlain := plain.start(t, "client", "sleep 1000")
	for _, tc := range []struct {
		from *container
		to   *pod
	}{{inMapped, plain}, {inPlain, mapped}, {inMapped, mapped}} {
		got := tc.from.exec(t, fmt.Sprintf("for i in $(seq 300); do wget -q -O- http://%s/ && exit; sleep 0.1; done; exit 1", tc.to.ip(t)))
		if !strings.Contains(got, "hello from "+tc.to.config.Hostname) {
			t.Errorf("server answered %q", got)
		}
		tc.from.exec(t, "ping -c 1 -w 30 "+tc.to.ip(t))
	}
}

func TestUserNamespaceOutlivesDaemonAndKeeper(t *testing.T) {
	needUserns(t)
	p := runPod(t, podPID, inUserns(200000))
	pidOf := joining(200000, pidMode(runtime.NamespaceMode_POD))
	first := p.start(t, "first", "exec sleep 4717", pidOf)
	created := p.create(t, "created", "echo up; exec sleep 1000", pidOf)
	old := keeperPID(t, shared)
	shared.Kill()
	killKeeper(t, shared)
	restart(t)
	awaitKeeper(t, shared, old)
	wantEqual(t, "pod state", p.status(t).State, runtime.PodSandboxState_SANDBOX_READY)
	wantEqual(t, "user inside", first.exec(t, "id -u"), "0")
	if err := created.start(t); err != nil {
		t.Fatal(err)
	}
	another := p.start(t, "another", "exec sleep 1000", pidOf)
	for _, c := range []*container{created, another} {
		if got := c.exec(t, "ps"); !strings.Contains(got, "sleep 4717") || !strings.Contains(got, "pause") {
			t.Errorf("processes of a shared PID namespace: %s", got)
		}
		wantEqual(t, "user namespace", c.exec(t, "readlink /proc/self/ns/user"), first.exec(t, "readlink /proc/self/ns/user"))
	}
	for _, pid := range processesWith(t, p.id) {
		wantEqual(t, "owner of the pod's init", owner(t, fmt.Sprintf("/proc/%d", pid)), "265535:265535")
	}
}

func TestPrivilegedInUserNamespace(t *testing.T) {
	needUserns(t)
	p := runPod(t, inUserns(200000), func(c *runtime.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	c := p.start(t, "c", "exec sleep 1000", joining(200000), security(func(s *runtime.LinuxContainerSecurityContext) {
		s.Privileged = true
	}))
	c.exec(t, "mkdir /mnt && mount -t tmpfs none /mnt && mount | grep -q ' /mnt '")
	if r := c.execSync(t, 60, "sh", "-c", "echo 1 > /proc/sys/kernel/panic_on_warn"); r.ExitCode == 0 {
		t.Error("root inside changed the host")
	}
}

func TestSmallUserNamespace(t *testing.T) {
	needUserns(t)
	one := &runtime.UserNamespace{
		Uids: []*runtime.IDMapping{{HostId: 500000, Length: 1}}, Gids: []*runtime.IDMapping{{HostId: 600000, Length: 1}},
	}
	p := runPod(t, podPID, func(c *runtime.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = one
	})
	c := p.start(t, "c", "exec sleep 1000", pidMode(runtime.NamespaceMode_POD), security(func(s *runtime.LinuxContainerSecurityContext) {
		s.NamespaceOptions.UsernsOptions = one
	}))
	c.exec(t, "touch /x")
	upper := filepath.Join(shared.Root(), "images/containers", c.id, "fs")
	wantEqual(t, "owner on disk", owner(t, filepath.Join(upper, "x")), "500000:600000")
}

// On the host's network a user namespace does not own the network's, so that /sys cannot be mounted anew in it.
func TestUserNamespaceOnTheHostsNetwork(t *testing.T) {
	needUserns(t)
	status, err := shared.Runtime.Status(timeout(t), &runtime.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "the feature is told", status.Features.UserNamespacesHostNetwork, true)
	onHost := func(c *runtime.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_NODE
		c.Hostname = ""
	}
	p := runPod(t, inUserns(200000), onHost)
	c := p.start(t, "c", "exec sleep 1000", joining(200000, func(c *runtime.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_NODE
	}))
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "network namespace", c.exec(t, "readlink /proc/self/ns/net"), own)
	wantEqual(t, "mapping", strings.Join(strings.Fields(c.exec(t, "cat /proc/self/uid_map")), " "), "0 200000 65536")
	wantEqual(t, "loopback in /sys", c.exec(t, "cat /sys/class/net/lo/mtu"), "65536")
	for _, path := range []string{"/sys/kernel/mm/transparent_hugepage/enabled", "/sys/class/net/lo/mtu"} {
		if r := c.execSync(t, 60, "sh", "-c", "cat "+path+" > /tmp/x; cat /tmp/x > "+path); r.ExitCode == 0 {
			t.Errorf("%s can be written", path)
		}
	}
	wantEqual(t, "mounts of /sys that can be written", c.exec(t, "grep ' /sys ' /proc/self/mounts | grep -c ' rw' || true"), "0")
	if ip := p.status(t).Network.GetIp(); ip != "" {
		t.Errorf("address %s on the host's network", ip)
	}
}

func TestBadUserNamespacesAreRefused(t *testing.T) {
	needUserns(t)
	for name, change := range map[string]func(*runtime.NamespaceOption){
		"userns_options.uids":                   func(o *runtime.NamespaceOption) { o.UsernsOptions.Uids = nil },
		"userns_options.gids":                   func(o *runtime.NamespaceOption) { o.UsernsOptions.Gids = append(usernsOf(1).Gids, usernsOf(2).Gids...) },
		"userns_options.uids[0].length":         func(o *runtime.NamespaceOption) { o.UsernsOptions.Uids = []*runtime.IDMapping{{HostId: 1}} },
		"userns_options.mode":                   func(o *runtime.NamespaceOption) { o.UsernsOptions.Mode = runtime.NamespaceMode_TARGET },
		"namespace_options.ipc NODE":            func(o *runtime.NamespaceOption) { o.Ipc = runtime.NamespaceMode_NODE },
		"namespace_options.pid NODE":            func(o *runtime.NamespaceOption) { o.Pid = runtime.NamespaceMode_NODE },
		"userns_options.uids[0].host_id 429496": func(o *runtime.NamespaceOption) { o.UsernsOptions = usernsOf(4294967000) },
	} {
		config := podConfig(t, shared, "")
		inUserns(200000)(config)
		change(config.Linux.SecurityContext.NamespaceOptions)
		_, err := shared.Runtime.RunPodSandbox(timeout(t), &runtime.RunPodSandboxRequest{Config: config})
		wantCode(t, err, codes.InvalidArgument, name)
	}
	p := runPod(t, inUserns(200000))
	for name, change := range map[string]func(*runtime.ContainerConfig){
		"userns_options": joining(200001),
		"mounts[0].uidMappings": func(c *runtime.ContainerConfig) {
			joining(200000)(c)
			c.Mounts = []*runtime.Mount{{ContainerPath: "/m", HostPath: "/tmp", UidMappings: usernsOf(1).Uids, GidMappings: usernsOf(1).Gids}}
		},
	} {
		config := containerConfig("c", "true")
		change(config)
		_, err := p.tryCreate(t, config)
		wantCode(t, err, codes.InvalidArgument, name)
	}
	// A file system that cannot map owners.
	c := p.create(t, "proc", "true", joining(200000, func(c *runtime.ContainerConfig) {
		c.Mounts = []*runtime.Mount{{ContainerPath: "/m", HostPath: "/proc/sys"}}
	}))
	if err := c.start(t); err == nil || !strings.Contains(err.Error(), "/proc/sys") || !strings.Contains(err.Error(), "IDMAP") {
		t.Errorf("error %v does not say that the owners of /proc/sys cannot be mapped", err)
	}
}
