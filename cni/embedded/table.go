package embedded

import (
	"encoding/binary"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The table of the network, of family inet and named as its bridge. For IPv4 (and the same for IPv6):
//
//	chain raw (prerouting, raw):        iifname "gy*" ip daddr 127.0.0.0/8 drop
//	chain prerouting, output (dstnat):  fib daddr type local dnat ip to ip daddr . meta l4proto . th dport
//	                                        map @addressports4
//	                                    fib daddr type local dnat ip to meta l4proto . th dport map @ports4
//	chain postrouting (srcnat):         oifname "gy*" ip saddr 127.0.0.0/8 snat ip to <gateway>
//	                                    ip saddr . ip daddr @hairpins4 snat ip to <gateway>
//	                                    ip saddr @ranges4 ip daddr != @unmasqueraded4 ip daddr != 224.0.0.0/4
//	                                        masquerade
//
// A host port is an element of a map, so a packet costs the same however many there are, and a change of one does not
// touch the rules. The first rule gives back what route_localnet takes (CVE-2020-8558): 127.0.0.1 of the host is not to
// be reached from a sandbox.
//
// There is no rule that accepts: the table drops nothing else, and accepting here would not overrule another table's
// drop.

// family is what differs between IPv4 and IPv6.
type family struct {
	number              byte
	suffix              string
	size                uint32 // of an address
	source, destination uint32 // where they are in the header
	address             nftables.SetDatatype
	// second is the 32-bit register that follows an address in register 1.
	second uint32
	// multicast is the beginning of such a destination, and mask what of it counts.
	multicast, mask []byte
}

var families = []family{
	{unix.NFPROTO_IPV4, "4", 4, 12, 16, nftables.TypeIPAddr, unix.NFT_REG32_00 + 1,
		[]byte{0xe0, 0, 0, 0}, []byte{0xf0, 0, 0, 0}},
	{unix.NFPROTO_IPV6, "6", 16, 8, 24, nftables.TypeIP6Addr, unix.NFT_REG32_00 + 4,
		[]byte{0xff}, []byte{0xff}},
}

func familyOf(ip netip.Addr) family {
	if ip.Is4() {
		return families[0]
	}
	return families[1]
}

func (n *Network) inet() *nftables.Table {
	return &nftables.Table{Name: n.config.Bridge, Family: nftables.TableFamilyINet}
}

// masqueradeTable is what an earlier version made.
func (n *Network) masqueradeTable() *nftables.Table {
	return &nftables.Table{Name: n.config.Bridge, Family: nftables.TableFamilyIPv4}
}

func (n *Network) tableExists(name string) (exists bool, err error) {
	err = n.transact(func(conn *nftables.Conn) error {
		tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
		exists = slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == name })
		return err
	})
	return exists, err
}

// ensureTable makes the table if it is not there or not for the present ranges.
func (n *Network) ensureTable() error {
	n.mu.Lock()
	changed := n.changed
	n.mu.Unlock()
	if !changed {
		if exists, err := n.tableExists(n.config.Bridge); exists || err != nil {
			return err
		}
	}
	return n.rebuild()
}

// rebuild replaces the table by a new one with the present ranges and host ports.
func (n *Network) rebuild() error {
	n.transactions.Lock()
	defer n.transactions.Unlock()
	ranges, all, ports := n.snapshot()
	err := n.transact(func(conn *nftables.Conn) error {
		n.deleteTables(conn)
		table := conn.AddTable(n.inet())
		if err := n.addSets(conn, table, all); err != nil {
			return err
		}
		n.addRules(conn, table, ranges)
		return addElements(conn, table, ports)
	})
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.changed = n.changed && !slices.Equal(ranges, n.ranges) // they may have changed again meanwhile
	n.mu.Unlock()
	return nil
}

// snapshot returns the present ranges, these and those that sandboxes have addresses of, and whose host ports to map.
func (n *Network) snapshot() (ranges, all []netip.Prefix, ports []*Attachment) {
	n.mu.Lock()
	defer n.mu.Unlock()
	ranges = slices.Clone(n.ranges)
	all = slices.Clone(ranges)
	for _, a := range n.held {
		for _, address := range a.Addresses {
			if !slices.Contains(all, address.Range) {
				all = append(all, address.Range)
			}
		}
	}
	return ranges, all, slices.Collect(maps.Values(n.ports))
}

// deleteTables begins a transaction without the network's tables.
func (n *Network) deleteTables(conn *nftables.Conn) {
	for _, table := range []*nftables.Table{n.inet(), n.masqueradeTable()} {
		conn.DelTable(conn.AddTable(table)) // to add it first makes the deletion of one that is not there no error
	}
}

func (n *Network) removeTable() error {
	n.transactions.Lock()
	defer n.transactions.Unlock()
	return n.transact(func(conn *nftables.Conn) error {
		n.deleteTables(conn)
		return nil
	})
}

// disjoint drops ranges that lie in others: an interval set takes no overlap.
func disjoint(ranges []netip.Prefix) []netip.Prefix {
	var kept []netip.Prefix
	slices.SortFunc(ranges, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() })
	for _, r := range ranges {
		if !slices.ContainsFunc(kept, r.Overlaps) {
			kept = append(kept, r)
		}
	}
	return kept
}

// Names of the sets and maps, but for the family's suffix.
const (
	setRanges        = "ranges"
	setUnmasqueraded = "unmasqueraded" // the ranges and Config.ClusterRanges
	setHairpins      = "hairpins"
	mapPorts         = "ports"
	mapAddressPorts  = "addressports"
)

// addSets declares the sets and maps of both families, and fills those of ranges.
func (n *Network) addSets(conn *nftables.Conn, table *nftables.Table, ranges []netip.Prefix) error {
	proto, port := nftables.TypeInetProto, nftables.TypeInetService
	for _, f := range families {
		target := nftables.MustConcatSetType(f.address, port)
		values := map[string][]nftables.SetElement{
			setRanges:        f.intervals(ranges),
			setUnmasqueraded: f.intervals(append(slices.Clone(ranges), n.config.ClusterRanges...)),
		}
		for _, set := range []*nftables.Set{
			{Name: setRanges, KeyType: f.address, Interval: true},
			{Name: setUnmasqueraded, KeyType: f.address, Interval: true},
			{Name: setHairpins, KeyType: nftables.MustConcatSetType(f.address, f.address)},
			{Name: mapPorts, KeyType: nftables.MustConcatSetType(proto, port), IsMap: true, DataType: target},
			{Name: mapAddressPorts, KeyType: nftables.MustConcatSetType(f.address, proto, port), IsMap: true, DataType: target},
		} {
			elements := values[set.Name]
			set.Table, set.Name = table, set.Name+f.suffix
			if err := conn.AddSet(set, elements); err != nil {
				return err
			}
		}
	}
	return nil
}

// intervals are the elements of a set for those of the ranges that are of the family.
func (f family) intervals(ranges []netip.Prefix) []nftables.SetElement {
	var elements []nftables.SetElement
	for _, r := range disjoint(ranges) {
		if r.Addr().Is4() == (f.size == 4) {
			elements = append(elements, nftables.SetElement{Key: r.Addr().AsSlice()},
				nftables.SetElement{Key: after(r).AsSlice(), IntervalEnd: true})
		}
	}
	return elements
}

// after is the first address behind a range.
func after(r netip.Prefix) netip.Addr {
	last := r.Addr().AsSlice()
	for bit := r.Bits(); bit < r.Addr().BitLen(); bit++ {
		last[bit/8] |= 1 << (7 - bit%8)
	}
	ip, _ := netip.AddrFromSlice(last)
	return ip.Next()
}

// addRules makes the chains; the table's comment above shows them.
func (n *Network) addRules(conn *nftables.Conn, table *nftables.Table, ranges []netip.Prefix) {
	chain := func(
		name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority,
	) *nftables.Chain {
		return conn.AddChain(&nftables.Chain{Name: name, Table: table, Type: kind, Hooknum: hook, Priority: priority})
	}
	rule := func(c *nftables.Chain, parts ...[]expr.Any) {
		conn.AddRule(&nftables.Rule{Table: table, Chain: c, Exprs: slices.Concat(parts...)})
	}
	nat := nftables.ChainTypeNAT
	raw := chain("raw", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	prerouting := chain("prerouting", nat, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	output := chain("output", nat, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	postrouting := chain("postrouting", nat, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	v4 := families[0]
	rule(raw, anyLinkIs(expr.MetaKeyIIFNAME), v4.is(), v4.loopback(v4.destination),
		[]expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}})
	for _, f := range families {
		for _, c := range []*nftables.Chain{prerouting, output} {
			local := slices.Concat(f.is(), f.notLoopback6(), isLocal())
			rule(c, local, f.dnat(mapAddressPorts, true))
			rule(c, local, f.dnat(mapPorts, false))
		}
	}
	for _, r := range ranges {
		f := familyOf(r.Addr())
		if f.size == 4 {
			rule(postrouting, anyLinkIs(expr.MetaKeyOIFNAME), f.is(), f.loopback(f.source), f.snat(gateway(r)))
		}
		rule(postrouting, f.is(), f.hairpin(), f.snat(gateway(r)))
	}
	for _, f := range families {
		rule(postrouting, f.is(), f.leaving(), []expr.Any{&expr.Masq{}})
	}
}

// anyLinkIs matches the interface of any sandbox: those that an earlier version or another daemon made are no less one.
func anyLinkIs(key expr.MetaKey) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, equal([]byte(anyLink))}
}

func equal(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

func (f family) is() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal([]byte{f.number})}
}

// load puts a part of the network header into a register.
func load(offset, size, register uint32) expr.Any {
	return &expr.Payload{
		DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size,
	}
}

// loopback matches an IPv4 address at offset that is one of 127.0.0.0/8.
func (f family) loopback(offset uint32) []expr.Any {
	return []expr.Any{load(offset, 1, 1), equal([]byte{127})}
}

// notLoopback6 leaves ::1 alone: IPv6 has no route_localnet, so nothing would come back.
func (f family) notLoopback6() []expr.Any {
	if f.size == 4 {
		return nil
	}
	return []expr.Any{
		load(f.destination, f.size, 1), &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: net.IPv6loopback},
	}
}

// isLocal matches what is sent to an address of the host.
func isLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		equal(binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)),
	}
}

// dnat sends what a map has to where it says. byAddress says that the destination is part of the key.
func (f family) dnat(name string, byAddress bool) []expr.Any {
	var exprs []expr.Any
	key := uint32(unix.NFT_REG32_00)
	if byAddress {
		exprs = append(exprs, load(f.destination, f.size, key))
		key = f.second
	}
	return append(exprs,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: key},
		&expr.Payload{DestRegister: key + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: unix.NFT_REG32_00, DestRegister: 1, IsDestRegSet: true, SetName: name + f.suffix},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.number), RegAddrMin: 1, RegProtoMin: f.second},
	)
}

// snat makes packets come from an address of the host.
func (f family) snat(ip netip.Addr) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: ip.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(f.number), RegAddrMin: 1},
	}
}

// hairpin matches what a sandbox sends to itself by a host port: an answer must not stay inside it.
func (f family) hairpin() []expr.Any {
	return []expr.Any{
		load(f.source, f.size, unix.NFT_REG32_00), load(f.destination, f.size, f.second),
		&expr.Lookup{SourceRegister: unix.NFT_REG32_00, SetName: setHairpins + f.suffix},
	}
}

// leaving matches what goes from a sandbox to elsewhere.
func (f family) leaving() []expr.Any {
	return []expr.Any{
		load(f.source, f.size, 1), &expr.Lookup{SourceRegister: 1, SetName: setRanges + f.suffix},
		load(f.destination, f.size, 1), &expr.Lookup{SourceRegister: 1, SetName: setUnmasqueraded + f.suffix, Invert: true},
		load(f.destination, uint32(len(f.mask)), 1),
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: uint32(len(f.mask)), Mask: f.mask, Xor: make([]byte, len(f.mask)),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: f.multicast},
	}
}
