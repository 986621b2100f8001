package embedded

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// eth0 is the interface of every sandbox; the kubelet counts on the name.
const eth0 = "eth0"

// hostMAC is the link-layer address of every pair's host end. They may be the same, since each is alone with its
// sandbox. It is set so that the sandbox can be told it, and so that udev does not put another in its place.
var hostMAC = net.HardwareAddr{0x0a, 0x58, 0, 0, 0, 1}

// anyLink begins the names of the links of every daemon's network.
const anyLink = "gy"

// linkPrefix begins the names of the links of a network, so that what one daemon made is told apart from what is
// another's, which may have a bridge of the same name while only one of the two runs. Sweep goes by it.
func linkPrefix(config Config) string {
	sum := sha256.Sum256([]byte(config.Bridge + "\x00" + config.StateFile))
	return anyLink + hex.EncodeToString(sum[:])[:3]
}

// linkName is the name of the host's end: the prefix and the beginning of the sandbox's id.
func (n *Network) linkName(sandboxID string) string {
	return n.prefix + sandboxID[:min(len(sandboxID), unix.IFNAMSIZ-1-len(n.prefix))]
}

// wiring is one Attach.
type wiring struct {
	n         *Network
	a         *Attachment
	netns     *os.File
	host, pod *netlink.Handle
	// hostLink and podLink are the two ends, once they are made.
	hostLink, podLink netlink.Link
}

// wire opens what an Attach needs.
func (n *Network) wire(a *Attachment, netns string) (*wiring, error) {
	w := &wiring{n: n, a: a}
	var err error
	if w.netns, err = os.Open(netns); err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	if w.host, err = newHandle(); err == nil {
		w.pod, err = handleIn(w.netns)
	}
	if err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *wiring) close() {
	_ = w.netns.Close()
	for _, handle := range []*netlink.Handle{w.host, w.pod} {
		if handle != nil {
			handle.Close()
		}
	}
}

// steps is the story of an Attach. Each may be the last, since the daemon can be killed at any moment.
func (w *wiring) steps() []step {
	return []step{
		{"bring loopback up", w.loopback},
		{"make pair " + w.a.Link, w.pair},
		{"configure " + eth0, w.configure},
		{"route to the sandbox", w.route},
		{"limit bandwidth", w.limit},
		{"open host ports", w.openPorts},
	}
}

// handleIn opens a netlink socket in another network namespace: what is done on it takes effect there from any thread.
func handleIn(netns *os.File) (handle *netlink.Handle, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The thread is given back only if it is surely in its old namespace again; otherwise it ends with the goroutine.
		runtime.LockOSThread()
		own, openErr := os.Open("/proc/thread-self/ns/net")
		if openErr != nil {
			err = openErr
			return
		}
		defer own.Close()
		if err = unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err == nil {
			handle, err = newHandle()
		} else {
			err = fmt.Errorf("enter network namespace %s: %w", netns.Name(), err)
		}
		if unix.Setns(int(own.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	<-done
	return handle, err
}

func (w *wiring) loopback() error {
	// The kernel gives loopback this index in every namespace.
	return w.pod.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}})
}

// pair makes both ends where they belong: to move one later costs as much again. They are down: an end that is up while
// the other is not has the kernel go through all IPv6 routes of the host, at once when its index is asked for.
func (w *wiring) pair() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = w.a.Link, hostMAC
	// One queue is all that a veth uses without XDP; the default, one for each CPU, makes it slow to create on large
	// nodes.
	attrs.NumTxQueues, attrs.NumRxQueues = 1, 1
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: eth0, PeerHardwareAddr: podMAC(w.a), PeerNamespace: netlink.NsFd(w.netns.Fd()),
		PeerNumTxQueues: 1, PeerNumRxQueues: 1,
	}
	err := w.host.LinkAdd(veth)
	if errors.Is(err, unix.EEXIST) {
		// There is no other record of this sandbox, so an earlier Detach of it left the pair to its namespace.
		if old, findErr := w.host.LinkByName(w.a.Link); findErr == nil {
			_ = w.host.LinkDel(old)
		}
		err = w.host.LinkAdd(veth)
	}
	w.hostLink = veth
	if err != nil {
		return err
	}
	return w.restrain()
}

// restrain says what the host's end does not do of IPv6. Nothing can come before, as both ends are still down.
func (w *wiring) restrain() error {
	// Without it the host would take routes from router advertisements of the sandbox (CVE-2020-10749).
	err := sysctl("0", "ipv6", "conf", w.a.Link, "accept_ra")
	if errors.Is(err, fs.ErrNotExist) { // the kernel has no IPv6
		return nil
	}
	if err != nil {
		return err
	}
	// Nobody speaks to the end by a link-local address, and each one is three more routes of those that the kernel goes
	// through at every change of a link.
	return w.host.LinkSetIP6AddrGenMode(w.hostLink, nl.IN6_ADDR_GEN_MODE_NONE)
}

// podMAC is derived from the first address, as CNI plugins do it, so that it stays where the address stays.
func podMAC(a *Attachment) net.HardwareAddr {
	ip := a.Addresses[0].IP.AsSlice()
	return append(net.HardwareAddr{0x0a, 0x58}, ip[len(ip)-4:]...)
}

// configure brings the pair up and gives eth0 its addresses and routes.
func (w *wiring) configure() (err error) {
	if w.podLink, err = w.pod.LinkByName(eth0); err != nil {
		return err
	}
	if err := w.pod.LinkSetUp(w.podLink); err != nil {
		return err
	}
	if err := w.host.LinkSetUp(w.hostLink); err != nil {
		return err
	}
	index := w.podLink.Attrs().Index
	for _, address := range w.a.Addresses {
		// No duplicate address detection: nobody else is on this link, and the address is usable at once.
		addr := &netlink.Addr{IPNet: single(address.IP), Flags: unix.IFA_F_NODAD}
		if err := w.pod.AddrAdd(w.podLink, addr); err != nil {
			return fmt.Errorf("add address %s: %w", address.IP, err)
		}
		if err := w.pod.NeighSet(neighbour(index, address.Gateway, hostMAC)); err != nil {
			return fmt.Errorf("add neighbour %s: %w", address.Gateway, err)
		}
		route := &netlink.Route{LinkIndex: index, Gw: address.Gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
		if err := w.pod.RouteAdd(route); err != nil {
			return fmt.Errorf("add route by %s: %w", address.Gateway, err)
		}
	}
	return nil
}

// route leads the host to the sandbox.
func (w *wiring) route() error {
	index := w.hostLink.Attrs().Index
	for _, address := range w.a.Addresses {
		if err := w.host.NeighSet(neighbour(index, address.IP, podMAC(w.a))); err != nil {
			return fmt.Errorf("add neighbour %s: %w", address.IP, err)
		}
		if err := w.host.RouteAdd(hostRoute(index, address)); err != nil {
			return fmt.Errorf("add route to %s: %w", address.IP, err)
		}
	}
	return nil
}

// hostRoute is the host's route to an address; the host speaks to the sandbox as its gateway.
func hostRoute(index int, address Address) *netlink.Route {
	return &netlink.Route{
		LinkIndex: index, Dst: single(address.IP), Src: address.Gateway.AsSlice(), Scope: netlink.SCOPE_LINK,
	}
}

func neighbour(index int, ip netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac}
}

// single is an address as the network that has only it.
func single(ip netip.Addr) *net.IPNet {
	return &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(ip.BitLen(), ip.BitLen())}
}

// Sweep deletes the links of this network that belong to no attachment and to none of the sandboxes named, of which
// there may be more than attachments: a record that cannot be read is no reason to cut a sandbox off. It is for
// recovery: call it before the first Attach. A network that is not enabled or that another process owns is left alone.
func (n *Network) Sweep(sandboxIDs ...string) error {
	if !n.config.Enabled || n.own() != nil {
		return nil
	}
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // what is missing then is new, and not ours to delete
		return fmt.Errorf("list links: %w", err)
	}
	n.mu.Lock()
	keep := make(map[string]bool, len(n.held))
	for _, a := range n.held {
		keep[a.Link] = true
	}
	n.mu.Unlock()
	for _, id := range sandboxIDs {
		keep[n.linkName(id)] = true
	}
	var errs []error
	for _, link := range links {
		name := link.Attrs().Name
		if link.Type() != "veth" || !strings.HasPrefix(name, n.prefix) || keep[name] {
			continue
		}
		if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("delete link %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// Forget deletes the pair of a sandbox of which nothing but the id is known.
func (n *Network) Forget(sandboxID string) error {
	link, err := netlink.LinkByName(n.linkName(sandboxID))
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link of sandbox %s: %w", sandboxID, err)
	}
	return nil
}

// sysctl sets a kernel parameter of the network, if it is another.
func sysctl(value string, path ...string) error {
	old, err := readSysctl(path...)
	if err != nil || old == value {
		return err
	}
	if err := os.WriteFile(sysctlFile(path), []byte(value), 0); err != nil {
		return fmt.Errorf("set kernel parameter to %s: %w", value, err)
	}
	return nil
}

func readSysctl(path ...string) (string, error) {
	b, err := os.ReadFile(sysctlFile(path))
	if err != nil {
		return "", fmt.Errorf("read kernel parameter: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func sysctlFile(path []string) string { return filepath.Join("/proc/sys/net", filepath.Join(path...)) }

// network is a range in the words of package net.
func network(r netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: r.Addr().AsSlice(), Mask: net.CIDRMask(r.Bits(), r.Addr().BitLen())}
}
