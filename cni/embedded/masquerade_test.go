package embedded

import (
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// world makes a network namespace behind a link, with addresses that are in no range of the sandboxes, and answers
// every TCP connection to port 80 of them with the address that it sees.
func world(t *testing.T, addresses ...string) {
	t.Helper()
	netns := newNetNS(t)
	near := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "world0"}, PeerName: "world1"}
	must(t, netlink.LinkAdd(near))
	t.Cleanup(func() { _ = netlink.LinkDel(near) })
	far, err := netlink.LinkByName("world1")
	must(t, err)
	fd, err := os.Open(netns)
	must(t, err)
	defer fd.Close()
	must(t, netlink.LinkSetNsFd(far, int(fd.Fd())))
	must(t, configure("world0", "203.0.113.1/24", "2001:db8:113::1/64"))
	inNetNS(t, netns, func() error {
		if err := configure("world1", append(addresses, "203.0.113.2/24", "2001:db8:113::2/64")...); err != nil {
			return err
		}
		for _, via := range []string{"203.0.113.1", "2001:db8:113::1"} {
			if err := netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(via)}); err != nil {
				return err
			}
		}
		for _, network := range []string{"tcp4", "tcp6"} {
			listener, err := net.Listen(network, ":80")
			if err != nil {
				return err
			}
			t.Cleanup(func() { listener.Close() })
			go tellAddress(listener)
		}
		return nil
	})
	for _, a := range addresses {
		prefix := netip.MustParsePrefix(a)
		via := net.ParseIP("203.0.113.2")
		if prefix.Addr().Is6() {
			via = net.ParseIP("2001:db8:113::2")
		}
		must(t, netlink.RouteAdd(&netlink.Route{Gw: via, Dst: &net.IPNet{
			IP: prefix.Masked().Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen()),
		}}))
	}
}

// tellAddress answers every connection with the address that it comes from.
func tellAddress(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		conn.Write([]byte(conn.RemoteAddr().(*net.TCPAddr).IP.String()))
		conn.Close()
	}
}

// configure gives a link addresses that are good at once, and brings it up.
func configure(name string, addresses ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addresses {
		address, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		address.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(link, address); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

func TestClusterRangesSeeTheSandboxesAddress(t *testing.T) {
	needsRoot(t)
	config := testConfig(t)
	// The first holds the sandboxes' own range, too: a set of ranges takes no overlap.
	config.ClusterRanges = []netip.Prefix{netip.MustParsePrefix("10.231.0.0/16"), netip.MustParsePrefix("fd00:231::/32")}
	n := open(t, config)
	world(t, "10.231.8.1/24", "fd00:231:8::1/64")
	a, netns := attach(t, n, "s1")
	own, own6 := a.Addresses[0].IP.String(), a.Addresses[1].IP.String()
	for server, want := range map[string]string{
		"10.231.8.1": own, "fd00:231:8::1": own6, "203.0.113.2": "203.0.113.1", "2001:db8:113::2": "2001:db8:113::1",
	} {
		inNetNS(t, netns, func() error {
			conn, err := net.DialTimeout("tcp", net.JoinHostPort(server, "80"), time.Minute)
			if err != nil {
				return err
			}
			defer conn.Close()
			seen := make([]byte, 64)
			k, err := conn.Read(seen)
			if got := string(seen[:k]); got != want {
				t.Errorf("%s sees %q (%v), want %s", server, got, err, want)
			}
			return nil
		})
	}
	must(t, n.Detach(t.Context(), a))
}
