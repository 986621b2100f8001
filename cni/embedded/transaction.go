package embedded

import (
	"time"

	"github.com/google/nftables"
	mdnetlink "github.com/mdlayher/netlink"
)

const (
	// sendBuffer is the socket's, in bytes: all elements go in one transaction, and one takes less than 100.
	sendBuffer = 16 << 20
	// firewalls is how many connections to the firewall there are. The kernel makes one change after the other anyway.
	firewalls = 4
)

// firewall is a connection to nftables. It is kept for the next transaction: to close one after a deletion waits 10 ms
// and more until the kernel has freed what was deleted, and holds up everybody's transactions meanwhile.
type firewall struct {
	*nftables.Conn
	socket *mdnetlink.Conn
}

func dialFirewall() (*firewall, error) {
	f := &firewall{}
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(socket *mdnetlink.Conn) error {
		f.socket = socket
		_ = socket.SetWriteBuffer(sendBuffer) // without privilege the kernel's limit has to do
		return nil
	}))
	f.Conn = conn
	return f, err
}

// transact makes a change of the firewall, all or nothing, or reads it.
func (n *Network) transact(do func(conn *nftables.Conn) error) (err error) {
	f := <-n.firewalls // each is back within requestTimeout
	defer func() { n.firewalls <- f }()
	if f == nil {
		if f, err = dialFirewall(); err != nil {
			f = nil
			return err
		}
	}
	if err = f.socket.SetDeadline(time.Now().Add(requestTimeout)); err == nil {
		err = do(f.Conn)
	}
	if err == nil {
		err = f.Flush()
	}
	if err != nil { // there may be answers on the way to nobody
		go func(f *firewall) { _ = f.CloseLasting() }(f)
		f = nil
	}
	return err
}

// hangUp closes the connections.
func (n *Network) hangUp() {
	for range firewalls {
		if f := <-n.firewalls; f != nil {
			_ = f.CloseLasting()
		}
	}
	for range firewalls {
		n.firewalls <- nil
	}
}
