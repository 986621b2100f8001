package embedded

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// ownDir has the locks of all daemons of the node, whatever their state directories, and is root's alone: what a
// sandbox on the host's network could take, such as an abstract socket, it could take while the daemon restarts.
const ownDir = "/run/gantry-net"

// own makes this the only process that changes the network, as long as it lives: two would give the same addresses and
// take each other's links and firewall for leftovers. The lock goes with the process, however that ends. The file
// stays: to remove it would let two processes lock two files of one name.
//
// Errors: errdefs.ErrFailedPrecondition when another process owns the network.
func (n *Network) own() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.owner != nil {
		return nil
	}
	owner, err := lockNetwork(n.config.Bridge)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("another daemon has the embedded network on bridge %s, expected one of its own: %w",
			n.config.Bridge, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return fmt.Errorf("own the embedded network: %w", err)
	}
	n.owner = owner
	return nil
}

// lockNetwork locks a file for the bridge of that name in the network namespace of the thread: links belong to one.
func lockNetwork(bridge string) (*os.File, error) {
	var namespace unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &namespace); err != nil {
		return nil, fmt.Errorf("find network namespace: %w", err)
	}
	if err := os.MkdirAll(ownDir, 0o700); err != nil {
		return nil, err
	}
	name := filepath.Join(ownDir, fmt.Sprintf("%s.%d", bridge, namespace.Ino))
	file, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("lock %s: %w", file.Name(), err)
	}
	return file, nil
}
