package embedded

import (
	"errors"
	"fmt"
	"net"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// own makes this the only process that changes the network, as long as it lives: two would give the same addresses and
// take each other's links and firewall for leftovers. An abstract socket is what fits: like the links it belongs to a
// network namespace, and it goes with the process however that ends.
//
// Errors: errdefs.ErrFailedPrecondition when another process owns the network.
func (n *Network) own() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.owner != nil {
		return nil
	}
	owner, err := net.ListenUnix("unix", &net.UnixAddr{Name: "@gantry-embedded-network/" + n.config.Bridge, Net: "unix"})
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("another daemon has the embedded network on bridge %s, expected one of its own: %w",
			n.config.Bridge, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return fmt.Errorf("own the embedded network: %w", err)
	}
	n.owner = owner
	return nil
}
