//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func podPID(c *runtime.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
}

func pidMode(mode runtime.NamespaceMode) func(*runtime.ContainerConfig) {
	return security(func(s *runtime.LinuxContainerSecurityContext) { s.NamespaceOptions.Pid = mode })
}

func TestSharedPIDNamespace(t *testing.T) {
	p := runPod(t, podPID)
	first := p.start(t, "first", "sleep 4711", pidMode(runtime.NamespaceMode_POD))
	second := p.start(t, "second", "sleep 1000", pidMode(runtime.NamespaceMode_POD))
	if got := second.exec(t, "ps"); !strings.Contains(got, "sleep 4711") {
		t.Errorf("the other container's process is not seen: %s", got)
	}
	wantEqual(t, "number of first processes", second.exec(t, "echo $$ | grep -c '^1$' || true"), "0")
	// The container's end takes all of its processes but not the other container's.
	if err := first.stop(t, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "process of the stopped container is gone", func() bool {
		return !strings.Contains(second.exec(t, "ps"), "sleep 4711")
	})
	wantEqual(t, "state of the other container", second.status(t).State, runtime.ContainerState_CONTAINER_RUNNING)
}

func TestOwnPIDNamespace(t *testing.T) {
	p := runPod(t)
	p.start(t, "first", "sleep 4712")
	second := p.start(t, "second", "sleep 1000")
	if got := second.exec(t, "ps"); strings.Contains(got, "4712") {
		t.Errorf("the other container's process is seen: %s", got)
	}
}

func TestHostAndTargetPIDNamespace(t *testing.T) {
	p := runPod(t)
	target := p.start(t, "target", "sleep 4713")
	debug := p.start(t, "debug", "sleep 1000", security(func(s *runtime.LinuxContainerSecurityContext) {
		s.NamespaceOptions.Pid, s.NamespaceOptions.TargetId = runtime.NamespaceMode_TARGET, target.id
	}))
	wantEqual(t, "pid namespace", debug.exec(t, "readlink /proc/self/ns/pid"), target.exec(t, "readlink /proc/self/ns/pid"))
	host := runPodOn(t, shared, podConfig(t, shared, "-host"), func(c *runtime.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_NODE
	})
	c := host.start(t, "c", "sleep 1000", pidMode(runtime.NamespaceMode_NODE))
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "pid namespace of the host", c.exec(t, "readlink /proc/self/ns/pid"), own)
}

func TestSharedMemoryIsThePods(t *testing.T) {
	p := runPod(t)
	first, second := p.start(t, "first", "sleep 1000"), p.start(t, "second", "sleep 1000")
	first.exec(t, "echo shared > /dev/shm/note")
	wantEqual(t, "note in the other container", second.exec(t, "cat /dev/shm/note"), "shared")
	wantEqual(t, "size of /dev/shm in KiB", first.exec(t, "df -k /dev/shm | tail -1 | awk '{print $2}'"), "65536")
	wantEqual(t, "ipc namespace", first.exec(t, "readlink /proc/self/ns/ipc"), second.exec(t, "readlink /proc/self/ns/ipc"))
	other := runPodOn(t, shared, podConfig(t, shared, "-other")).start(t, "c", "sleep 1000")
	if r := other.execSync(t, 60, "cat", "/dev/shm/note"); r.ExitCode == 0 {
		t.Error("another pod sees the note")
	}
}

func TestHostnameAndResolvConf(t *testing.T) {
	p := runPod(t, func(c *runtime.PodSandboxConfig) {
		c.Hostname = "chosen"
		c.DnsConfig = &runtime.DNSConfig{
			Servers: []string{"192.0.2.53"}, Searches: []string{"a.test", "b.test"}, Options: []string{"ndots:5"},
		}
	})
	c := p.start(t, "c", "sleep 1000")
	wantEqual(t, "hostname", c.exec(t, "hostname"), "chosen")
	wantEqual(t, "/etc/hostname", c.exec(t, "cat /etc/hostname"), "chosen")
	conf := c.exec(t, "cat /etc/resolv.conf")
	for _, line := range []string{"nameserver 192.0.2.53", "search a.test b.test", "options ndots:5"} {
		if !strings.Contains(conf, line) {
			t.Errorf("resolv.conf does not hold %q: %s", line, conf)
		}
	}
}

func TestSysctl(t *testing.T) {
	p := runPod(t, func(c *runtime.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1", "net.ipv4.ip_local_port_range": "20000 20999"}
	})
	c := p.start(t, "c", "sleep 1000")
	wantEqual(t, "ipc sysctl", c.exec(t, "cat /proc/sys/kernel/shm_rmid_forced"), "1")
	wantEqual(t, "net sysctl", c.exec(t, "cat /proc/sys/net/ipv4/ip_local_port_range | tr '\\t' ' '"), "20000 20999")
}

func TestMounts(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := runPod(t)
	c := p.start(t, "c", "sleep 1000", func(c *runtime.ContainerConfig) {
		c.Mounts = []*runtime.Mount{
			{ContainerPath: "/rw", HostPath: dir}, {ContainerPath: "/ro", HostPath: dir, Readonly: true},
			{ContainerPath: "/deep/er/file", HostPath: filepath.Join(dir, "file")},
		}
	})
	wantEqual(t, "mounted file", c.exec(t, "cat /deep/er/file"), "from the host")
	c.exec(t, "echo back > /rw/answer")
	if b, err := os.ReadFile(filepath.Join(dir, "answer")); err != nil || string(b) != "back\n" {
		t.Errorf("answer on the host is %q, %v", b, err)
	}
	if r := c.execSync(t, 60, "touch", "/ro/new"); r.ExitCode == 0 {
		t.Error("read-only mount is writable")
	}
	wantEqual(t, "mounts in status", len(c.status(t).Mounts), 3)
}
