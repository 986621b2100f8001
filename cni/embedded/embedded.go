// Package embedded is the network that the daemon makes itself: a veth pair for each sandbox, routed, with addresses
// from a range of the node's, host ports and masquerading by one nftables table. It works over netlink in the process.
//
// It is not a CNI plugin, it makes no namespaces, and it writes no records of attachments: an Attachment is handed to
// the caller, who keeps it where a later process finds it, and who hands it back by Adopt and Detach.
//
// # How a packet finds its way
//
// A sandbox has eth0 with a single address (/32, /128) and a default route to the gateway, whose link-layer address it
// is told, so that it never asks. The other end of the pair is on the host, with a route to that single address. The
// host forwards between pairs and to the world: there is no bridge, thus no limit of 1,023 ports, nothing that is
// learned or flooded, and no broadcast between sandboxes. The gateway's address is on a bridge without ports, which is
// what an interface can be that has no other purpose on every kernel, and what the earlier, bridged network left.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/trace"
)

const (
	// ensureEvery is how long what all sandboxes share is believed to be there: reloading a firewall may flush it.
	ensureEvery = 10 * time.Second
	// lingerTime is how long a pair may outlive its Detach. The namespace that ends with the sandbox takes it away, for
	// many sandboxes at a time; to delete it here costs a wait of 10-20 ms for the kernel's readers, each time.
	lingerTime = 2 * time.Second
	// requestTimeout bounds one exchange with the kernel.
	requestTimeout = 10 * time.Second
)

// Config describes the network.
type Config struct {
	// Enabled says that sandboxes are attached to it. If not, those that are attached from before can be detached.
	Enabled bool
	// Bridge is the interface with the gateway's addresses, and the name of the nftables table.
	Bridge string
	// Subnet is the IPv4 range of addresses as long as SetPodCIDR gave none.
	Subnet netip.Prefix
	// Subnet6 is the same for IPv6; the zero value means none, AutoSubnet6 a random one of the node's own.
	Subnet6 netip.Prefix
	// ClusterRanges are those of all nodes' sandboxes: what is sent there keeps the sandbox's own address. Optional.
	ClusterRanges []netip.Prefix
	// AutoSubnet6 wants a unique local /64, chosen once, while the kernel has IPv6 enabled.
	AutoSubnet6 bool
	// StateFile keeps the ranges that are not configured. Must survive a restart.
	StateFile string
	// Taken tells of addresses that somebody else holds; nil means none.
	Taken func(netip.Addr) bool
}

// Attachment is what a sandbox holds of the network. It does not change once it is made.
type Attachment struct {
	SandboxID string `json:"sandboxID"`
	// Link is the host's end of the pair.
	Link string `json:"link"`
	// Addresses are the sandbox's, one for each family, IPv4 first.
	Addresses []Address `json:"addresses"`
	Ports     []Port    `json:"ports,omitempty"`
	Limits    Limits    `json:"limits"`
}

// Address is an address of a sandbox with what belongs to it.
type Address struct {
	IP      netip.Addr   `json:"ip"`
	Gateway netip.Addr   `json:"gateway"`
	Range   netip.Prefix `json:"range"`
}

// Port makes a port of a sandbox reachable by one of the host.
type Port struct {
	Protocol string `json:"protocol"` // tcp, udp or sctp
	// HostIP is the address of the host; the zero value is all, 0.0.0.0 all of IPv4, :: all of IPv6.
	HostIP        netip.Addr `json:"hostIP"`
	HostPort      uint16     `json:"hostPort"`
	ContainerPort uint16     `json:"containerPort"`
}

// Limits are bits per second to (ingress) and from (egress) a sandbox; 0 is no limit.
type Limits struct {
	Ingress int64 `json:"ingress,omitempty"`
	Egress  int64 `json:"egress,omitempty"`
}

// Network attaches sandboxes. All methods may be called from several goroutines. No lock is held while the kernel works
// on a sandbox, but for the changes of host ports, see transactions.
//
// What it persists: StateFile. Everything else is in the Attachments.
type Network struct {
	config Config
	prefix string // of the names of links

	// transactions lets changes of elements go side by side, and holds them off while the table is made anew from what
	// was in force at its beginning: what came between would be lost. Only sandboxes with host ports take it.
	transactions sync.RWMutex
	firewalls    chan *firewall // connections that wait for a transaction, or nil

	ensuring sync.Mutex // serialises Ensure, which takes away what another one adds; guards no field

	mu       sync.Mutex
	state    stateFile
	ranges   []netip.Prefix // at most one for each family, IPv4 first
	held     map[string]*Attachment
	used     map[netip.Addr]bool
	last     map[int]netip.Addr     // by number of bits: where the search went on
	ports    map[string]*Attachment // those whose host ports are in the table, or will be
	changed  bool                   // the ranges are others than those in the table
	ensured  time.Time              // when what is shared was last made sure of
	leftover map[int]*time.Timer
	owner    io.Closer // not nil once this process owns the network
}

// New makes a network that nothing is done for yet: Adopt what is attached already, then call Ensure.
//
// Errors: that of reading or writing StateFile.
func New(config Config) (*Network, error) {
	n := &Network{
		config: config, prefix: linkPrefix(config), held: map[string]*Attachment{}, used: map[netip.Addr]bool{},
		last: map[int]netip.Addr{}, ports: map[string]*Attachment{}, leftover: map[int]*time.Timer{},
		firewalls: make(chan *firewall, firewalls),
	}
	for range firewalls {
		n.firewalls <- nil
	}
	if !config.Enabled {
		return n, nil
	}
	return n, n.loadRanges()
}

// Close ends what goes on in the background, and lets another process own the network. Attachments stay as they are.
func (n *Network) Close() {
	n.hangUp()
	n.disown()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, timer := range n.leftover {
		timer.Stop()
	}
}

// Adopt takes an attachment that another process made; the youngest comes last. live says that it was in this boot:
// only then are there links and host ports; the addresses are held in any case until Release.
func (n *Network) Adopt(a *Attachment, live bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.holdLocked(a)
	if !live {
		delete(n.ports, a.SandboxID)
	}
}

// Held returns what a sandbox holds, nil if it holds nothing.
func (n *Network) Held(sandboxID string) *Attachment {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.held[sandboxID]
}

// Attach makes the pair, eth0 in the network namespace at the path netns, the routes and the host ports. It undoes
// nothing: after an error the caller calls Detach.
func (n *Network) Attach(ctx context.Context, a *Attachment, netns string) error {
	_, step := trace.Start(ctx, "open netlink")
	w, err := n.wire(a, netns)
	step.End()
	if err != nil {
		return err
	}
	defer w.close()
	return run(ctx, w.steps())
}

// Detach undoes Attach. It is idempotent, and safe after an Attach that failed or was killed half-way. The addresses
// are held until Release.
func (n *Network) Detach(ctx context.Context, a *Attachment) error {
	return run(ctx, n.detachSteps(a))
}

func (n *Network) detachSteps(a *Attachment) []step {
	return []step{
		{"close host ports", func() error { return n.closePorts(a) }},
		{"remove routes of " + a.Link, func() error { return n.unroute(a) }},
	}
}

// step is a change that the kernel is asked for.
type step struct {
	what string
	do   func() error
}

// run does one step after the other. A step is not interrupted: the kernel does not give up half-way either.
func run(ctx context.Context, steps []step) error {
	for _, s := range steps {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
		_, timed := trace.Start(ctx, s.what)
		err := s.do()
		timed.End()
		if err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
	}
	return nil
}

// unroute takes the routes to a sandbox away, so that its addresses can be given to another, and lets the pair go with
// the namespace.
func (n *Network) unroute(a *Attachment) error {
	host, err := newHandle()
	if err != nil {
		return err
	}
	defer host.Close()
	link, err := host.LinkByName(a.Link)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil // and its routes with it
	}
	if err != nil {
		return err
	}
	for _, address := range a.Addresses {
		route := hostRoute(link.Attrs().Index, address)
		if err := host.RouteDel(route); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("delete route to %s: %w", address.IP, err)
		}
	}
	n.linger(link.Attrs().Index)
	return nil
}

// linger deletes a link that its namespace did not take away in time. By index, which is not given twice as a name is.
func (n *Network) linger(index int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.leftover[index] = time.AfterFunc(lingerTime, func() {
		// Mostly it is gone. What cannot be deleted is found by Sweep.
		_ = netlink.LinkDel(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Index: index}})
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.leftover, index)
	})
}

// newHandle opens a netlink socket in the namespace of the thread.
func newHandle() (*netlink.Handle, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	if err := handle.SetSocketTimeout(requestTimeout); err != nil {
		handle.Close()
		return nil, fmt.Errorf("bound netlink: %w", err)
	}
	return handle, nil
}
