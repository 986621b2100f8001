package cni

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// BenchmarkEmbedded attaches and detaches one sandbox after the other, in a process with a network of its own. It tells
// the time of each, and the CPU time of both together: of this process, and of those that it started.
func BenchmarkEmbedded(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root: makes network namespaces")
	}
	if os.Getenv("GANTRY_TEST_INNER") == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^$", "-test.bench=^BenchmarkEmbedded$", "-test.benchtime=100x")
		cmd.Env = append(os.Environ(), "GANTRY_TEST_INNER=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
		out, err := cmd.CombinedOutput()
		if err != nil {
			b.Fatalf("%v\n%s", err, out)
		}
		fmt.Printf("%s", out)
		return
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		b.Fatal(err)
	}
	ports := sandboxConfig()
	ports.PortMappings = []*runtime.PortMapping{{HostPort: 18080, ContainerPort: 80}}
	plain, hostPort := sandboxConfig(), sandboxConfig()
	hostPort.PortMappings = []*runtime.PortMapping{{HostPort: 18080, ContainerPort: 80}}
	for _, network := range []string{"embedded", "plugins"} {
		b.Run(network, func(b *testing.B) { benchmarkNetwork(b, network, plain) })
		b.Run(network+" with host port", func(b *testing.B) { benchmarkNetwork(b, network, hostPort) })
	}
}

func benchmarkNetwork(b *testing.B, network string, config *runtime.PodSandboxConfig) {
	c := Config{Embedded: true, EmbeddedBridge: "gtest0", CacheDir: b.TempDir()}
	if network == "plugins" {
		c = byPlugins(b, len(config.PortMappings) > 0)
	}
	n, err := Open(c)
	if err != nil {
		b.Fatal(err)
	}
	defer n.Close()
	var attach, detach, own, others time.Duration
	for i := range b.N {
		netns := newNetNS(b)
		id, start := fmt.Sprint("s", i), time.Now()
		own, others = own-cpuTime(unix.RUSAGE_SELF), others-cpuTime(unix.RUSAGE_CHILDREN)
		if _, err := n.Attach(b.Context(), id, netns, config); err != nil {
			b.Fatal(err)
		}
		attached := time.Now()
		if err := n.Detach(b.Context(), id, netns, config); err != nil {
			b.Fatal(err)
		}
		attach, detach = attach+attached.Sub(start), detach+time.Since(attached)
		own, others = own+cpuTime(unix.RUSAGE_SELF), others+cpuTime(unix.RUSAGE_CHILDREN)
		_ = unix.Unmount(netns, unix.MNT_DETACH) // as the end of a sandbox does
	}
	for unit, sum := range map[string]time.Duration{
		"attach-ms": attach, "detach-ms": detach, "CPU-ms": own, "plugins-CPU-ms": others,
	} {
		b.ReportMetric(float64(sum.Microseconds())/float64(b.N)/1e3, unit)
	}
	b.ReportMetric(0, "ns/op") // it has no meaning here, and 0 hides it
	if network == "embedded" && others > 0 {
		b.Errorf("processes were started, and used %v", others)
	}
}

// byPlugins configures what the embedded network was before: bridge and host-local, portmap where there are host ports.
func byPlugins(b *testing.B, hostPorts bool) Config {
	dir := os.Getenv("GANTRY_CNI_BIN")
	if dir == "" {
		dir, _ = filepath.Abs("../bin/cni")
	}
	if _, err := os.Stat(filepath.Join(dir, "bridge")); err != nil {
		b.Skipf("needs the CNI plugins in %s or $GANTRY_CNI_BIN: %v", dir, err)
	}
	c := Config{CacheDir: b.TempDir(), ConfDir: b.TempDir(), BinDirs: []string{dir}}
	portmap := ""
	if hostPorts {
		portmap = `,{"type":"portmap","snat":true,"capabilities":{"portMappings":true}}`
	}
	list := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"bench","plugins":[{"type":"bridge","bridge":"gtest1","isGateway":true,
		"hairpinMode":true,"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.231.9.0/24"}]],
		"routes":[{"dst":"0.0.0.0/0"}]}}%s]}`, filepath.Join(c.CacheDir, "ipam"), portmap)
	if err := os.WriteFile(filepath.Join(c.ConfDir, "10.conflist"), []byte(list), 0o600); err != nil {
		b.Fatal(err)
	}
	return c
}

// cpuTime is what this process used, or the children that it waited for.
func cpuTime(who int) time.Duration {
	var usage unix.Rusage
	_ = unix.Getrusage(who, &usage) // fails for no valid who
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
