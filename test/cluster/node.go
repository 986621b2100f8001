package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/test/e2e/node"
	"github.com/gantry-cri/gantry/test/kubelet"
)

// nodeLink is the node's own interface.
const nodeLink = "eth0"

// beNode is a node: gantryd, a kubelet and a kube-proxy, which are started again when they end. It is run in
// namespaces of its own, with the files of the node in node.Dir.
func beNode(ctx context.Context) error {
	b, err := os.ReadFile(memberFile(node.Dir()))
	if err != nil {
		return err
	}
	var m member
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	m.dir = node.Dir()
	if err := m.furnish(ctx); err != nil {
		return fmt.Errorf("%s: %w", m.Name, err)
	}
	if err := m.run(ctx); err != nil {
		return fmt.Errorf("%s: %w", m.Name, err)
	}
	return nil
}

// furnish makes the namespaces a machine of the node's own.
func (m *member) furnish(ctx context.Context) error {
	if err := unix.Sethostname([]byte(m.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := kubelet.FurnishDirectories(m.dir); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("mount /dev/shm: %w", err)
	}
	if m.BootID != "" {
		file := filepath.Join(m.dir, "boot_id")
		if err := os.WriteFile(file, []byte(m.BootID+"\n"), 0o444); err != nil {
			return err
		}
		if err := unix.Mount(file, "/proc/sys/kernel/random/boot_id", "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("cover boot id: %w", err)
		}
	}
	return m.address(ctx)
}

// address waits for the node's interface, which the supervisor makes, and gives it its address.
func (m *member) address(ctx context.Context) error {
	link, err := netlink.LinkByName(nodeLink)
	for ; err != nil; link, err = netlink.LinkByName(nodeLink) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", nodeLink, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	address, err := netlink.ParseAddr(m.IP + "/24")
	if err != nil {
		return err
	}
	if err := errors.Join(netlink.AddrAdd(link, address), netlink.LinkSetUp(link)); err != nil {
		return fmt.Errorf("give %s its address: %w", nodeLink, err)
	}
	return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(controlIP)})
}

// run starts the programs and keeps them running, as systemd would.
func (m *member) run(ctx context.Context) error {
	gantry, err := m.gantry()
	if err != nil {
		return err
	}
	agent, err := m.kubelet()
	if err != nil {
		return err
	}
	if err := gantry.Start(ctx); err != nil {
		return err
	}
	if err := agent.Start(ctx); err != nil {
		return err
	}
	// Each by itself: a kubelet that comes back does so only with gantryd.
	go keep(ctx, gantry.Running, gantry.Start)
	go keep(ctx, agent.Running, agent.Start)
	keep(ctx, func() bool { return false }, m.runProxy)
	return nil
}

// keep starts a program whenever it does not run.
func keep(ctx context.Context, running func() bool, start func(context.Context) error) {
	for ctx.Err() == nil {
		if !running() {
			if err := start(ctx); err != nil {
				fmt.Println(err)
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (m *member) gantry() (*node.Node, error) {
	dir := filepath.Join(m.dir, "gantry")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return node.New(node.Options{
		Dir: dir, Bin: m.Bin, Tools: m.Tools, Address: "unix:///run/gantry/gantry.sock", State: "/run/gantry",
		EmbeddedNetwork: true, Mirror: registryAt, Verbosity: 4,
		Config: fmt.Sprintf("[embedded_network]\ncluster_ranges = [%q]\n", clusterCIDR),
	})
}

func (m *member) kubelet() (*kubelet.Kubelet, error) {
	ca := &authority{dir: m.PKI}
	dir := filepath.Join(m.dir, "agent")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	config, err := ca.client("admin")
	if err != nil {
		return nil, err
	}
	return kubelet.New(kubelet.Options{
		Name: m.Name, IP: m.IP, Dir: dir, Tools: m.Tools, Endpoint: "unix:///run/gantry/gantry.sock",
		Kubeconfig: ca.kubeconfigFile(m.Name), Verbosity: 2,
		Client: &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: config}},
		Config: map[string]string{
			"address": "0.0.0.0",
			"authentication": fmt.Sprintf("{anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %q}}",
				ca.crt("ca")),
			"authorization": "{mode: Webhook}",
			"readOnlyPort":  "0",
			"tlsCertFile":   ca.crt(m.Name), "tlsPrivateKeyFile": ca.keyFile(m.Name),
			"nodeStatusUpdateFrequency": "5s",
		},
	})
}

// runProxy runs a kube-proxy until it ends.
func (m *member) runProxy(ctx context.Context) error {
	dir := filepath.Join(m.dir, "agent")
	config := fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: %q}
hostnameOverride: %s
mode: nftables
clusterCIDR: %s
detectLocalMode: ClusterCIDR
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s} # those are the machine's
`, (&authority{dir: m.PKI}).kubeconfigFile("kube-proxy"), m.Name, clusterCIDR)
	file := filepath.Join(dir, "kube-proxy.yaml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(dir, "kube-proxy.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, filepath.Join(m.Tools, "kube-proxy"), "--config="+file)
	cmd.Stdout, cmd.Stderr = log, log
	return cmd.Run()
}
