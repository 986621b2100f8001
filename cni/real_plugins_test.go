package cni

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The main thread, unlike others, does not end with the goroutine that is locked to it, and would keep a namespace
// alive; so the main goroutine keeps it.
func init() { goruntime.LockOSThread() }

// TestConfiguredNetworkIsUndoneAfterRestart uses a list as distributions install it, takes it away and restarts.
func TestConfiguredNetworkIsUndoneAfterRestart(t *testing.T) {
	binDir := realPlugins(t)
	if os.Getenv("GANTRY_TEST_INNER") == "" {
		runInNewNetwork(t)
		return
	}
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	dir := t.TempDir()
	conf := filepath.Join(dir, "net.d", "10-bridge.conflist")
	must(t, os.Mkdir(filepath.Dir(conf), 0o700))
	must(t, os.WriteFile(conf, fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"bridged","plugins":[
		{"type":"bridge","bridge":"gtest1","isGateway":true,"ipMasq":true,"ipam":{"type":"host-local","dataDir":"%[1]s/ipam",
			"ranges":[[{"subnet":"10.231.9.0/24"}],[{"subnet":"fd00:231:9::/64"}]]}},
		{"type":"portmap","capabilities":{"portMappings":true}}, {"type":"firewall"}]}`, dir), 0o600))
	config := Config{
		ConfDir: filepath.Dir(conf), BinDirs: []string{binDir}, CacheDir: filepath.Join(dir, "cache"),
	}
	n, err := Open(config)
	must(t, err)
	netns, request := newNetNS(t), sandboxConfig()
	request.PortMappings = []*runtime.PortMapping{{HostPort: 18080, ContainerPort: 80}}
	ips, err := n.Attach(t.Context(), "s1", netns, request)
	if err != nil || len(ips) != 2 || ips[0] != "10.231.9.2" || ips[1] != "fd00:231:9::2" {
		t.Fatalf("Attach = %v, %v; want both families, IPv4 first", ips, err)
	}
	n.Close()
	must(t, os.Remove(conf))
	n, err = Open(config)
	must(t, err)
	defer n.Close()
	must(t, n.Retain(t.Context(), nil))
	if rules := firewall(t); strings.Contains(rules, "10.231.9.") || strings.Contains(rules, "fd00:231:9::") {
		t.Errorf("rules are left:\n%s", rules)
	}
	for _, ip := range ips {
		if _, err := os.Stat(filepath.Join(dir, "ipam", "bridged", ip)); !os.IsNotExist(err) {
			t.Errorf("address %s is still reserved: %v", ip, err)
		}
	}
	if left, err := n.Leftovers(t.Context()); err != nil || len(left) > 0 {
		t.Errorf("Leftovers = %v, %v", left, err)
	}
}

// realPlugins returns where the plugins are, which hack/ builds.
func realPlugins(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	dir := os.Getenv("GANTRY_CNI_BIN")
	if dir == "" {
		dir, _ = filepath.Abs("../bin/cni")
	}
	for _, name := range []string{"bridge", "host-local", "portmap", "firewall"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Skipf("needs the CNI plugins in %s or $GANTRY_CNI_BIN: %v", dir, err)
		}
	}
	return dir
}

// runInNewNetwork runs the current test again in a process that has its own network.
func runInNewNetwork(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "GANTRY_TEST_INNER=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	must(t, err)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newNetNS makes a network namespace and returns the path that pins it.
func newNetNS(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "netns")
	must(t, os.WriteFile(path, nil, 0o600))
	errs := make(chan error)
	go func() {
		goruntime.LockOSThread() // for good: the thread ends in the new namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		errs <- err
	}()
	must(t, <-errs)
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	return path
}

// inNetNS runs do in a network namespace; "" is that of the process.
func inNetNS(netns string, do func() error) error {
	errs := make(chan error)
	go func() {
		if netns != "" {
			goruntime.LockOSThread() // for good
			fd, err := unix.Open(netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				err = unix.Setns(fd, unix.CLONE_NEWNET)
				_ = unix.Close(fd)
			}
			if err != nil {
				errs <- err
				return
			}
		}
		errs <- do()
	}()
	return <-errs
}

// serveHTTP serves body, or the client's address if it is empty.
func serveHTTP(t *testing.T, netns, address, body string) {
	t.Helper()
	var l net.Listener
	must(t, inNetNS(netns, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	}))
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if body == "" {
			host, _, _ := net.SplitHostPort(r.RemoteAddr)
			_, _ = io.WriteString(w, host)
			return
		}
		_, _ = io.WriteString(w, body)
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
}

func get(netns, address string) (string, error) {
	var conn net.Conn
	err := inNetNS(netns, func() (err error) {
		conn, err = net.DialTimeout("tcp", address, 10*time.Second)
		return err
	})
	if err != nil {
		return "", err
	}
	client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		DisableKeepAlives: true,
	}}
	resp, err := client.Get("http://sandbox/")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// firewall is all rules of the network that the test runs in.
func firewall(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, command := range [][]string{{"iptables-save"}, {"ip6tables-save"}, {"nft", "list", "ruleset"}} {
		if _, err := exec.LookPath(command[0]); err != nil {
			continue
		}
		out, err := exec.CommandContext(t.Context(), command[0], command[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", command, err, out)
		}
		all.Write(out)
	}
	return all.String()
}
