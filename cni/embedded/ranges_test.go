package embedded

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
)

func prefixes(texts ...string) (ps []netip.Prefix) {
	for _, text := range texts {
		ps = append(ps, netip.MustParsePrefix(text))
	}
	return ps
}

func TestPodCIDRReplacesTheRange(t *testing.T) {
	needsRoot(t)
	config := testConfig(t)
	n := open(t, config)
	old, _ := attach(t, n, "old", port("", 18080))
	for _, cidr := range []string{"10.244.3.0/24", "10.244.3.0/24", ""} {
		must(t, n.SetPodCIDR(cidr))
	}
	young, _ := attach(t, n, "young")
	if got := young.Addresses[0].IP.String() + " " + young.Addresses[1].IP.String(); got != "10.244.3.2 fd00:231:7::3" {
		t.Errorf("addresses are %s", got)
	}
	n, adopted := reopen(t, config, n, old, young)
	defer n.Close()
	if want := prefixes("10.244.3.0/24", "fd00:231:7::/64"); !slices.Equal(n.ranges, want) {
		t.Errorf("ranges after a restart are %v, want %v", n.ranges, want)
	}
	var found []string
	for _, key := range elementsOf(t, n, setRanges+"4") {
		found = append(found, addrOf(key).String())
	}
	slices.Sort(found)
	if want := []string{"10.231.7.0", "10.231.8.0", "10.244.3.0", "10.244.4.0"}; !slices.Equal(found, want) {
		t.Errorf("ranges in the table are %v, want both: %v", found, want)
	}
	must(t, n.SetPodCIDR("10.244.0.0/16,fd00:244::/48")) // the one before lies in it
	if want := prefixes("10.244.0.0/16", "fd00:244::/48"); !slices.Equal(n.ranges, want) {
		t.Errorf("ranges are %v, want %v", n.ranges, want)
	}
	wantGateways(t, n, "10.231.7.1", "10.244.0.1", "10.244.3.1", "fd00:231:7::1", "fd00:244::1") // some of sandboxes of before
	for _, a := range adopted {
		must(t, n.Detach(t.Context(), a))
		n.Release(a)
	}
	n.mu.Lock()
	n.ensured = time.Time{}
	n.mu.Unlock()
	must(t, n.Ensure())
	wantGateways(t, n, "10.244.0.1", "fd00:244::1")
	must(t, n.Remove())
}

// wantGateways compares the addresses of the bridge, but for its link-local one.
func wantGateways(t *testing.T, n *Network, want ...string) {
	t.Helper()
	bridge, err := netlink.LinkByName(n.config.Bridge)
	must(t, err)
	addresses, err := netlink.AddrList(bridge, netlink.FAMILY_ALL)
	for try := 0; errors.Is(err, netlink.ErrDumpInterrupted) && try < 100; try++ { // something changed meanwhile
		addresses, err = netlink.AddrList(bridge, netlink.FAMILY_ALL)
	}
	must(t, err)
	var found []string
	for _, a := range addresses {
		if !a.IP.IsLinkLocalUnicast() {
			found = append(found, a.IP.String())
		}
	}
	slices.Sort(found)
	if !slices.Equal(found, want) {
		t.Errorf("the bridge has %v, want %v", found, want)
	}
}

func TestPlacedWaitsForTheRangeOfTheNode(t *testing.T) {
	ranges := func(texts ...string) (list []netip.Prefix) {
		for _, text := range texts {
			list = append(list, netip.MustParsePrefix(text))
		}
		return list
	}
	for name, test := range map[string]struct {
		own, cluster []netip.Prefix
		placed       bool
	}{
		"no cluster":        {ranges("10.85.0.0/16", "fd00:1::/64"), nil, true},
		"before it is told": {ranges("10.85.0.0/16"), ranges("10.244.0.0/16"), false},
		"told":              {ranges("10.244.1.0/24"), ranges("10.244.0.0/16"), true},
		"one of several":    {ranges("10.244.1.0/24"), ranges("10.4.0.0/16", "10.244.0.0/16"), true},
		"wider":             {ranges("10.0.0.0/8"), ranges("10.244.0.0/16"), false},
		"other family":      {ranges("10.244.1.0/24", "fd00:1::/64"), ranges("10.244.0.0/16"), true},
		"one of two":        {ranges("10.244.1.0/24", "fd00:1::/64"), ranges("10.244.0.0/16", "fd00:244::/48"), false},
	} {
		n := &Network{config: Config{ClusterRanges: test.cluster}, ranges: test.own}
		if err := n.Placed(); (err == nil) != test.placed {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPodCIDRThatIsNone(t *testing.T) {
	n := offline(t, "10.0.0.0/24")
	for _, text := range []string{
		"x", "10.0.0.0", "10.0.0.0/24,", "10.0.0.0/24,10.1.0.0/24", "10.0.0.0/24,fd00::/64,fd01::/64", "10.0.0.0/31",
		"::ffff:10.0.0.0/100",
	} {
		err := n.SetPodCIDR(text)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "pod_cidr is \""+text+"\", expected") {
			t.Errorf("SetPodCIDR(%q) = %v", text, err)
		}
	}
	if want := prefixes("10.0.0.0/24"); !slices.Equal(n.ranges, want) {
		t.Errorf("ranges are %v", n.ranges)
	}
}

func TestOwnIPv6RangeStays(t *testing.T) {
	config := testConfig(t)
	config.AutoSubnet6, config.Subnet6 = true, netip.Prefix{}
	var seen []netip.Prefix
	for range 2 {
		n, err := New(config)
		must(t, err)
		seen = append(seen, n.state.ULA)
		if ula := n.state.ULA; ula.Bits() != 64 || ula.Addr().As16()[0] != 0xfd || ula.Masked() != ula {
			t.Errorf("range is %v, want a /64 below fd00::/8", ula)
		}
		if got := len(n.ranges) == 2 && n.ranges[1] == n.state.ULA; got != ipv6Enabled() {
			t.Errorf("ranges are %v, and the kernel has IPv6: %v", n.ranges, ipv6Enabled())
		}
	}
	if seen[0] != seen[1] {
		t.Errorf("after a restart the range is another: %v", seen)
	}
	must(t, os.WriteFile(config.StateFile, []byte("{"), 0o600))
	if _, err := New(config); err == nil || !strings.Contains(err.Error(), config.StateFile) {
		t.Errorf("New with a torn file = %v, want an error that names it", err)
	}
}

func TestRangesInTheSetDoNotOverlap(t *testing.T) {
	got := disjoint(prefixes("10.1.2.0/24", "10.1.0.0/16", "10.2.0.0/16", "10.1.0.0/16", "fd00::/64"))
	if want := prefixes("10.1.0.0/16", "10.2.0.0/16", "fd00::/64"); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for r, want := range map[string]string{
		"10.1.2.0/24": "10.1.3.0", "10.1.2.252/30": "10.1.3.0", "fd00::/64": "fd00:0:0:1::",
	} {
		if got := after(netip.MustParsePrefix(r)).String(); got != want {
			t.Errorf("after(%s) = %s, want %s", r, got, want)
		}
	}
}
