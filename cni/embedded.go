package cni

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/cni/embedded"
	"github.com/gantry-cri/gantry/trace"
)

// The values of Config.EmbeddedSubnet6 that are no subnet.
const (
	autoSubnet6 = "auto"
	noSubnet6   = "none"
)

// openEmbedded makes the embedded network and tells it who is attached. It is there also when it is not enabled, for
// those that are attached from before.
func (n *Network) openEmbedded() error {
	config := embedded.Config{
		Enabled: n.config.Embedded, Bridge: n.config.EmbeddedBridge,
		StateFile: filepath.Join(n.config.CacheDir, "embedded.json"), Taken: n.config.takenByHostLocal,
	}
	if n.config.Embedded {
		config.Subnet = netip.MustParsePrefix(n.config.EmbeddedSubnet).Masked() // withDefaults checked it
		config.AutoSubnet6 = n.config.EmbeddedSubnet6 == autoSubnet6
		if p, err := netip.ParsePrefix(n.config.EmbeddedSubnet6); err == nil {
			config.Subnet6 = p.Masked()
		}
		for _, text := range n.config.EmbeddedClusterRanges {
			config.ClusterRanges = append(config.ClusterRanges, netip.MustParsePrefix(text).Masked())
		}
	}
	var err error
	if n.embedded, err = embedded.New(config); err != nil {
		return err
	}
	records, err := n.records.embedded()
	if err != nil {
		return fmt.Errorf("list attachment records: %w", err)
	}
	slices.SortFunc(records, func(a, b *record) int { return a.Created.Compare(b.Created) })
	for _, rec := range records {
		n.embedded.Adopt(rec.Embedded, rec.BootID == bootID())
	}
	return nil
}

// embeddedReady makes what all sandboxes share and returns why none can be attached, if that is so.
func (n *Network) embeddedReady() error {
	if err := n.embedded.Ensure(); err != nil {
		return err
	}
	return n.embedded.Placed()
}

// attachEmbedded is Attach on the embedded network.
func (n *Network) attachEmbedded(
	ctx context.Context, sandboxID, netns string, config *runtime.PodSandboxConfig,
) ([]string, error) {
	ports, err := embeddedPorts(config)
	if err != nil {
		return nil, err
	}
	limits, err := bandwidth(config.GetAnnotations())
	if err != nil {
		return nil, err
	}
	steps := trace.Steps(ctx)
	defer steps.End()
	steps.Next("ensure what pods share")
	if err := n.embeddedReady(); err != nil {
		return nil, fmt.Errorf("network is not ready: %w: %w", err, errdefs.ErrUnavailable)
	}
	steps.Next("reserve addresses")
	a, err := n.embedded.Reserve(sandboxID, embedded.Request{
		Ports: ports, Limits: embedded.Limits{Ingress: limits["ingressRate"], Egress: limits["egressRate"]},
		NoIPv6: disablesIPv6(config.GetLinux().GetSysctls()),
	})
	if err != nil {
		return nil, err
	}
	steps.Next("write attachment record")
	// The record comes before the effects. It is also what keeps the addresses from being given twice.
	held, err := n.records.create(newEmbeddedRecord(a, n.config.EmbeddedName, netns))
	if err != nil {
		// Its host ports may be in the table by now: somebody else's Ensure makes it anew from all that is reserved.
		err = errors.Join(fmt.Errorf("record attachment: %w", err), n.embedded.Detach(context.WithoutCancel(ctx), a))
		n.embedded.Release(a)
		return nil, err
	}
	defer held.Close()
	ctx, cancel := context.WithTimeout(steps.Next("attach to the embedded network"), n.config.AddTimeout)
	defer cancel()
	if err := n.embedded.Attach(ctx, a, netns); err != nil {
		return nil, err
	}
	ips := make([]string, len(a.Addresses))
	for i, address := range a.Addresses {
		ips[i] = address.IP.String()
	}
	return ips, nil
}

// disablesIPv6 tells whether a sandbox has a namespace in which no IPv6 address can be added. The parameters are set
// when the namespace is made.
func disablesIPv6(sysctls map[string]string) bool {
	for name, value := range sysctls {
		switch strings.ReplaceAll(name, "/", ".") {
		case "net.ipv6.conf.all.disable_ipv6", "net.ipv6.conf.default.disable_ipv6":
			if value != "0" {
				return true
			}
		}
	}
	return false
}

// embeddedPorts translates the host ports.
func embeddedPorts(config *runtime.PodSandboxConfig) ([]embedded.Port, error) {
	mappings, err := portMappings(config)
	if err != nil {
		return nil, err
	}
	var ports []embedded.Port
	for _, m := range mappings {
		p := embedded.Port{
			Protocol: m.Protocol, HostPort: uint16(m.HostPort), ContainerPort: uint16(m.ContainerPort),
		}
		if m.HostIP != "" {
			ip, err := netip.ParseAddr(m.HostIP)
			if err != nil {
				return nil, err
			}
			p.HostIP = ip.Unmap().WithZone("")
		}
		ports = append(ports, p)
	}
	return ports, nil
}

// detachEmbedded undoes attachEmbedded. rec is nil when the record could not be read.
func (n *Network) detachEmbedded(ctx context.Context, sandboxID string, rec *record) error {
	a := n.embedded.Held(sandboxID)
	if a == nil && rec != nil {
		a = rec.Embedded
	}
	if a == nil {
		return n.embedded.Forget(sandboxID)
	}
	return n.embedded.Detach(ctx, a)
}

// releaseEmbedded gives the addresses of a sandbox back. Preconditions: its record is deleted.
func (n *Network) releaseEmbedded(sandboxID string) {
	if a := n.embedded.Held(sandboxID); a != nil {
		n.embedded.Release(a)
	}
}

// SetPodCIDR tells the embedded network the node's range of addresses, as the kubelet gives it: "10.244.1.0/24", or one
// of each family with a comma between. It is kept over restarts; sandboxes keep the addresses that they have. A
// configured network has ranges of its own, so for that it does nothing.
//
// Errors: errdefs.ErrInvalidArgument for what is no such text.
func (n *Network) SetPodCIDR(cidr string) error {
	if err := n.embedded.SetPodCIDR(cidr); err != nil {
		return err
	}
	n.refresh() // Status may have waited for it
	return nil
}

// hostLocalDir is where the host-local plugin, on which the embedded network once was, keeps addresses in use.
func (c Config) hostLocalDir() string { return filepath.Join(c.CacheDir, "ipam", c.EmbeddedName) }

func (c Config) takenByHostLocal(ip netip.Addr) bool {
	_, err := os.Lstat(filepath.Join(c.hostLocalDir(), ip.String()))
	return err == nil
}

// collectHostLocal removes the directory of the host-local plugin once no attachment is by plugins any more.
func (n *Network) collectHostLocal() error {
	if _, err := os.Lstat(n.config.hostLocalDir()); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	ids, err := n.records.list()
	if err != nil {
		return err
	}
	records, err := n.records.embedded()
	if err != nil || len(records) < len(ids) {
		return err
	}
	klog.InfoS("No sandbox is attached by plugins any more, forgetting their addresses", "dir", n.config.hostLocalDir())
	return os.RemoveAll(n.config.hostLocalDir())
}

// Leftovers lists what the embedded network has on the host: the paths of attachment records, the name of the bridge
// and "nftables table <name>". It is empty after Cleanup.
func (n *Network) Leftovers(context.Context) ([]string, error) {
	ids, err := n.records.list()
	if err != nil {
		return nil, fmt.Errorf("list attachment records: %w", err)
	}
	var found []string
	for _, id := range ids {
		found = append(found, n.records.file(id))
	}
	if !n.config.Embedded {
		return found, nil
	}
	shared, err := n.embedded.Leftovers()
	return append(found, shared...), err
}

// Cleanup removes the bridge, the nftables table and the routes of the embedded network; for a configured one it does
// nothing. Forwarding stays switched on: others may count on it by now. Status and Attach are over with it.
//
// Errors: errdefs.ErrFailedPrecondition while a sandbox is attached.
func (n *Network) Cleanup(context.Context) error {
	if !n.config.Embedded {
		return nil
	}
	ids, err := n.records.list()
	if err != nil {
		return fmt.Errorf("list attachment records: %w", err)
	}
	if len(ids) > 0 {
		return fmt.Errorf("sandbox %s and %d more are attached to %s: %w",
			ids[0], len(ids)-1, n.config.EmbeddedBridge, errdefs.ErrFailedPrecondition)
	}
	n.stop()
	n.done.Wait() // the watch would make it again
	return n.embedded.Remove()
}
