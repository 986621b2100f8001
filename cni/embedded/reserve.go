package embedded

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containerd/errdefs"
)

// Request is what a sandbox wants of the network besides addresses.
type Request struct {
	Ports  []Port
	Limits Limits
	// NoIPv6 is for a sandbox whose namespace has IPv6 disabled.
	NoIPv6 bool
}

// Reserve chooses addresses for a sandbox and holds them and its host ports, in memory; nothing is done for it yet. The
// caller writes the Attachment down before Attach.
//
// Errors: errdefs.ErrAlreadyExists for a sandbox that holds something, errdefs.ErrResourceExhausted when a range has no
// address left, errdefs.ErrFailedPrecondition for a host port that another sandbox has, or that is one of a family of
// which the sandbox has no address.
func (n *Network) Reserve(sandboxID string, r Request) (*Attachment, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.held[sandboxID] != nil {
		return nil, fmt.Errorf("sandbox %s was not detached: %w", sandboxID, errdefs.ErrAlreadyExists)
	}
	ports := distinct(r.Ports)
	if err := n.freePortsLocked(ports); err != nil {
		return nil, err
	}
	a := &Attachment{SandboxID: sandboxID, Link: n.linkName(sandboxID), Ports: ports, Limits: r.Limits}
	for _, from := range n.ranges {
		if r.NoIPv6 && from.Addr().Is6() {
			continue
		}
		ip, err := n.freeAddressLocked(from)
		if err != nil {
			return nil, err
		}
		a.Addresses = append(a.Addresses, Address{IP: ip, Gateway: gateway(from), Range: from})
	}
	if err := a.leadSomewhere(); err != nil {
		return nil, err
	}
	n.holdLocked(a)
	return a, nil
}

// Release gives the addresses of a detached sandbox back. It is idempotent.
func (n *Network) Release(a *Attachment) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.held[a.SandboxID] != a {
		return
	}
	delete(n.held, a.SandboxID)
	delete(n.ports, a.SandboxID)
	for _, address := range a.Addresses {
		delete(n.used, address.IP)
	}
}

func (n *Network) holdLocked(a *Attachment) {
	n.held[a.SandboxID] = a
	for _, address := range a.Addresses {
		n.used[address.IP] = true
		n.last[address.IP.BitLen()] = address.IP
	}
	if len(a.Ports) > 0 {
		n.ports[a.SandboxID] = a
	}
}

// freeAddressLocked finds the next free address of a range, so that one just given back rests as long as possible.
func (n *Network) freeAddressLocked(r netip.Prefix) (netip.Addr, error) {
	start := n.last[r.Addr().BitLen()]
	if !r.Contains(start) {
		start = gateway(r)
	}
	for ip := start.Next(); ; ip = ip.Next() {
		if !r.Contains(ip) {
			ip = r.Addr()
		}
		if usable(r, ip) && !n.used[ip] && (n.config.Taken == nil || !n.config.Taken(ip)) {
			return ip, nil
		}
		if ip == start {
			return netip.Addr{}, n.exhaustedLocked(r)
		}
	}
}

func (n *Network) exhaustedLocked(r netip.Prefix) error {
	used := 0
	for ip := range n.used {
		if r.Contains(ip) {
			used++
		}
	}
	return fmt.Errorf("no free address in %s: sandboxes have %d of %d: %w",
		r, used, capacity(r), errdefs.ErrResourceExhausted)
}

// capacity is how many sandboxes fit into a range; it is not asked for one of 2^32 addresses or more.
func capacity(r netip.Prefix) int {
	size := 1 << min(r.Addr().BitLen()-r.Bits(), 32)
	if r.Addr().Is4() {
		return size - 3
	}
	return size - 2
}

// gateway is the first address after that of the network.
func gateway(r netip.Prefix) netip.Addr { return r.Masked().Addr().Next() }

// usable tells whether an address of a range can be a sandbox's: not that of the network, the gateway or, for IPv4, the
// broadcast. The latter two mean nothing here; programs that look at them do not know that.
func usable(r netip.Prefix, ip netip.Addr) bool {
	if ip == r.Masked().Addr() || ip == gateway(r) {
		return false
	}
	return ip.Is6() || r.Contains(ip.Next())
}

// ErrHostPort is why a sandbox with a host port of another sandbox is refused.
var ErrHostPort = errors.New("host port is taken")

// distinct drops repetitions: two containers may name the same port.
func distinct(ports []Port) []Port {
	var kept []Port
	for _, p := range ports {
		if !slices.Contains(kept, p) {
			kept = append(kept, p)
		}
	}
	return kept
}

// freePortsLocked refuses host ports that another sandbox has, or this one twice.
func (n *Network) freePortsLocked(ports []Port) error {
	if len(ports) == 0 {
		return nil
	}
	for i, p := range ports {
		if slices.ContainsFunc(ports[:i], p.conflicts) {
			return fmt.Errorf("host port %s is asked for twice, for different ports of the sandbox: %w",
				p, errdefs.ErrInvalidArgument)
		}
	}
	for _, a := range n.ports {
		for _, p := range ports {
			if i := slices.IndexFunc(a.Ports, p.conflicts); i >= 0 {
				return fmt.Errorf("host port %s: sandbox %s has %s: %w: %w",
					p, a.SandboxID, a.Ports[i], ErrHostPort, errdefs.ErrFailedPrecondition)
			}
		}
	}
	return nil
}

// leadSomewhere refuses a host port of one family for a sandbox that has no address of it: nobody would be reached by
// it.
func (a *Attachment) leadSomewhere() error {
	for _, p := range a.Ports {
		same := func(address Address) bool { return address.IP.Is4() == p.HostIP.Is4() }
		if p.HostIP.IsValid() && !slices.ContainsFunc(a.Addresses, same) {
			return fmt.Errorf("host port %s: the sandbox has no address of that family: %w", p, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// conflicts tells whether a packet could be meant for both ports.
func (p Port) conflicts(q Port) bool {
	if p.Protocol != q.Protocol || p.HostPort != q.HostPort {
		return false
	}
	if !p.HostIP.IsValid() || !q.HostIP.IsValid() {
		return true
	}
	return p.HostIP == q.HostIP ||
		p.HostIP.Is4() == q.HostIP.Is4() && (p.HostIP.IsUnspecified() || q.HostIP.IsUnspecified())
}

// String is the port as in 127.0.0.1:8080/tcp.
func (p Port) String() string {
	if !p.HostIP.IsValid() {
		return fmt.Sprintf("%d/%s", p.HostPort, p.Protocol)
	}
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(p.HostIP, p.HostPort), p.Protocol)
}
