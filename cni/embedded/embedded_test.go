package embedded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var somePorts = []Port{port("", 18080), port("127.0.0.1", 18081), {Protocol: "udp", HostPort: 18080, ContainerPort: 53}}

// TestKilledBetweenSteps ends an Attach, and then a Detach, after each of their steps, as a kill of the daemon does, and
// lets another daemon go on by what was written down.
func TestKilledBetweenSteps(t *testing.T) {
	needsRoot(t)
	w := &wiring{n: &Network{}, a: &Attachment{}}
	attachSteps, detachSteps := len(w.steps()), len(w.n.detachSteps(w.a))
	for attached := range attachSteps + 1 {
		for detached := range detachSteps + 1 {
			t.Run(fmt.Sprintf("attach %d detach %d", attached, detached), func(t *testing.T) {
				config := testConfig(t)
				n, err := New(config)
				must(t, err)
				must(t, n.Ensure())
				killedAfter(t, n, config, attached, detached)
			})
		}
	}
}

func killedAfter(t *testing.T, n *Network, config Config, attached, detached int) {
	netns := newNetNS(t)
	a, err := n.Reserve("s1", Request{Ports: somePorts, Limits: Limits{Ingress: 1e6, Egress: 1e6}})
	must(t, err)
	w, err := n.wire(a, netns)
	must(t, err)
	must(t, run(t.Context(), w.steps()[:attached]))
	w.close()
	n, adopted := reopen(t, config, n, a)
	must(t, run(t.Context(), n.detachSteps(adopted[0])[:detached]))
	n, adopted = reopen(t, config, n, adopted[0])
	if b := reserve(t, n, "s2"); b.Addresses[0].IP == a.Addresses[0].IP {
		t.Error("an address was given before its release")
	} else {
		n.Release(b)
	}
	for range 2 {
		must(t, n.Detach(t.Context(), adopted[0]))
	}
	n.Release(adopted[0])
	if len(n.used) != 0 || len(n.held) != 0 || len(n.ports) != 0 {
		t.Errorf("after Release are held: %v %v %v", n.used, n.held, n.ports)
	}
	must(t, unix.Unmount(netns, unix.MNT_DETACH))
	wantNoTraces(t, n)
	must(t, n.Remove())
	n.Close()
}

func TestAttachAgainBeforeTheNamespaceIsGone(t *testing.T) {
	needsRoot(t)
	n := open(t, testConfig(t))
	for range 3 {
		a, _ := attach(t, n, "s1")
		must(t, n.Detach(t.Context(), a))
		n.Release(a)
	}
	wantNoTraces(t, n) // although all three namespaces live
}

func TestSweepTakesWhatBelongsToNobody(t *testing.T) {
	needsRoot(t)
	config := testConfig(t)
	n := open(t, config)
	kept, _ := attach(t, n, "kept")
	attach(t, n, "lost")
	n, _ = reopen(t, config, n, kept)
	defer n.Close()
	must(t, n.Sweep())
	if _, err := netlink.LinkByName(kept.Link); err != nil {
		t.Errorf("link of a sandbox that is attached: %v", err)
	}
	if _, err := netlink.LinkByName(n.linkName("lost")); !errors.As(err, &netlink.LinkNotFoundError{}) {
		t.Errorf("link of nobody: %v", err)
	}
	must(t, n.Detach(t.Context(), kept))
}

func TestFlushedFirewallComesBack(t *testing.T) {
	needsRoot(t)
	n := open(t, testConfig(t))
	first, _ := attach(t, n, "first", port("", 18080))
	must(t, n.removeTable())
	second, _ := attach(t, n, "second", port("", 18081))
	if got := elementsOf(t, n, mapPorts+"4"); len(got) != 2 {
		t.Errorf("ports after an Attach: %x, want both", got)
	}
	must(t, n.removeTable())
	must(t, n.Detach(t.Context(), first))
	if got := elementsOf(t, n, mapPorts+"4"); len(got) != 1 {
		t.Errorf("ports after a Detach: %x, want one", got)
	}
	must(t, n.removeTable())
	n.mu.Lock()
	n.ensured = time.Now().Add(-2 * ensureEvery)
	n.mu.Unlock()
	must(t, n.Ensure())
	if got := elementsOf(t, n, mapPorts+"4"); len(got) != 1 {
		t.Errorf("ports after Ensure: %x, want one", got)
	}
	must(t, n.Detach(t.Context(), second))
}

// What is left in the table from a sandbox that is gone does not keep another from its host port.
func TestHostPortOfNobodyIsTakenOver(t *testing.T) {
	needsRoot(t)
	n := open(t, testConfig(t))
	gone, err := n.Reserve("gone", Request{Ports: somePorts})
	must(t, err)
	must(t, n.rebuild())
	n.Release(gone)
	a, _ := attach(t, n, "s1", somePorts...)
	if a.Addresses[0].IP == gone.Addresses[0].IP {
		t.Fatal("the test needs two addresses")
	}
	keys := elementsOf(t, n, setHairpins+"4")
	if len(keys) != 1 || !slices.Equal(keys[0][:4], a.Addresses[0].IP.AsSlice()) {
		t.Errorf("host ports lead to %x, want %s", keys, a.Addresses[0].IP)
	}
	must(t, n.Detach(t.Context(), a))
	n.Release(a)
	wantNoTraces(t, n)
}

func TestThousandsOfHostPorts(t *testing.T) {
	needsRoot(t)
	config := testConfig(t)
	n := open(t, config)
	var ports []Port
	for i := range 5000 {
		ports = append(ports, port("", uint16(10000+i)))
	}
	a, _ := attach(t, n, "s1", ports...)
	n, adopted := reopen(t, config, n, a) // makes the table anew
	defer n.Close()
	if got := elementsOf(t, n, mapPorts+"6"); len(got) != len(ports) {
		t.Errorf("%d ports are mapped, want %d", len(got), len(ports))
	}
	must(t, n.Detach(t.Context(), adopted[0]))
	if got := elementsOf(t, n, mapPorts+"6"); len(got) != 0 {
		t.Errorf("%d ports are mapped after Detach", len(got))
	}
}

func TestLimitsAreThoseOfTheAnnotations(t *testing.T) {
	needsRoot(t)
	n := open(t, testConfig(t))
	netns := newNetNS(t)
	for i, rate := range []int64{1e3, 1e6, 1e9, 1e12, 1e15 / 2} {
		a, err := n.Reserve(fmt.Sprint("s", i), Request{Limits: Limits{Ingress: rate, Egress: 2 * rate}})
		must(t, err)
		if i > 0 {
			netns = newNetNS(t)
		}
		must(t, n.Attach(t.Context(), a, netns))
		wantRate(t, a.Link, rate)
		inNetNS(t, netns, func() error {
			wantRate(t, eth0, 2*rate)
			return nil
		})
		must(t, n.Detach(t.Context(), a))
	}
}

func wantRate(t *testing.T, name string, bits int64) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Error(err)
		return
	}
	qdiscs, err := netlink.QdiscList(link)
	if err != nil || len(qdiscs) != 1 {
		t.Errorf("qdiscs of %s are %v, %v", name, qdiscs, err)
		return
	}
	if tbf, ok := qdiscs[0].(*netlink.Tbf); !ok || tbf.Rate != uint64(bits/8) {
		t.Errorf("%s has %v, want a token bucket of %d bits/s", name, qdiscs[0], bits)
	}
}

// A client that sends all the time keeps its flow, and that led to nobody before the sandbox came.
func TestUDPFlowsFindANewSandbox(t *testing.T) {
	needsRoot(t)
	n := open(t, testConfig(t))
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
	client, err := net.Dial("udp", "10.231.7.1:18080")
	must(t, err)
	defer client.Close()
	_, err = client.Write([]byte("anybody?"))
	must(t, err)
	for i := range 2 { // the second one after the first
		a, netns := attach(t, n, fmt.Sprint("s", i), somePorts[2])
		var server net.PacketConn
		inNetNS(t, netns, func() (err error) {
			server, err = net.ListenPacket("udp", ":53")
			return err
		})
		from, err := hear(client, server)
		if err != nil {
			t.Errorf("sandbox %d got nothing: %v", i, err)
		} else if _, err := server.WriteTo([]byte("hello too"), from); err != nil {
			t.Error(err)
		}
		server.Close()
		must(t, n.Detach(t.Context(), a))
		n.Release(a)
	}
}

// hear sends until the server gets something: the kernel drops what is sent before it has seen that both ends of a new
// pair are up.
func hear(client net.Conn, server net.PacketConn) (from net.Addr, err error) {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		_, _ = client.Write([]byte("hello")) // the first write may tell that nobody was there before
		if err = server.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			return nil, err
		}
		if _, from, err = server.ReadFrom(make([]byte, 100)); err == nil {
			return from, nil
		}
	}
	return nil, err
}

// SCTP needs no server here: that the kernel maps the port is seen by what arrives.
func TestSCTPIsMapped(t *testing.T) {
	needsRoot(t)
	n := open(t, testConfig(t))
	a, _ := attach(t, n, "s1", Port{Protocol: "sctp", HostPort: 3868, ContainerPort: 3868})
	want := []byte{unix.IPPROTO_SCTP, 0, 0, 0, 0x0f, 0x1c, 0, 0}
	for _, set := range []string{mapPorts + "4", mapPorts + "6"} {
		if got := elementsOf(t, n, set); len(got) != 1 || !slices.Equal(got[0], want) {
			t.Errorf("%s has %x, want %x", set, got, want)
		}
	}
	must(t, n.Detach(t.Context(), a))
}

func TestAttachEndsWithItsContext(t *testing.T) {
	needsRoot(t)
	n := open(t, testConfig(t))
	a := reserve(t, n, "s1")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.Attach(ctx, a, newNetNS(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("Attach = %v", err)
	}
	must(t, n.Detach(t.Context(), a))
}

func TestTwoDaemonsDoNotShareANetwork(t *testing.T) {
	needsRoot(t)
	config := testConfig(t)
	first := open(t, config)
	second, err := New(config)
	must(t, err)
	defer second.Close()
	if err := second.Ensure(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Ensure of a second daemon = %v", err)
	}
	a, _ := attach(t, first, "s1")
	must(t, second.Sweep())
	if _, err := netlink.LinkByName(a.Link); err != nil {
		t.Errorf("a daemon swept what belongs to another: %v", err)
	}
	must(t, first.Detach(t.Context(), a))
	first.Close()
	must(t, second.Ensure())
	second.Close()
}

// TestADaemonSweepsWhatIsItsOwn has a second daemon run with the same bridge while the first is down.
func TestADaemonSweepsWhatIsItsOwn(t *testing.T) {
	needsRoot(t)
	first := open(t, testConfig(t))
	a, _ := attach(t, first, "s1", port("", 18080))
	first.Close()
	second, err := New(testConfig(t))
	must(t, err)
	must(t, second.Ensure())
	must(t, second.Sweep())
	second.Close()
	if _, err := netlink.LinkByName(a.Link); err != nil {
		t.Errorf("a daemon swept what belongs to another: %v", err)
	}
	must(t, first.Ensure())
	must(t, first.Detach(t.Context(), a))
}

// TestANetworkIsOwnedInItsNamespace: who else sees which files does not matter, nor does a flushed firewall.
func TestANetworkIsOwnedInItsNamespace(t *testing.T) {
	needsRoot(t)
	networks := make([]*Network, 3)
	for i := range networks {
		n, err := New(testConfig(t))
		must(t, err)
		defer n.Close()
		networks[i] = n
	}
	owner, elsewhere, other := networks[0], networks[1], networks[2]
	must(t, owner.own())
	inNetNS(t, newNetNS(t), elsewhere.own) // a network of the same name, and other links
	must(t, elsewhere.transact(func(conn *nftables.Conn) error { conn.FlushRuleset(); return nil }))
	if err := withOtherRun(other.own); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("own with another /run = %v", err)
	}
	owner.Close()
	must(t, withOtherRun(other.own))
}

// withOtherRun calls do in a mount namespace with a /run of its own.
func withOtherRun(do func() error) error {
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends in the new namespace
		err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
		}
		if err == nil {
			err = do()
		}
		errs <- err
	}()
	return <-errs
}

// TestMoreSandboxesThanABridgeHasPorts is about the limit of 1,023.
func TestMoreSandboxesThanABridgeHasPorts(t *testing.T) {
	needsRoot(t)
	config := testConfig(t)
	config.Subnet = netip.MustParsePrefix("10.231.0.0/16")
	n := open(t, config)
	const count = 1100
	var last *Attachment
	for i := range count {
		last, _ = attach(t, n, fmt.Sprintf("%09d", i))
	}
	if len(n.held) != count {
		t.Errorf("%d are attached, want %d", len(n.held), count)
	}
	for _, a := range n.held {
		must(t, n.Detach(t.Context(), a))
	}
	t.Logf("the last had %v", last.Addresses)
}

// The host learns from routers where it did before, and never from a sandbox, whatever new interfaces do.
func TestHostLearnsNoRoutesFromSandboxes(t *testing.T) {
	needsRoot(t)
	if !ipv6Enabled() {
		t.Skip("needs IPv6 in the kernel")
	}
	parameter := func(names ...string) string {
		t.Helper()
		value, err := readSysctl(append([]string{"ipv6", "conf"}, names...)...)
		must(t, err)
		return value
	}
	must(t, sysctl("0", "ipv6", "conf", "all", "forwarding"))
	for _, name := range []string{"uplink", "other", "managed"} {
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "-peer"}))
		link, err := netlink.LinkByName(name)
		must(t, err)
		defer netlink.LinkDel(link)
		must(t, netlink.LinkSetUp(link))
		if name == "managed" { // as systemd-networkd and NetworkManager do, which learn by themselves
			must(t, sysctl("0", "ipv6", "conf", name, "accept_ra"))
		}
		if name != "other" {
			prefix := map[string]string{"uplink": "2001:db8::/64", "managed": "2001:db8:1::/64"}[name]
			must(t, netlink.RouteAdd(&netlink.Route{
				LinkIndex: link.Attrs().Index, Dst: network(netip.MustParsePrefix(prefix)), Protocol: unix.RTPROT_RA,
			}))
		}
	}
	before := parameter("default", "accept_ra")
	n := open(t, testConfig(t))
	a, _ := attach(t, n, "s1")
	got := []string{
		parameter("all", "forwarding"), parameter("uplink", "accept_ra"), parameter("other", "accept_ra"),
		parameter("managed", "accept_ra"), parameter("default", "accept_ra"), parameter(a.Link, "accept_ra"),
	}
	if want := []string{"1", "2", before, "0", before, "0"}; !slices.Equal(got, want) {
		t.Errorf("forwarding, and accept_ra of uplink, other, managed, default and the sandbox's link are %q, want %q", got, want)
	}
	must(t, n.Detach(t.Context(), a))
}

// TestTheHostsEndHasNoLinkLocalAddress looks also at the mode, as the kernel would make the address a moment later.
func TestTheHostsEndHasNoLinkLocalAddress(t *testing.T) {
	needsRoot(t)
	if _, err := readSysctl("ipv6", "conf", "all", "forwarding"); err != nil {
		t.Skip("the kernel has no IPv6:", err)
	}
	n := open(t, testConfig(t))
	a, _ := attach(t, n, "s1")
	link, err := netlink.LinkByName(a.Link)
	must(t, err)
	addresses, err := os.ReadFile("/proc/net/if_inet6") // which other links do not interrupt, as they do a list by netlink
	must(t, err)
	mode, err := readSysctl("ipv6", "conf", a.Link, "addr_gen_mode")
	must(t, err)
	if strings.Contains(string(addresses), " "+a.Link+"\n") || mode != "1" || link.Attrs().Flags&net.FlagUp == 0 {
		t.Errorf("addresses:\n%saddr_gen_mode %s, flags %v", addresses, mode, link.Attrs().Flags)
	}
	must(t, n.Detach(t.Context(), a))
}
