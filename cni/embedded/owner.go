package embedded

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// tableOwner is NFT_TABLE_F_OWNER of linux/netfilter/nf_tables.h: the table can be changed only by the socket that made
// it, is spared when somebody flushes the ruleset, and ends with the socket. Kernel 5.12 and later.
const tableOwner = 0x2

// ownerTable is the name of the table that says who owns the network.
func (n *Network) ownerTable() string { return n.config.Bridge + "-owner" }

// own makes this the only process that changes the network, as long as it lives: two would give the same addresses and
// take each other's links and firewall for leftovers. It does so with a table of nftables, empty and owned. That is in
// the network namespace, as the links are, whatever files the daemons see; it goes with the process, however that ends;
// and it takes CAP_NET_ADMIN, so that no sandbox on the host's network can take it while the daemon restarts, as it
// could an abstract socket. A kernel that knows no owners lets everybody be one.
//
// Errors: errdefs.ErrFailedPrecondition when another process owns the network.
func (n *Network) own() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.owner != nil {
		return nil
	}
	owner, err := ownTable(n.ownerTable())
	if errors.Is(err, unix.EPERM) {
		if exists, _ := n.tableExists(n.ownerTable()); exists { // else there is no CAP_NET_ADMIN
			return fmt.Errorf("another daemon has the embedded network on bridge %s, expected one of its own: %w",
				n.config.Bridge, errdefs.ErrFailedPrecondition)
		}
	}
	if err != nil {
		return fmt.Errorf("own the embedded network: %w", err)
	}
	n.owner = owner
	return nil
}

// disown lets another process own the network.
func (n *Network) disown() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.owner != nil {
		_ = n.owner.Close()
		n.owner = nil
	}
}

// ownTable makes a table that is owned, in the network namespace of the thread; to close what is returned ends it.
//
// Errors: EPERM when it is another's.
func ownTable(name string) (io.Closer, error) {
	attributes, err := mdnetlink.MarshalAttributes([]mdnetlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: append([]byte(name), 0)},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binary.BigEndian.AppendUint32(nil, tableOwner)},
	})
	if err != nil {
		return nil, err
	}
	conn, err := mdnetlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	newTable := mdnetlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE)
	if err = conn.SetDeadline(time.Now().Add(requestTimeout)); err == nil {
		_, err = conn.SendMessages([]mdnetlink.Message{
			nfMessage(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil),
			nfMessage(newTable, mdnetlink.Acknowledge|mdnetlink.Create, unix.NFPROTO_INET, 0, attributes),
			nfMessage(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil),
		})
	}
	if err == nil {
		_, err = conn.Receive()
	}
	if err != nil && !errors.Is(err, unix.EINVAL) { // which says that the flag is not known
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// nfMessage is a message with the header of nfnetlink: family, version and resource.
func nfMessage(
	kind mdnetlink.HeaderType, flags mdnetlink.HeaderFlags, family byte, resource uint16, attributes []byte,
) mdnetlink.Message {
	header := binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, resource)
	return mdnetlink.Message{
		Header: mdnetlink.Header{Type: kind, Flags: mdnetlink.Request | flags}, Data: append(header, attributes...),
	}
}
