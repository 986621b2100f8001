package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/gantry-cri/gantry/test/e2e/node"
)

// member is a node as the supervisor has it. What is exported is what the node's own program is told.
type member struct {
	Name, IP string
	// Bin and Tools hold the programs, PKI the certificates.
	Bin, Tools, PKI string
	// BootID stands for the kernel's, unless it is empty.
	BootID string

	dir    string
	link   string // the bridge's port
	cmd    *exec.Cmd
	exited chan struct{}
	// cidr is the range of its pods, once it has joined.
	cidr *net.IPNet
}

func (s *supervisor) newMember(number int) (*member, error) {
	name := fmt.Sprintf("node%d", number)
	m := &member{
		Name: name, IP: fmt.Sprintf(nodeIPs, firstNodeIP+number-1), Bin: s.bin, Tools: s.tools, PKI: s.ca.dir,
		dir: filepath.Join(node.Dir(), name), link: name,
	}
	return m, errors.Join(
		s.ca.issue(name, "system:node:"+name, "system:nodes", m.IP), s.ca.kubeconfig(name, s.control.URL()),
		os.MkdirAll(m.dir, 0o755),
	)
}

// start starts the node's program in namespaces of its own and connects these with the bridge. It does not wait.
func (m *member) start() error {
	if m.cmd != nil {
		return fmt.Errorf("%s runs", m.Name)
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := os.WriteFile(memberFile(m.dir), b, 0o644); err != nil {
		return err
	}
	cmd, err := node.Nest(m.dir, "be-node")
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		cmd.Wait()
		close(exited)
	}()
	m.cmd, m.exited = cmd, exited
	return m.connect()
}

func memberFile(dir string) string { return filepath.Join(dir, "node.json") }

// connect makes the pair of links between the bridge and the node, which waits for its end.
func (m *member) connect() error {
	parent, err := netlink.LinkByName(bridge)
	if err != nil {
		return err
	}
	if old, err := netlink.LinkByName(m.link); err == nil {
		netlink.LinkDel(old) // of a namespace that has not quite ended
	}
	pair := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: m.link, MasterIndex: parent.Attrs().Index}, PeerName: nodeLink,
		PeerNamespace: netlink.NsPid(m.cmd.Process.Pid),
	}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("connect %s: %w", m.Name, err)
	}
	return netlink.LinkSetUp(pair)
}

// kill ends all processes of the node at once. Its files stay.
func (m *member) kill() error {
	if m.cmd == nil {
		return fmt.Errorf("%s does not run", m.Name)
	}
	m.cmd.Process.Kill()
	<-m.exited
	m.cmd = nil
	node.Unnest(m.dir)
	return nil
}

// newBoot makes the next start one of another boot.
func (m *member) newBoot() {
	var b [16]byte
	rand.Read(b[:]) // never fails
	m.BootID = fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// join waits until the API server knows the node, and routes between its pods and all others, as a cloud's route
// controller does.
func (s *supervisor) join(ctx context.Context, m *member) error {
	err := m.retry(ctx, "register", func() (err error) {
		if m.cidr == nil {
			m.cidr, err = s.podCIDR(ctx, m.Name)
		}
		return err
	})
	if err != nil {
		return err
	}
	// A node that was killed has its range already, but may have no address yet.
	return m.retry(ctx, "be routed to", func() error {
		errs := []error{addRoute(0, m)}
		for _, other := range s.nodes {
			if other != m && other.cidr != nil && other.cmd != nil {
				errs = append(errs, addRoute(m.cmd.Process.Pid, other), addRoute(other.cmd.Process.Pid, m))
			}
		}
		return errors.Join(errs...)
	})
}

// retry tries until there is no error, the node has ended or ctx is done.
func (m *member) retry(ctx context.Context, what string, try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-m.exited:
			return fmt.Errorf("%s ended", m.Name)
		case <-ctx.Done():
			return fmt.Errorf("wait for %s to %s: %w: %w", m.Name, what, ctx.Err(), err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// podCIDR is the range that the controller manager gave a node.
func (s *supervisor) podCIDR(ctx context.Context, node string) (*net.IPNet, error) {
	b, err := s.control.Get(ctx, s.client, "/api/v1/nodes/"+node)
	if err != nil {
		return nil, err
	}
	var object struct{ Spec struct{ PodCIDR string } }
	if err := json.Unmarshal(b, &object); err != nil {
		return nil, err
	}
	_, cidr, err := net.ParseCIDR(object.Spec.PodCIDR)
	return cidr, err
}

// addRoute adds the route to a node's pods in the network namespace of a process; 0 is this one.
func addRoute(pid int, to *member) error {
	ns, err := netns.Get()
	if pid != 0 {
		ns, err = netns.GetFromPid(pid)
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	handle, err := netlink.NewHandleAt(ns)
	if err != nil {
		return err
	}
	defer handle.Close()
	if err := handle.RouteReplace(&netlink.Route{Dst: to.cidr, Gw: net.ParseIP(to.IP)}); err != nil {
		return fmt.Errorf("route to %s's pods: %w", to.Name, err)
	}
	return nil
}
