package embedded

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	mdnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Of linux/netfilter/nfnetlink_conntrack.h, and what of a tuple counts in a filter (net/netfilter/nf_internals.h).
const (
	ctaFilter          = 25
	ctaFilterOrigFlags = 1
	filterProtocol     = 1 << 3
	filterDestPort     = 1 << 5

	listFlows  = mdnetlink.HeaderType(unix.NFNL_SUBSYS_CTNETLINK<<8 | nl.IPCTNL_MSG_CT_GET)
	deleteFlow = mdnetlink.HeaderType(unix.NFNL_SUBSYS_CTNETLINK<<8 | nl.IPCTNL_MSG_CT_DELETE)
)

// forgetFlows drops what the kernel remembers of UDP to the host ports of a sandbox: a flow goes on where it went, so a
// client that does not stop sending would never get to the new sandbox. led says that only flows to this sandbox are
// meant, and not those that led elsewhere before it came.
//
// The library would take the whole table out of the kernel, of all protocols, for each address.
func forgetFlows(a *Attachment, led bool) error {
	if !slices.ContainsFunc(a.Ports, Port.isUDP) {
		return nil
	}
	conn, err := mdnetlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("forget UDP flows: %w", err)
	}
	defer conn.Close()
	for _, address := range a.Addresses {
		for _, p := range a.Ports {
			if !p.isUDP() || p.HostIP.IsValid() && p.HostIP.Is4() != address.IP.Is4() {
				continue
			}
			f := flowFilter{family: familyOf(address.IP).number, port: p.HostPort}
			if led {
				f.sandbox = address.IP
			}
			if err := f.forget(conn); err != nil {
				return fmt.Errorf("forget UDP flows: %w", err)
			}
		}
	}
	return nil
}

func (p Port) isUDP() bool { return p.Protocol == "udp" }

// flowFilter says which UDP flows are meant.
type flowFilter struct {
	family byte
	// port is where the first packet went to.
	port uint16
	// sandbox is who answers; the zero value is anybody.
	sandbox netip.Addr
}

// forget drops the flows.
func (f flowFilter) forget(conn *mdnetlink.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return err
	}
	flows, err := f.list(conn)
	if err != nil {
		return err
	}
	for _, flow := range flows {
		attributes := flow.Data[nl.SizeofNfgenmsg:]
		if !f.matches(attributes) {
			continue
		}
		drop := nfMessage(deleteFlow, mdnetlink.Acknowledge, f.family, 0, attributes)
		if _, err := conn.Execute(drop); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// list asks the kernel for the flows to the port, and gets those of all protocols and ports if that is older than 5.8.
// It does not ask by sandbox: the kernel compares IPv6 addresses the wrong way round (ctnetlink_filter_match_tuple,
// 6.18).
func (f flowFilter) list(conn *mdnetlink.Conn) ([]mdnetlink.Message, error) {
	e := mdnetlink.NewAttributeEncoder()
	e.Nested(nl.CTA_TUPLE_ORIG, func(tuple *mdnetlink.AttributeEncoder) error {
		tuple.Nested(nl.CTA_TUPLE_PROTO, func(proto *mdnetlink.AttributeEncoder) error {
			proto.Uint8(nl.CTA_PROTO_NUM, unix.IPPROTO_UDP)
			proto.Bytes(nl.CTA_PROTO_DST_PORT, binary.BigEndian.AppendUint16(nil, f.port))
			return nil
		})
		return nil
	})
	e.Nested(ctaFilter, func(filter *mdnetlink.AttributeEncoder) error {
		filter.Uint32(ctaFilterOrigFlags, filterProtocol|filterDestPort)
		return nil
	})
	attributes, err := e.Encode()
	if err != nil {
		return nil, err
	}
	return conn.Execute(nfMessage(listFlows, mdnetlink.Dump, f.family, 0, attributes))
}

// matches reports whether a flow is meant.
func (f flowFilter) matches(flow []byte) bool {
	proto := nested(flow, nl.CTA_TUPLE_ORIG, nl.CTA_TUPLE_PROTO)
	if !bytes.Equal(nested(proto, nl.CTA_PROTO_NUM), []byte{unix.IPPROTO_UDP}) ||
		!bytes.Equal(nested(proto, nl.CTA_PROTO_DST_PORT), binary.BigEndian.AppendUint16(nil, f.port)) {
		return false
	}
	source := uint16(nl.CTA_IP_V4_SRC)
	if f.sandbox.Is6() {
		source = nl.CTA_IP_V6_SRC
	}
	answers := nested(flow, nl.CTA_TUPLE_REPLY, nl.CTA_TUPLE_IP, source)
	return !f.sandbox.IsValid() || bytes.Equal(answers, f.sandbox.AsSlice())
}

// nested is the value of an attribute that is in others, nil if there is none.
func nested(data []byte, path ...uint16) []byte {
	for _, kind := range path {
		attributes, err := mdnetlink.UnmarshalAttributes(data)
		i := slices.IndexFunc(attributes,
			func(a mdnetlink.Attribute) bool { return a.Type&^uint16(unix.NLA_F_NESTED) == kind })
		if err != nil || i < 0 {
			return nil
		}
		data = attributes[i].Data
	}
	return data
}
