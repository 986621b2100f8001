package embedded

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"

	mdnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// flow is an entry of the kernel's table: a client's packet to a port of the host that leads to a sandbox.
type flow struct {
	protocol        byte
	client, sandbox string
	port            uint16
}

func (f flow) family() byte { return familyOf(netip.MustParseAddr(f.client)).number }

func (f flow) add(t testing.TB) {
	t.Helper()
	host := "203.0.113.1"
	if f.family() == unix.AF_INET6 {
		host = "2001:db8:113::1"
	}
	ip := func(text string) net.IP { return netip.MustParseAddr(text).AsSlice() }
	entry := &netlink.ConntrackFlow{
		FamilyType: f.family(), TimeOut: 3600,
		Forward: netlink.IPTuple{SrcIP: ip(f.client), DstIP: ip(host), SrcPort: 5000, DstPort: f.port, Protocol: f.protocol},
		Reverse: netlink.IPTuple{SrcIP: ip(f.sandbox), DstIP: ip(f.client), SrcPort: 53, DstPort: 5000, Protocol: f.protocol},
	}
	if f.protocol == unix.IPPROTO_TCP {
		entry.ProtoInfo = &netlink.ProtoInfoTCP{State: nl.TCP_CONNTRACK_ESTABLISHED}
	}
	err := netlink.ConntrackCreate(netlink.ConntrackTable, netlink.InetFamily(f.family()), entry)
	if err != nil {
		t.Fatal(err)
	}
}

// clientsOf lists who of the test's clients has a flow.
func clientsOf(t *testing.T, flows []flow) (clients []string) {
	t.Helper()
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		entries, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		must(t, err)
		for _, e := range entries {
			client := e.Forward.SrcIP.String()
			if slices.ContainsFunc(flows, func(f flow) bool { return f.client == client }) {
				clients = append(clients, client)
			}
		}
	}
	slices.Sort(clients)
	return clients
}

func TestOnlyFlowsOfASandboxAreForgotten(t *testing.T) {
	needsRoot(t)
	const udp, tcp = unix.IPPROTO_UDP, unix.IPPROTO_TCP
	flows := []flow{
		{udp, "198.18.0.1", "10.231.7.9", 18080},
		{udp, "198.18.0.2", "10.231.7.2", 18080},
		{udp, "198.18.0.3", "10.231.7.2", 18081},
		{tcp, "198.18.0.4", "10.231.7.2", 18080},
		{udp, "2001:db8::1", "fd00:231:7::9", 18080},
		{udp, "2001:db8::2", "fd00:231:7::2", 18080},
		{udp, "2001:db8::3", "fd00:231:7::2", 18081},
		{tcp, "2001:db8::4", "fd00:231:7::2", 18080},
	}
	a := &Attachment{
		Addresses: []Address{{IP: netip.MustParseAddr("10.231.7.2")}, {IP: netip.MustParseAddr("fd00:231:7::2")}},
		Ports: []Port{
			{Protocol: "tcp", HostPort: 18081}, {Protocol: "udp", HostPort: 18080}, {Protocol: "udp", HostPort: 18082},
		},
	}
	for led, stay := range map[bool][]string{
		false: {"198.18.0.3", "198.18.0.4", "2001:db8::3", "2001:db8::4"},
		true:  {"198.18.0.1", "198.18.0.3", "198.18.0.4", "2001:db8::1", "2001:db8::3", "2001:db8::4"},
	} {
		must(t, netlink.ConntrackTableFlush(netlink.ConntrackTable))
		for _, f := range flows {
			f.add(t)
		}
		must(t, forgetFlows(a, led))
		if got := clientsOf(t, flows); !slices.Equal(got, stay) {
			t.Errorf("flows that led to the sandbox %v: %q have flows, want %q", led, got, stay)
		}
	}
}

// A Detach may have failed after it took the ports out of the table: the next one finds the flows.
func TestTheNextDetachForgetsFlows(t *testing.T) {
	needsRoot(t)
	n := open(t, testConfig(t))
	a, _ := attach(t, n, "s1", somePorts[2])
	must(t, n.Detach(t.Context(), a))
	left := flow{unix.IPPROTO_UDP, "198.18.0.1", a.Addresses[0].IP.String(), somePorts[2].HostPort}
	left.add(t)
	must(t, n.Detach(t.Context(), a))
	if got := clientsOf(t, []flow{left}); len(got) != 0 {
		t.Errorf("%q still have flows", got)
	}
	n.Release(a)
}

// TestTheKernelFiltersFlows also compares its filter with that for a kernel which has none.
func TestTheKernelFiltersFlows(t *testing.T) {
	needsRoot(t)
	conn, err := mdnetlink.Dial(unix.NETLINK_NETFILTER, nil)
	must(t, err)
	defer conn.Close()
	must(t, netlink.ConntrackTableFlush(netlink.ConntrackTable))
	manyFlows(t, 10)
	flow{unix.IPPROTO_UDP, "198.18.100.1", "10.231.7.2", 18080}.add(t)
	all, err := conn.Execute(nfMessage(listFlows, mdnetlink.Dump, unix.AF_INET, 0, nil))
	must(t, err)
	if len(all) < 11 {
		t.Errorf("the kernel has %d flows, want 11 and more", len(all))
	}
	f := flowFilter{family: unix.AF_INET, port: 18080}
	listed, err := f.list(conn)
	must(t, err)
	if len(listed) != 1 {
		t.Errorf("the kernel lists %d flows to the port, want 1", len(listed))
	}
	matched := slices.DeleteFunc(all, func(m mdnetlink.Message) bool { return !f.matches(m.Data[nl.SizeofNfgenmsg:]) })
	if len(matched) != 1 {
		t.Errorf("%d flows match, want 1", len(matched))
	}
}

// manyFlows puts that many UDP flows of others into the kernel's table.
func manyFlows(t testing.TB, count int) {
	t.Helper()
	for i := range count {
		client := binary.BigEndian.AppendUint32(nil, 0xc6120000+uint32(i)) // 198.18.0.0/15
		flow{unix.IPPROTO_UDP, net.IP(client).String(), "203.0.113.2", 53}.add(t)
	}
}

// BenchmarkForgetFlows is what a UDP host port costs on a node with 50,000 flows of others, when it is opened and closed.
func BenchmarkForgetFlows(b *testing.B) {
	manyFlows(b, 50_000)
	a := &Attachment{
		Addresses: []Address{{IP: netip.MustParseAddr("10.231.7.2")}},
		Ports:     []Port{{Protocol: "udp", HostPort: 18080, ContainerPort: 53}},
	}
	for name, led := range map[string]bool{"open": false, "close": true} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := forgetFlows(a, led); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
