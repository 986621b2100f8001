// Package cni is the network of a sandbox: it joins the sandbox's network namespace to the node's network by running
// CNI plugins, keeps on disk what it needs to undo that, and says whether the node has a usable network.
//
// It is not a network plugin, it makes no namespaces, and it knows nothing of sandboxes beyond an id, a path and the
// configuration that the kubelet sent. It is the only package that imports libcni.
package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
	"golang.org/x/sync/errgroup"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/cni/embedded"
	"github.com/gantry-cri/gantry/trace"
)

// ifName is the interface of every sandbox; the kubelet and many plugins count on the name.
const ifName = "eth0"

// retainParallel bounds the attachments that Retain takes down at a time. After a reboot there may be hundreds, and
// one hung plugin must not make all the others wait.
const retainParallel = 4

// Config says where the network configuration and its plugins are. The zero value of a field other than CacheDir is
// replaced by the default that its comment names.
type Config struct {
	// ConfDir holds the network configuration: the first of *.conflist, *.conf and *.json in lexical order counts.
	// Default /etc/cni/net.d. Not used when Embedded.
	ConfDir string
	// BinDirs are searched for plugins, in order. Default /opt/cni/bin.
	BinDirs []string
	// CacheDir is where attachments are recorded. Must survive a restart of the daemon. Required.
	CacheDir string

	// Embedded selects the built-in network of package embedded instead of ConfDir. It needs no plugins.
	Embedded bool
	// EmbeddedName is the name of the built-in network. Default gantry-default.
	EmbeddedName string
	// EmbeddedBridge is the name of the interface with the gateway's addresses, and of the nftables table; at most 15
	// bytes. Default gantry0.
	EmbeddedBridge string
	// EmbeddedSubnet is its IPv4 subnet as long as SetPodCIDR told no other. Default 10.85.0.0/16.
	EmbeddedSubnet string
	// EmbeddedSubnet6 is the same for IPv6, "none", or "auto": a unique local /64 chosen once, while the kernel has IPv6
	// enabled. Default auto.
	EmbeddedSubnet6 string
	// EmbeddedClusterRanges are those of the pods of all nodes, where somebody routes between these: pods reach them with
	// their own address. Everything else that is no pod of this node is masqueraded. Default none.
	EmbeddedClusterRanges []string

	// AddTimeout bounds one Attach, DelTimeout one Detach, whatever the caller's context allows. Default 60 s each.
	AddTimeout, DelTimeout time.Duration
	// Poll is how often the configuration is looked at for Status; Attach always looks. Default 2 s.
	Poll time.Duration
}

// Network attaches sandboxes to the node's network. All methods may be called from several goroutines; no lock is held
// while a plugin runs, so that sandboxes do not wait for each other.
//
// What it persists, below Config.CacheDir: attachments/<sandboxID>.json, written before the first plugin runs, extended
// by each plugin's result, and deleted after the last one undid its work; results/, which is libcni's; embedded.json,
// the ranges of the embedded network.
type Network struct {
	config   Config
	records  recordDir
	loopback func(netns string) error // brings lo up; tests without privileges replace it
	embedded *embedded.Network        // never nil; attaches only if Config.Embedded

	loading sync.Mutex // serialises loads of the configuration; guards no field
	current atomic.Pointer[state]
	probed  atomic.Pointer[probe]

	stop context.CancelFunc
	done sync.WaitGroup
}

// Open loads the network configuration and begins to watch it. A configuration that is missing or wrong is no error
// here: Status tells, and a later one is picked up.
//
// Errors: errdefs.ErrInvalidArgument for a Config that cannot work, or what making CacheDir gave.
func Open(config Config) (*Network, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	records, err := openRecordDir(filepath.Join(config.CacheDir, "attachments"))
	if err != nil {
		return nil, fmt.Errorf("open attachment records: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	n := &Network{config: config, records: records, loopback: loopbackUp, stop: stop}
	if err := n.openEmbedded(); err != nil {
		stop()
		return nil, err
	}
	n.refresh()
	n.done.Go(func() { n.watch(ctx) })
	if !config.Embedded {
		n.done.Go(func() { n.probeStatus(ctx) })
	}
	return n, nil
}

// Close ends the watch. Attachments stay as they are.
func (n *Network) Close() {
	n.stop()
	n.done.Wait()
	n.embedded.Close()
}

// Attach adds the interfaces of a sandbox to the network namespace at the path netns, brings its loopback up and
// returns the addresses of eth0, the primary one first. It undoes nothing: after an error the caller calls Detach.
//
// Errors: errdefs.ErrInvalidArgument for a port mapping or annotation that makes no sense, ErrUnavailable while there
// is no usable network configuration, ErrAlreadyExists for a sandbox whose attachment is still recorded,
// context.DeadlineExceeded when a plugin took too long; else the plugin's message. On the embedded network also
// ErrResourceExhausted when there is no free address, and ErrFailedPrecondition when another sandbox has the host port.
func (n *Network) Attach(
	ctx context.Context, sandboxID, netns string, config *runtime.PodSandboxConfig,
) ([]string, error) {
	if err := validateID(sandboxID); err != nil {
		return nil, err
	}
	if n.config.Embedded {
		return n.attachEmbedded(ctx, sandboxID, netns, config)
	}
	ports, err := portMappings(config)
	if err != nil {
		return nil, err
	}
	list, err := n.usable()
	if err != nil {
		return nil, err
	}
	rec, err := newRecord(sandboxID, netns, list, config)
	if err != nil {
		return nil, err
	}
	if len(ports) > 0 && rec.CapabilityArgs["portMappings"] == nil {
		klog.InfoS("Host ports are ignored: no plugin of the network takes them", "network", list.Name, "sandbox", sandboxID)
	}
	steps := trace.Steps(ctx)
	defer steps.End()
	// From here on a crash leaves something to undo, so the record comes first.
	steps.Next("write attachment record")
	held, err := n.records.create(rec)
	if err != nil {
		return nil, fmt.Errorf("record attachment: %w", err)
	}
	defer held.Close()
	steps.Next("bring loopback up")
	if err := n.loopback(netns); err != nil {
		return nil, fmt.Errorf("bring loopback up: %w", err)
	}
	ctx, cancel := context.WithTimeout(steps.Next("run plugins"), n.config.AddTimeout)
	defer cancel()
	result, err := n.add(ctx, held, rec, list)
	if err != nil {
		return nil, err
	}
	return addresses(result)
}

// Detach undoes Attach with the configuration, the arguments and the results that Attach recorded, whatever is
// configured now. netns is the path of the namespace, "" when the caller knows none; if there is no namespace, the one
// that Attach recorded is used as long as it lives, since plugins undo less without. It is idempotent, safe without
// Attach and after an Attach that failed half-way. When a plugin fails, the record stays and Detach can be called
// again.
//
// A record that cannot be read is replaced by what libcni cached or by the present configuration; it is deleted when
// that worked, and the error that tells of it comes only once.
func (n *Network) Detach(ctx context.Context, sandboxID, netns string, config *runtime.PodSandboxConfig) error {
	if err := validateID(sandboxID); err != nil {
		return err
	}
	return n.detach(ctx, sandboxID, netns, config)
}

// Retain detaches what is recorded for sandboxes that are not in sandboxIDs, and has the plugins collect what belongs
// to none of them when the configuration is of CNI version 1.1.0 or later. It is for recovery: call it before the first
// Attach, whose sandbox it could not know. The error joins what went wrong; what failed stays recorded.
func (n *Network) Retain(ctx context.Context, sandboxIDs []string) error {
	recorded, err := n.records.list()
	if err != nil {
		return fmt.Errorf("list attachment records: %w", err)
	}
	keep := make(map[string]bool, len(sandboxIDs))
	for _, id := range sandboxIDs {
		keep[id] = true
	}
	errs := make([]error, len(recorded))
	var group errgroup.Group
	group.SetLimit(retainParallel)
	for i, id := range recorded {
		if keep[id] {
			continue
		}
		group.Go(func() error {
			if err := n.detach(ctx, id, "", nil); err != nil {
				errs[i] = fmt.Errorf("detach sandbox %s: %w", id, err)
			}
			return nil
		})
	}
	_ = group.Wait() // the errors are in errs: one failure must not cancel the others
	// Whoever is still recorded has a link, also when nobody can read what else it has.
	if recorded, err = n.records.list(); err != nil {
		return errors.Join(append(errs, fmt.Errorf("list attachment records: %w", err))...)
	}
	errs = append(errs, n.collect(ctx, sandboxIDs), n.embedded.Sweep(recorded...), n.collectHostLocal())
	return errors.Join(errs...)
}

// detach takes the attachment of a sandbox down, in the namespace at netns or else in the recorded one.
func (n *Network) detach(ctx context.Context, sandboxID, netns string, config *runtime.PodSandboxConfig) error {
	ctx, cancel := context.WithTimeout(ctx, n.config.DelTimeout)
	defer cancel()
	held, rec, recordErr := n.records.hold(ctx, sandboxID)
	if held == nil {
		return recordErr
	}
	defer held.Close()
	if recordErr != nil {
		rec = n.substitute(sandboxID, config)
	}
	if err := n.undo(ctx, held, sandboxID, netns, rec); err != nil {
		return err
	}
	if err := n.records.remove(sandboxID); err != nil {
		return fmt.Errorf("delete attachment record: %w", err)
	}
	n.releaseEmbedded(sandboxID)
	return recordErr
}

// undo takes away what an attachment made, by the record or what was found in its place, which may be nil.
func (n *Network) undo(ctx context.Context, held *os.File, sandboxID, netns string, rec *record) error {
	if rec == nil || rec.Embedded != nil {
		return n.detachEmbedded(ctx, sandboxID, rec)
	}
	live := liveNetNS(netns)
	if live == "" {
		live = liveNetNS(rec.lastNetNS())
	}
	return n.del(ctx, held, rec, live)
}

// collect has the plugins drop what belongs to no attachment. Attachments that are still recorded count as valid beside
// the wanted ones: Detach owns those.
func (n *Network) collect(ctx context.Context, sandboxIDs []string) error {
	list := n.refresh().list
	if list == nil || !atLeast(list.CNIVersion, "1.1.0") {
		return nil
	}
	recorded, err := n.records.list()
	if err != nil {
		return fmt.Errorf("list attachment records: %w", err)
	}
	// Not nil: an empty list means that nothing is valid, an absent one is an error to plugins.
	valid := []types.GCAttachment{}
	seen := map[string]bool{}
	for _, id := range append(recorded, sandboxIDs...) {
		if !seen[id] {
			seen[id] = true
			valid = append(valid, types.GCAttachment{ContainerID: id, IfName: ifName})
		}
	}
	ctx, cancel := context.WithTimeout(ctx, n.config.DelTimeout)
	defer cancel()
	if err := n.libcni(&pluginExec{}).GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid}); err != nil {
		return fmt.Errorf("collect garbage of network %q: %w", list.Name, err)
	}
	return nil
}

func validateID(sandboxID string) error {
	// The id becomes a file name and an argument of plugins.
	if err := utils.ValidateContainerID(sandboxID); err != nil {
		return fmt.Errorf("sandbox id %q: %s: %w", sandboxID, err.Msg, errdefs.ErrInvalidArgument)
	}
	return nil
}

// kindOf gives a plugin's 'try again later' the error kind that callers know.
func kindOf(err error) error {
	var pluginErr *types.Error
	if errors.As(err, &pluginErr) && pluginErr.Code == types.ErrTryAgainLater {
		return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	return err
}
