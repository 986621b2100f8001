package embedded

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// unreachableMetric is that of the route which ends what is sent to an address that no sandbox has: else it would go
// to the node's router, and come back from there. It yields to every other route, such as that of an earlier bridge.
const unreachableMetric = 1 << 20

// Ensure makes what all sandboxes share, or makes sure of it now and then: the gateway's addresses, forwarding and the
// nftables table. Call it before each Attach. Without an Attach that uses it, it costs nothing to call.
func (n *Network) Ensure() error {
	if fresh, _ := n.fresh(); fresh || !n.config.Enabled {
		return nil
	}
	n.ensuring.Lock()
	defer n.ensuring.Unlock()
	fresh, ranges := n.fresh()
	if fresh {
		return nil // who had the lock before made it
	}
	if err := n.own(); err != nil {
		return err
	}
	bridge, err := ensureBridge(n.config.Bridge)
	if err != nil {
		return err
	}
	for _, r := range ranges {
		if err := ensureRange(bridge, r); err != nil {
			return err
		}
	}
	if err := n.dropGateways(bridge); err != nil {
		return err
	}
	if err := n.ensureTable(); err != nil {
		return fmt.Errorf("make nftables table %s: %w", n.config.Bridge, err)
	}
	n.mu.Lock()
	n.ensured = time.Now()
	n.mu.Unlock()
	return nil
}

// fresh reports whether what is shared was made sure of just now, and returns the ranges.
func (n *Network) fresh() (bool, []netip.Prefix) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.changed && time.Since(n.ensured) < ensureEvery, slices.Clone(n.ranges)
}

// ensureBridge finds or makes the interface with the gateway's addresses.
func ensureBridge(name string) (netlink.Link, error) {
	bridge, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		if err = netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err == nil || errors.Is(err, unix.EEXIST) {
			bridge, err = netlink.LinkByName(name)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make bridge %s: %w", name, err)
	}
	if bridge.Type() != "bridge" {
		return nil, fmt.Errorf("interface %s is a %s, expected a bridge or none", name, bridge.Type())
	}
	if bridge.Attrs().Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(bridge); err != nil {
			return nil, fmt.Errorf("bring bridge %s up: %w", name, err)
		}
	}
	// Sandboxes that an earlier version attached to the bridge ask for the others by ARP: the host answers for them.
	return bridge, sysctl("1", "ipv4", "conf", name, "proxy_arp")
}

// ensureRange makes the host the gateway of a range.
func ensureRange(bridge netlink.Link, r netip.Prefix) error {
	ip := gateway(r)
	if err := forward(ip.Is4()); err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: single(ip), Flags: unix.IFA_F_NODAD}
	if err := netlink.AddrAdd(bridge, addr); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add gateway address %s: %w", ip, err)
	}
	if err := netlink.RouteAdd(unreachable(r)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add unreachable route for %s: %w", r, err)
	}
	return nil
}

// dropGateways takes the gateway addresses of ranges from the host that it had before another was told. Not while a
// sandbox has an address of such a range: the host's route to it has the gateway as its source, and would go with it.
func (n *Network) dropGateways(bridge netlink.Link) error {
	found, err := netlink.AddrList(bridge, netlink.FAMILY_ALL)
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil // the next time will do
	}
	if err != nil {
		return fmt.Errorf("list gateway addresses: %w", err)
	}
	n.mu.Lock()
	keep := map[string]bool{}
	for _, r := range n.ranges {
		keep[single(gateway(r)).String()] = true
	}
	for _, a := range n.held {
		for _, address := range a.Addresses {
			keep[single(address.Gateway).String()] = true
		}
	}
	n.mu.Unlock()
	for _, addr := range found {
		// What is no single address is not from here: the link-local one, or that of an earlier bridge.
		if ones, bits := addr.Mask.Size(); ones != bits || keep[addr.IPNet.String()] {
			continue
		}
		if err := netlink.AddrDel(bridge, &addr); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("delete gateway address %s: %w", addr.IPNet, err)
		}
	}
	return nil
}

func unreachable(r netip.Prefix) *netlink.Route {
	return &netlink.Route{Dst: network(r), Type: unix.RTN_UNREACHABLE, Priority: unreachableMetric}
}

// forward makes the host forward packets.
func forward(ipv4 bool) error {
	if ipv4 {
		return sysctl("1", "ipv4", "ip_forward")
	}
	if on, err := readSysctl("ipv6", "conf", "all", "forwarding"); err != nil || on == "1" {
		return err
	}
	if err := keepLearning(); err != nil {
		return err
	}
	return sysctl("1", "ipv6", "conf", "all", "forwarding")
}

// keepLearning lets interfaces on which the kernel learned a route by router advertisement, which may be all that the
// node has, go on: the kernel stops when it begins to forward, unless it is told. Not those that learned none: a router
// on them is not expected. And not those on which a program learns in the kernel's place (systemd-networkd and
// NetworkManager mark their routes the same, and switch the kernel's learning off): then there would be two.
func keepLearning() error {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V6)
	if err != nil {
		return fmt.Errorf("list IPv6 routes: %w", err)
	}
	for _, route := range routes {
		if route.Protocol != unix.RTPROT_RA {
			continue
		}
		link, err := netlink.LinkByIndex(route.LinkIndex)
		if err != nil {
			return fmt.Errorf("find interface of route %s: %w", route, err)
		}
		name := link.Attrs().Name
		if learns, err := readSysctl("ipv6", "conf", name, "accept_ra"); err != nil || learns != "1" {
			if err != nil {
				return err
			}
			continue
		}
		if err := sysctl("2", "ipv6", "conf", name, "accept_ra"); err != nil {
			return err
		}
	}
	return nil
}

// Leftovers lists what is on the host for all sandboxes: the bridge and "nftables table <name>".
func (n *Network) Leftovers() ([]string, error) {
	var found []string
	_, err := netlink.LinkByName(n.config.Bridge)
	if err == nil {
		found = append(found, n.config.Bridge)
	} else if !errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, fmt.Errorf("find bridge %s: %w", n.config.Bridge, err)
	}
	exists, err := n.tableExists(n.config.Bridge)
	if err != nil {
		return nil, err
	}
	if exists {
		found = append(found, "nftables table "+n.config.Bridge)
	}
	return found, nil
}

// Remove takes away what Ensure made, but for the forwarding, and lets another process own the network. Preconditions:
// no sandbox is attached.
func (n *Network) Remove() error {
	n.mu.Lock()
	ranges := slices.Clone(n.ranges)
	n.ensured, n.changed = time.Time{}, true
	n.mu.Unlock()
	if err := n.own(); err != nil {
		return err
	}
	defer n.disown()
	errs := []error{n.Sweep()}
	for _, r := range ranges {
		if err := netlink.RouteDel(unreachable(r)); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("delete unreachable route for %s: %w", r, err))
		}
	}
	bridge, err := netlink.LinkByName(n.config.Bridge)
	if err == nil {
		err = netlink.LinkDel(bridge)
	}
	if err != nil && !errors.As(err, &netlink.LinkNotFoundError{}) {
		errs = append(errs, fmt.Errorf("remove bridge %s: %w", n.config.Bridge, err))
	}
	if err := n.removeTable(); err != nil {
		errs = append(errs, fmt.Errorf("remove nftables table %s: %w", n.config.Bridge, err))
	}
	return errors.Join(errs...)
}
