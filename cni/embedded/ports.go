package embedded

import (
	"encoding/binary"
	"errors"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// elementsPerMessage bounds the elements of one message: an attribute has at most 64 KiB.
const elementsPerMessage = 200

var protocols = map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

// elements lists by the name of their set what a sandbox's host ports are made of.
func elements(a *Attachment) map[string][]nftables.SetElement {
	sets := map[string][]nftables.SetElement{}
	for _, address := range a.Addresses {
		f := familyOf(address.IP)
		mapped := false
		for _, p := range a.Ports {
			if p.HostIP.IsValid() && p.HostIP.Is4() != address.IP.Is4() {
				continue
			}
			mapped = true
			name, key := mapPorts, []byte{protocols[p.Protocol], 0, 0, 0}
			if p.HostIP.IsValid() && !p.HostIP.IsUnspecified() {
				name, key = mapAddressPorts, append(p.HostIP.AsSlice(), key...)
			}
			name += f.suffix
			sets[name] = append(sets[name], nftables.SetElement{
				Key: append(key, padded(p.HostPort)...), Val: append(address.IP.AsSlice(), padded(p.ContainerPort)...),
			})
		}
		if mapped {
			name := setHairpins + f.suffix
			sets[name] = append(sets[name], nftables.SetElement{
				Key: append(address.IP.AsSlice(), address.IP.AsSlice()...),
			})
		}
	}
	return sets
}

// padded is a port as a part of a concatenation, which is a multiple of 4 bytes.
func padded(port uint16) []byte { return append(binary.BigEndian.AppendUint16(nil, port), 0, 0) }

// addElements adds the host ports of sandboxes to a transaction.
func addElements(conn *nftables.Conn, table *nftables.Table, attachments []*Attachment) error {
	all := map[string][]nftables.SetElement{}
	for _, a := range attachments {
		for name, es := range elements(a) {
			all[name] = append(all[name], es...)
		}
	}
	for name, es := range all {
		for chunk := range slices.Chunk(es, elementsPerMessage) {
			if err := conn.SetAddElements(&nftables.Set{Table: table, Name: name}, chunk); err != nil {
				return err
			}
		}
	}
	return nil
}

// openPorts makes the host ports lead to the sandbox.
func (w *wiring) openPorts() error {
	a, n := w.a, w.n
	if len(a.Ports) == 0 {
		return nil
	}
	// So that 127.0.0.1 of the host may be the other side of a connection; the table keeps the sandbox from using it.
	if err := sysctl("1", "ipv4", "conf", a.Link, "route_localnet"); err != nil {
		return err
	}
	add := func(conn *nftables.Conn) error { return addElements(conn, n.inet(), []*Attachment{a}) }
	err := n.change(add, func() {})
	// Somebody flushed the firewall, or it leads a port of ours, which no other sandbox has, elsewhere (EBUSY before
	// kernel 5.7): then what is there is left from one that is gone.
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY) {
		err = n.rebuild()
	}
	if err != nil {
		return err
	}
	return forgetFlows(a, false)
}

// closePorts undoes openPorts, if it was done. That flows cannot be forgotten is no reason to keep a sandbox: they end when
// their clients rest, and the next sandbox with the port forgets them first (openPorts).
func (n *Network) closePorts(a *Attachment) error {
	n.mu.Lock()
	held := n.ports[a.SandboxID] == a
	n.mu.Unlock()
	if held {
		if err := n.unlead(a); err != nil {
			return err
		}
	}
	_ = forgetFlows(a, true)
	return nil
}

// unlead takes the host ports of a sandbox out of the table.
func (n *Network) unlead(a *Attachment) error {
	err := n.change(func(conn *nftables.Conn) error { return deleteElements(conn, n.inet(), a) }, func() { n.drop(a) })
	if errors.Is(err, unix.ENOENT) { // some are not there: Attach came not so far, or somebody flushed the firewall
		n.drop(a)
		err = nil
		if n.config.Enabled {
			err = n.rebuild()
		}
	}
	return err
}

// drop lets go of the host ports of a sandbox.
func (n *Network) drop(a *Attachment) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.ports, a.SandboxID)
}

func deleteElements(conn *nftables.Conn, table *nftables.Table, a *Attachment) error {
	for name, es := range elements(a) {
		for chunk := range slices.Chunk(es, elementsPerMessage) {
			if err := conn.SetDeleteElements(&nftables.Set{Table: table, Name: name}, chunk); err != nil {
				return err
			}
		}
	}
	return nil
}

// change changes elements of the table in one transaction. What done does comes before the table can be made anew.
func (n *Network) change(add func(conn *nftables.Conn) error, done func()) error {
	n.transactions.RLock()
	defer n.transactions.RUnlock()
	if err := n.transact(add); err != nil {
		return err
	}
	done()
	return nil
}
