package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ownNetwork runs the rest of the test in a process with a network of its own, and says whether this is it.
func ownNetwork(t *testing.T) bool {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	if os.Getenv("GANTRY_TEST_INNER") == "" {
		runInNewNetwork(t)
		return false
	}
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	must(t, unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755")) // has the locks of networks
	must(t, loopbackUp("/proc/self/ns/net"))
	return true
}

// embeddedConfig is that of a network in the namespace of the test.
func embeddedConfig(t *testing.T) Config {
	t.Helper()
	return Config{
		Embedded: true, EmbeddedBridge: "gtest0", EmbeddedSubnet: "10.231.7.0/24", EmbeddedSubnet6: "fd00:231:7::/64",
		CacheDir: t.TempDir(), ConfDir: t.TempDir(), BinDirs: []string{t.TempDir()},
	}
}

func openNetwork(t *testing.T, config Config) *Network {
	t.Helper()
	n, err := Open(config)
	must(t, err)
	t.Cleanup(n.Close)
	must(t, n.Status())
	return n
}

// wantClean checks that nothing of the network is left once no sandbox is attached.
func wantClean(t *testing.T, n *Network) {
	t.Helper()
	must(t, n.Cleanup(t.Context()))
	if left, err := n.Leftovers(t.Context()); err != nil || len(left) > 0 {
		t.Errorf("Leftovers = %v, %v", left, err)
	}
	if rules := firewall(t); strings.Contains(rules, "10.231.7.") || strings.Contains(rules, "gtest0") {
		t.Errorf("rules are left:\n%s", rules)
	}
	// The kernel takes the interfaces of a namespace away on its own time, and their routes. A list that changes while it
	// is read is an error.
	eventually(t, "no route is left", func() bool {
		routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
		return err == nil && !slices.ContainsFunc(routes, func(r netlink.Route) bool {
			return r.Dst != nil && (r.Dst.IP.Equal(net.IPv4(10, 231, 7, 0)) || r.Dst.IP[0] == 0xfd)
		})
	})
	eventually(t, "no interface is left", func() bool {
		interfaces, err := net.Interfaces()
		return err == nil &&
			!slices.ContainsFunc(interfaces, func(i net.Interface) bool { return strings.HasPrefix(i.Name, "g") })
	})
}

func TestEmbeddedNetworkCarriesTraffic(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	n := openNetwork(t, embeddedConfig(t))
	server, client := newNetNS(t), newNetNS(t)
	config := sandboxConfig()
	config.PortMappings = []*runtime.PortMapping{
		{HostPort: 18080, ContainerPort: 80},
		{HostPort: 18081, ContainerPort: 80, HostIp: "10.231.7.1"},
		{HostPort: 18082, ContainerPort: 80, HostIp: "127.0.0.1"},
	}
	ips, err := n.Attach(t.Context(), "server", server, config)
	must(t, err)
	if want := []string{"10.231.7.2", "fd00:231:7::2"}; !slices.Equal(ips, want) {
		t.Fatalf("Attach = %v, want %v", ips, want)
	}
	clientIPs, err := n.Attach(t.Context(), "client", client, sandboxConfig())
	must(t, err)
	const hello = "hello from the sandbox"
	serveHTTP(t, server, ":80", hello)
	outside := newOutside(t)

	for _, from := range []struct{ name, netns, address string }{
		{"the host by address", "", ips[0] + ":80"},
		{"the host by IPv6 address", "", "[" + ips[1] + "]:80"},
		{"the host by host port on loopback", "", "127.0.0.1:18080"},
		{"the host by host port on another loopback address", "", "127.8.7.6:18080"},
		{"the host by host port on the gateway", "", "10.231.7.1:18080"},
		{"the host by host port on the IPv6 gateway", "", "[fd00:231:7::1]:18080"},
		{"the host by host port of one address", "", "10.231.7.1:18081"},
		{"the host by host port of loopback", "", "127.0.0.1:18082"},
		{"another sandbox by address", client, ips[0] + ":80"},
		{"another sandbox by IPv6 address", client, "[" + ips[1] + "]:80"},
		{"another sandbox by host port", client, "10.231.7.1:18080"},
		{"another sandbox by IPv6 host port", client, "[fd00:231:7::1]:18080"},
		{"the sandbox itself by its loopback", server, "127.0.0.1:80"},
		{"the sandbox itself by address", server, ips[0] + ":80"},
		{"the sandbox itself by host port", server, "10.231.7.1:18080"},
		{"the sandbox itself by IPv6 host port", server, "[fd00:231:7::1]:18080"},
		{"outside by host port", outside, "10.231.8.1:18080"},
	} {
		if body, err := get(from.netns, from.address); err != nil || body != hello {
			t.Errorf("GET from %s (%s) = %q, %v", from.name, from.address, body, err)
		}
	}
	for _, from := range []struct{ name, netns, address string }{
		{"the host by a host port of another address", "", "127.0.0.1:18081"},
		{"the host by a host port of loopback on another address", "", "10.231.7.1:18082"},
		{"a sandbox to a port of its own that leads to another", client, "127.0.0.1:18080"},
		{"outside by a host port of another address", outside, "10.231.8.1:18082"},
	} {
		if body, err := get(from.netns, from.address); err == nil {
			t.Errorf("GET from %s (%s) = %q, want an error", from.name, from.address, body)
		}
	}
	if body, err := get(client, "10.231.8.2:80"); err != nil || body != "10.231.8.1" {
		t.Errorf("outside sees %q as the client, %v; want the host's address", body, err)
	}
	if body, err := get(client, ips[0]+":80"); err != nil || body != hello {
		t.Errorf("GET = %q, %v", body, err)
	}
	if left, err := n.Leftovers(t.Context()); err != nil || len(left) != 4 {
		t.Errorf("Leftovers = %v, %v; want two records, the bridge and the table", left, err)
	}
	if err := n.Cleanup(t.Context()); err == nil {
		t.Error("Cleanup removed the bridge while sandboxes were attached")
	}

	must(t, n.Detach(t.Context(), "server", server, config))
	for _, address := range []string{"127.0.0.1:18080", "10.231.7.1:18081", ips[0] + ":80"} {
		if body, err := get("", address); err == nil {
			t.Errorf("GET of %s after Detach = %q", address, body)
		}
	}
	if body, err := get(client, "10.231.8.2:80"); err != nil || body != "10.231.8.1" {
		t.Errorf("after another's Detach outside sees %q, %v", body, err)
	}
	must(t, unix.Unmount(client, unix.MNT_DETACH))
	must(t, n.Detach(t.Context(), "client", "", sandboxConfig()))
	t.Logf("client had %v", clientIPs)
	wantClean(t, n)
}

// newOutside is a machine beside the host, which knows no route to sandboxes. It serves, on 10.231.8.2:80, the address
// that the client seems to have.
func newOutside(t *testing.T) string {
	t.Helper()
	outside := newNetNS(t)
	file, err := os.Open(outside)
	must(t, err)
	defer file.Close()
	must(t, netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "uplink", PeerNamespace: netlink.NsFd(file.Fd()),
	}))
	configure := func(address string) func() error {
		return func() error {
			link, err := netlink.LinkByName("uplink")
			if err != nil {
				return err
			}
			addr, err := netlink.ParseAddr(address)
			if err != nil {
				return err
			}
			return errors.Join(netlink.AddrAdd(link, addr), netlink.LinkSetUp(link))
		}
	}
	must(t, inNetNS("", configure("10.231.8.1/24")))
	must(t, inNetNS(outside, configure("10.231.8.2/24")))
	serveHTTP(t, outside, "10.231.8.2:80", "")
	return outside
}

// TestManySandboxesAtOnce attaches and detaches sandboxes side by side, each with a host port.
// A sandbox that other nodes could not reach is not started.
func TestEmbeddedNetworkWaitsForTheNodesRange(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	config := embeddedConfig(t)
	config.EmbeddedClusterRanges = []string{"10.232.0.0/16"}
	n, err := Open(config)
	must(t, err)
	defer n.Close()
	if err := n.Status(); err == nil || !strings.Contains(err.Error(), "10.231.7.0/24 is not in the cluster's") {
		t.Errorf("before the range is told: %v", err)
	}
	netns := newNetNS(t)
	if _, err := n.Attach(t.Context(), "s1", netns, sandboxConfig()); !errdefs.IsUnavailable(err) {
		t.Errorf("Attach before the range is told: %v", err)
	}
	must(t, n.Detach(t.Context(), "s1", netns, sandboxConfig()))
	must(t, n.SetPodCIDR("10.232.3.0/24"))
	must(t, n.Status())
	ips, err := n.Attach(t.Context(), "s1", netns, sandboxConfig())
	must(t, err)
	if ips[0] != "10.232.3.2" {
		t.Errorf("Attach = %v", ips)
	}
	must(t, n.Detach(t.Context(), "s1", netns, sandboxConfig()))
}

func TestManySandboxesAtOnce(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	n := openNetwork(t, embeddedConfig(t))
	const count = 16
	var spaces, ips [count]string
	for i := range spaces {
		spaces[i] = newNetNS(t)
	}
	each := func(do func(i int) error) time.Duration {
		var group sync.WaitGroup
		start := time.Now()
		for i := range count {
			group.Go(func() {
				if err := do(i); err != nil {
					t.Errorf("sandbox %d: %v", i, err)
				}
			})
		}
		group.Wait()
		return time.Since(start)
	}
	config := func(i int) *runtime.PodSandboxConfig {
		c := sandboxConfig()
		c.PortMappings = []*runtime.PortMapping{{HostPort: int32(18000 + i), ContainerPort: 80}}
		return c
	}
	for range 3 {
		added := each(func(i int) error {
			got, err := n.Attach(t.Context(), fmt.Sprint("s", i), spaces[i], config(i))
			ips[i] = strings.Join(got, ",")
			return err
		})
		seen := map[string]bool{}
		for _, ip := range ips {
			if ip == "" || seen[ip] {
				t.Errorf("address %q was given twice or not at all: %v", ip, ips)
			}
			seen[ip] = true
		}
		deleted := each(func(i int) error { return n.Detach(t.Context(), fmt.Sprint("s", i), spaces[i], nil) })
		t.Logf("%d at once: attached in %v, detached in %v", count, added, deleted)
		// Each has an eth0 until the timer takes it.
		eventually(t, "no link is left", func() bool {
			links, err := netlink.LinkList()
			return err == nil && !slices.ContainsFunc(links, func(l netlink.Link) bool { return l.Type() == "veth" })
		})
	}
	wantClean(t, n)
}

func TestEmbeddedNetworkGoesOnAfterRestart(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	config := embeddedConfig(t)
	n := openNetwork(t, config)
	request := sandboxConfig()
	request.PortMappings = []*runtime.PortMapping{{HostPort: 18080, ContainerPort: 80}}
	netns := newNetNS(t)
	ips, err := n.Attach(t.Context(), "kept", netns, request)
	must(t, err)
	_, err = n.Attach(t.Context(), "lost", newNetNS(t), sandboxConfig())
	must(t, err)
	serveHTTP(t, netns, ":80", "still here")
	n.Close()

	n = openNetwork(t, config)
	must(t, n.Retain(t.Context(), []string{"kept"}))
	for _, address := range []string{ips[0] + ":80", "127.0.0.1:18080"} {
		if body, err := get("", address); err != nil || body != "still here" {
			t.Errorf("GET %s after a restart = %q, %v", address, body, err)
		}
	}
	_, err = n.Attach(t.Context(), "other", newNetNS(t), request)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "18080/tcp: sandbox kept has 18080/tcp") {
		t.Errorf("Attach with a host port that is taken = %v", err)
	}
	if _, err := n.Attach(t.Context(), "kept", netns, request); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second Attach of a sandbox = %v", err)
	}
	must(t, n.Detach(t.Context(), "other", "", nil)) // which failed before its record
	n.Close()

	config.Embedded = false // the node's network is another now; the sandbox is detached all the same
	n, err = Open(config)
	must(t, err)
	must(t, n.Retain(t.Context(), []string{"kept"}))
	must(t, n.Detach(t.Context(), "kept", netns, nil))
	if body, err := get("", "127.0.0.1:18080"); err == nil {
		t.Errorf("GET after Detach = %q", body)
	}
	n.Close()
	config.Embedded = true
	wantClean(t, openNetwork(t, config))
}

func TestEmbeddedAddressesAreHeldOverAReboot(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	config := embeddedConfig(t)
	config.EmbeddedSubnet = "10.231.7.0/29"
	n := openNetwork(t, config)
	_, err := n.Attach(t.Context(), "s1", newNetNS(t), sandboxConfig())
	must(t, err)
	// What a reboot leaves is the record, of another boot.
	file := n.records.file("s1")
	b, err := os.ReadFile(file)
	must(t, err)
	must(t, os.WriteFile(file, []byte(strings.Replace(string(b), bootID(), "another", 1)), 0o600))
	must(t, unix.Unmount(n.records.netnsOf(t, "s1"), unix.MNT_DETACH))
	n.Close()
	n = openNetwork(t, config)
	for i := range 4 {
		ips, err := n.Attach(t.Context(), fmt.Sprint("young", i), newNetNS(t), sandboxConfig())
		if err != nil || ips[0] == "10.231.7.2" {
			t.Fatalf("Attach = %v, %v; want an address that nobody has", ips, err)
		}
	}
	_, err = n.Attach(t.Context(), "late", newNetNS(t), sandboxConfig())
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "10.231.7.0/29: sandboxes have 5 of 5") {
		t.Errorf("Attach without a free address = %v", err)
	}
	must(t, n.Retain(t.Context(), nil))
	if ids := n.recorded(t); len(ids) > 0 {
		t.Errorf("records are left: %v", ids)
	}
	wantClean(t, n)
}

// netnsOf reads the namespace of an attachment.
func (d recordDir) netnsOf(t *testing.T, id string) string {
	t.Helper()
	b, err := os.ReadFile(d.file(id))
	must(t, err)
	var rec record
	must(t, json.Unmarshal(b, &rec))
	return rec.NetNS
}

func (n *Network) recorded(t *testing.T) []string {
	t.Helper()
	ids, err := n.records.list()
	must(t, err)
	return ids
}

func TestUnreadableEmbeddedRecordIsToldAndRemoved(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	for _, restart := range []bool{false, true} {
		config := embeddedConfig(t)
		n := openNetwork(t, config)
		request := sandboxConfig()
		request.PortMappings = []*runtime.PortMapping{{HostPort: 18080, ContainerPort: 80}}
		netns := newNetNS(t)
		_, err := n.Attach(t.Context(), "s1", netns, request)
		must(t, err)
		must(t, os.WriteFile(n.records.file("s1"), []byte(`{"version":1,"sand`), 0o600))
		if restart {
			n.Close()
			n = openNetwork(t, config)
		}
		if err := n.Detach(t.Context(), "s1", netns, nil); err == nil || !strings.Contains(err.Error(), "s1.json") {
			t.Errorf("Detach = %v, want an error that names the file", err)
		}
		must(t, n.Detach(t.Context(), "s1", netns, nil))
		_, err = n.Attach(t.Context(), "s2", newNetNS(t), request)
		must(t, err)
		must(t, n.Detach(t.Context(), "s2", "", nil))
		wantClean(t, n)
		n.Close()
	}
}

func TestUnreadableEmbeddedRecordCutsNobodyOff(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	config := embeddedConfig(t)
	n := openNetwork(t, config)
	netns := newNetNS(t)
	_, err := n.Attach(t.Context(), "s1", netns, sandboxConfig())
	must(t, err)
	link := n.embedded.Held("s1").Link
	must(t, os.WriteFile(n.records.file("s1"), []byte(`{"version":1,"sand`), 0o600))
	n.Close()
	n = openNetwork(t, config)
	must(t, n.Retain(t.Context(), []string{"s1"}))
	if _, err := netlink.LinkByName(link); err != nil {
		t.Errorf("link of a sandbox that lives: %v", err)
	}
	if err := n.Detach(t.Context(), "s1", netns, nil); err == nil {
		t.Error("Detach tells nothing of the record")
	}
	if _, err := netlink.LinkByName(link); err == nil {
		t.Error("the link is there after Detach")
	}
	wantClean(t, n)
}

// A record that cannot be written is what a full disk makes.
func TestEmbeddedAttachWithoutARecordLeavesNothing(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	n := openNetwork(t, embeddedConfig(t))
	must(t, os.RemoveAll(n.records.path))
	request := sandboxConfig()
	request.PortMappings = []*runtime.PortMapping{{HostPort: 18080, ContainerPort: 80}}
	if _, err := n.Attach(t.Context(), "s1", newNetNS(t), request); err == nil || !strings.Contains(err.Error(), "record") {
		t.Errorf("Attach = %v, want an error about the record", err)
	}
	if n.embedded.Held("s1") != nil {
		t.Error("addresses are held")
	}
	must(t, os.Mkdir(n.records.path, 0o700))
	_, err := n.Attach(t.Context(), "s2", newNetNS(t), request)
	must(t, err)
	must(t, n.Detach(t.Context(), "s2", "", nil))
	wantClean(t, n)
}

func TestEmbeddedAttachOfBadRequests(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	n := openNetwork(t, embeddedConfig(t))
	for name, change := range map[string]func(*runtime.PodSandboxConfig){
		"port": func(c *runtime.PodSandboxConfig) {
			c.PortMappings = []*runtime.PortMapping{{HostPort: 70000, ContainerPort: 80}}
		},
		"bandwidth": func(c *runtime.PodSandboxConfig) { c.Annotations = map[string]string{ingressBandwidth: "much"} },
	} {
		config := sandboxConfig()
		change(config)
		if _, err := n.Attach(t.Context(), "s1", newNetNS(t), config); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: Attach = %v, want InvalidArgument", name, err)
		}
	}
	if _, err := n.Attach(t.Context(), "s2", "/nowhere", sandboxConfig()); err == nil {
		t.Error("Attach without a namespace worked")
	}
	must(t, n.Detach(t.Context(), "s2", "", nil))
	if ids := n.recorded(t); len(ids) > 0 {
		t.Errorf("records are left: %v", ids)
	}
	wantClean(t, n)
}

// earlierNetwork is the configuration by which the embedded network ran plugins.
func earlierNetwork(c Config) string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":"gantry-default","loadOnlyInlinedPlugins":true,"plugins":[
		{"type":"bridge","bridge":%q,"isGateway":true,"hairpinMode":true,"ipam":{"type":"host-local","dataDir":%q,
			"ranges":[[{"subnet":%q}]],"routes":[{"dst":"0.0.0.0/0"}]}},
		{"type":"portmap","snat":true,"capabilities":{"portMappings":true}}]}`,
		c.EmbeddedBridge, filepath.Join(c.CacheDir, "ipam"), c.EmbeddedSubnet)
}

// TestSandboxesOfPluginsOutliveAnUpgrade attaches as the version before did and goes on with this one.
func TestSandboxesOfPluginsOutliveAnUpgrade(t *testing.T) {
	binDir := realPlugins(t)
	if !ownNetwork(t) {
		return
	}
	config := embeddedConfig(t)
	config.BinDirs = []string{binDir}
	config.EmbeddedSubnet = "10.231.7.0/29"
	before := config
	before.Embedded = false
	must(t, os.WriteFile(filepath.Join(before.ConfDir, "10.conflist"), []byte(earlierNetwork(config)), 0o600))
	old := openNetwork(t, before)
	request := sandboxConfig()
	request.PortMappings = []*runtime.PortMapping{{HostPort: 18080, ContainerPort: 80}}
	oldNS := newNetNS(t)
	oldIPs, err := old.Attach(t.Context(), "old", oldNS, request)
	must(t, err)
	serveHTTP(t, oldNS, ":80", "hello from the old one")
	old.Close()

	n := openNetwork(t, config)
	must(t, n.Retain(t.Context(), []string{"old"}))
	newNS := newNetNS(t)
	newIPs, err := n.Attach(t.Context(), "new", newNS, sandboxConfig())
	must(t, err)
	serveHTTP(t, newNS, ":80", "hello from the new one")
	if newIPs[0] == oldIPs[0] {
		t.Errorf("both have address %s", newIPs[0])
	}
	for _, from := range []struct{ name, netns, address, want string }{
		{"the new one to the old", newNS, oldIPs[0] + ":80", "hello from the old one"},
		{"the old one to the new", oldNS, newIPs[0] + ":80", "hello from the new one"},
		{"the host to the old", "", oldIPs[0] + ":80", "hello from the old one"},
		{"the host to the old by host port", "", "127.0.0.1:18080", "hello from the old one"},
		{"the host to the new", "", newIPs[0] + ":80", "hello from the new one"},
	} {
		if body, err := get(from.netns, from.address); err != nil || body != from.want {
			t.Errorf("GET from %s = %q, %v", from.name, body, err)
		}
	}
	newOutside(t)
	if body, err := get(oldNS, "10.231.8.2:80"); err != nil || body != "10.231.8.1" {
		t.Errorf("outside sees the old one as %q, %v; want the host's address", body, err)
	}
	must(t, n.Detach(t.Context(), "old", oldNS, nil))
	must(t, n.Detach(t.Context(), "new", newNS, nil))
	must(t, n.Retain(t.Context(), nil))
	if _, err := os.Stat(n.config.hostLocalDir()); !os.IsNotExist(err) {
		t.Errorf("the addresses of the plugin are left: %v", err)
	}
	must(t, n.Cleanup(t.Context()))
}

// A firewall that drops what is forwarded is not overruled; the rules that docs/network.md names let sandboxes pass.
func TestFirewallThatDropsIsObeyedAndCanBeOpened(t *testing.T) {
	if _, err := exec.LookPath("iptables"); err != nil {
		t.Skipf("needs iptables: %v", err)
	}
	if !ownNetwork(t) {
		return
	}
	iptables := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "iptables", args...).CombinedOutput(); err != nil {
			t.Fatalf("iptables %v: %v\n%s", args, err, out)
		}
	}
	n := openNetwork(t, embeddedConfig(t))
	netns := newNetNS(t)
	request := sandboxConfig()
	request.PortMappings = []*runtime.PortMapping{{HostPort: 18080, ContainerPort: 80}}
	_, err := n.Attach(t.Context(), "s1", netns, request)
	must(t, err)
	serveHTTP(t, netns, ":80", "hello")
	outside := newOutside(t)
	check := func(open bool) {
		t.Helper()
		if _, err := get(netns, "10.231.8.2:80"); (err == nil) != open {
			t.Errorf("from the sandbox to outside: %v, want it open: %v", err, open)
		}
		if _, err := get(outside, "10.231.8.1:18080"); (err == nil) != open {
			t.Errorf("from outside by host port: %v, want it open: %v", err, open)
		}
	}
	check(true)
	iptables("-P", "FORWARD", "DROP")
	check(false)
	iptables("-I", "FORWARD", "-i", "gy+", "-j", "ACCEPT")
	iptables("-I", "FORWARD", "-o", "gy+", "-j", "ACCEPT")
	check(true)
	must(t, n.Detach(t.Context(), "s1", netns, nil))
}
