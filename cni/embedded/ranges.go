package embedded

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// stateVersion is what this program writes.
const stateVersion = 1

// stateFile is what StateFile holds.
type stateFile struct {
	Version int `json:"version"`
	// ULA is the node's own IPv6 range; chosen once, so that addresses mean the same after a restart.
	ULA netip.Prefix `json:"ula"`
	// PodCIDRs are the ranges that the kubelet gave, at most one for each family.
	PodCIDRs []netip.Prefix `json:"podCIDRs,omitempty"`
}

// loadRanges reads StateFile and decides on the ranges.
func (n *Network) loadRanges() error {
	b, err := os.ReadFile(n.config.StateFile)
	if err == nil {
		err = json.Unmarshal(b, &n.state)
	}
	if err == nil && n.state.Version != stateVersion {
		err = fmt.Errorf("version is %d, expected %d", n.state.Version, stateVersion)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read ranges of the embedded network %s: %w", n.config.StateFile, err)
	}
	if n.config.AutoSubnet6 && !n.state.ULA.IsValid() {
		n.state.ULA = randomULA()
		if err := n.saveState(n.state); err != nil {
			return err
		}
	}
	n.ranges, n.changed = n.wanted(n.state), true
	return nil
}

// wanted lists the ranges to give addresses from, IPv4 first.
func (n *Network) wanted(state stateFile) []netip.Prefix {
	ranges := []netip.Prefix{n.config.Subnet}
	switch {
	case n.config.Subnet6.IsValid():
		ranges = append(ranges, n.config.Subnet6)
	case n.config.AutoSubnet6 && ipv6Enabled():
		ranges = append(ranges, state.ULA)
	}
	for _, cidr := range state.PodCIDRs {
		same := func(r netip.Prefix) bool { return r.Addr().Is4() == cidr.Addr().Is4() }
		if i := slices.IndexFunc(ranges, same); i >= 0 {
			ranges[i] = cidr
		} else {
			ranges = append(ranges, cidr)
		}
	}
	return ranges
}

// Placed returns an error as long as sandboxes would get addresses outside of the cluster's ranges, by which nobody on
// other nodes reaches them: the kubelet has not told the node's range yet.
func (n *Network) Placed() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range n.ranges {
		var inside, of bool
		for _, c := range n.config.ClusterRanges {
			inside = inside || c.Overlaps(r) && c.Bits() <= r.Bits()
			of = of || c.Addr().Is4() == r.Addr().Is4()
		}
		if of && !inside {
			return fmt.Errorf("the kubelet has not told the node's range of pod addresses: %s is not in the cluster's", r)
		}
	}
	return nil
}

// ipv6Enabled tells whether interfaces that are made now get IPv6.
func ipv6Enabled() bool {
	for _, conf := range []string{"all", "default"} {
		if disabled, err := readSysctl("ipv6", "conf", conf, "disable_ipv6"); err != nil || disabled != "0" {
			return false
		}
	}
	return true
}

// randomULA makes a unique local range, RFC 4193: fd, 40 random bits, and subnet 0.
func randomULA() netip.Prefix {
	ip := [16]byte{0xfd}
	_, _ = rand.Read(ip[1:6]) // never fails
	return netip.PrefixFrom(netip.AddrFrom16(ip), 64)
}

// SetPodCIDR makes the network give addresses from the node's range, as the kubelet tells it: one range, or one of each
// family with a comma between. It lasts until another is told. Sandboxes keep the addresses that they have. Nothing is
// no change, and a family that is not told keeps its range.
//
// Errors: errdefs.ErrInvalidArgument for what is no such text; that of changing the host's routes and firewall.
func (n *Network) SetPodCIDR(text string) error {
	if !n.config.Enabled || text == "" {
		return nil
	}
	cidrs, err := parseCIDRs(text)
	if err != nil {
		return err
	}
	n.mu.Lock()
	old := n.state.PodCIDRs
	for _, cidr := range old {
		if cidrs[0].Addr().Is4() != cidr.Addr().Is4() && len(cidrs) == 1 {
			cidrs = append(cidrs, cidr)
		}
	}
	state := n.state
	state.PodCIDRs = cidrs
	n.mu.Unlock()
	if slices.Equal(old, cidrs) {
		return nil // the kubelet tells it again and again
	}
	if err := n.saveState(state); err != nil {
		return err
	}
	n.mu.Lock()
	before := n.ranges
	n.state, n.ranges, n.changed = state, n.wanted(state), true
	after := n.ranges
	n.mu.Unlock()
	for _, r := range before {
		if !slices.Contains(after, r) {
			// It may be another node's from now on. The routes to the sandboxes that have addresses of it stay.
			if err := netlink.RouteDel(unreachable(r)); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("delete unreachable route for %s: %w", r, err)
			}
		}
	}
	return n.Ensure()
}

func parseCIDRs(text string) ([]netip.Prefix, error) {
	bad := func(expected string) error {
		return fmt.Errorf("network_config.pod_cidr is %q, expected %s: %w", text, expected, errdefs.ErrInvalidArgument)
	}
	var cidrs []netip.Prefix
	for part := range strings.SplitSeq(text, ",") {
		cidr, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil || cidr.Addr().Is4In6() || cidr.Addr().BitLen()-cidr.Bits() < 2 {
			return nil, bad("a range such as 10.244.1.0/24, or two with a comma between")
		}
		cidrs = append(cidrs, cidr.Masked())
	}
	if len(cidrs) > 2 || len(cidrs) == 2 && cidrs[0].Addr().Is4() == cidrs[1].Addr().Is4() {
		return nil, bad("at most one range of each family")
	}
	return cidrs, nil
}

// saveState writes StateFile. Two calls at once may each win: the kubelet makes one at a time.
func (n *Network) saveState(state stateFile) error {
	state.Version = stateVersion
	b, err := json.Marshal(state)
	if err != nil {
		return err
	}
	temp := n.config.StateFile + ".tmp"
	if err := os.WriteFile(temp, b, 0o600); err != nil {
		return fmt.Errorf("write ranges of the embedded network: %w", err)
	}
	if err := os.Rename(temp, n.config.StateFile); err != nil {
		return fmt.Errorf("write ranges of the embedded network: %w", err)
	}
	return nil
}
