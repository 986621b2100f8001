package kubelet

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NodeIP is the address of the node. It is that of a bridge without ports: nothing leaves the network namespace.
const NodeIP = "192.0.2.10"

const nodeLink = "node0"

// Furnish gives an isolated program (node.Isolate) what a kubelet needs of its machine: a /var of its own that is thrown
// away, with /var/lib/kubelet and /var/log on the disk that dir is on, and an address for the node. dir has to exist.
func Furnish(dir string) error {
	if err := FurnishDirectories(dir); err != nil {
		return err
	}
	return addNodeAddress()
}

// FurnishDirectories is Furnish without the address. What is in dir from an earlier time is there again.
func FurnishDirectories(dir string) error {
	upper, work := filepath.Join(dir, "var"), filepath.Join(dir, "var.work")
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	overlay := fmt.Sprintf("lowerdir=/var,upperdir=%s,workdir=%s", upper, work)
	if err := unix.Mount("overlay", "/var", "overlay", 0, overlay); err != nil {
		return fmt.Errorf("mount overlay on /var: %w", err)
	}
	for _, target := range []string{"/var/lib/kubelet", "/var/log"} {
		source := filepath.Join(dir, filepath.Base(target))
		if err := errors.Join(os.MkdirAll(source, 0o755), os.MkdirAll(target, 0o755)); err != nil {
			return err
		}
		if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s on %s: %w", source, target, err)
		}
	}
	return nil
}

func addNodeAddress() error {
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: nodeLink}}
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("add link %s: %w", nodeLink, err)
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(NodeIP).To4(), Mask: net.CIDRMask(24, 32)}}
	if err := netlink.AddrAdd(link, address); err != nil {
		return fmt.Errorf("add address %s: %w", NodeIP, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", nodeLink, err)
	}
	return nil
}
