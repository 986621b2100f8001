package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/cni"
	"github.com/gantry-cri/gantry/cri"
	"github.com/gantry-cri/gantry/cri/operator"
	"github.com/gantry-cri/gantry/cri/otlp"
	"github.com/gantry-cri/gantry/imageservice"
	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/sandbox/keeper"
	"github.com/gantry-cri/gantry/sandbox/stats"
	"github.com/gantry-cri/gantry/trace"
)

// helloTimeout bounds asking the keeper who it is.
const helloTimeout = 2 * time.Second

// ownPlugins is where the CNI plugins of an installation are, below its prefix.
const ownPlugins = "lib/gantry/cni"

// daemon holds the parts, in the order in which they are opened; close goes backwards.
type daemon struct {
	config  *Config
	keeper  string // path of the keeper's binary
	started time.Time

	images  *imageservice.Service
	network *cni.Network
	manager *sandbox.Manager
	sampler *stats.Sampler
	spans   *otlp.Exporter // nil unless spans are sent
	cri     *cri.Server
	server  *grpc.Server

	cadvisor *cadvisorServer // nil while cAdvisor is not served
}

// openImages opens the image store.
func (d *daemon) openImages(ctx context.Context) (err error) {
	d.images, err = imageservice.Open(ctx, imageservice.Config{
		Root:                   filepath.Join(d.config.Root, "images"),
		RegistryConfigDir:      d.config.Image.RegistryConfigDir,
		MaxConcurrentDownloads: d.config.Image.MaxConcurrentDownloads,
		PullProgressTimeout:    d.config.Image.PullProgressTimeout.Value(),
		PinnedImages:           d.config.Image.PinnedImages,
	})
	return err
}

// openNetwork loads the network configuration. That there is none is no error: host-network pods do without.
func (d *daemon) openNetwork(context.Context) (err error) {
	d.network, err = cni.Open(cni.Config{
		ConfDir:        d.config.CNI.ConfDir,
		BinDirs:        d.pluginDirs(),
		CacheDir:       filepath.Join(d.config.Root, "cni"),
		AddTimeout:     d.config.CNI.AttachTimeout.Value(),
		DelTimeout:     d.config.CNI.DetachTimeout.Value(),
		Embedded:       d.config.EmbeddedNetwork.Enabled,
		EmbeddedBridge: d.config.EmbeddedNetwork.Bridge,
		EmbeddedSubnet: d.config.EmbeddedNetwork.Subnet,

		EmbeddedSubnet6:       d.config.EmbeddedNetwork.Subnet6,
		EmbeddedClusterRanges: d.config.EmbeddedNetwork.ClusterRanges,
	})
	if err != nil {
		return fmt.Errorf("open network: %w", err)
	}
	return nil
}

// pluginDirs are where CNI plugins are looked for: the configured directory, which network add-ons write to, and then
// that of the plugins which were installed with this daemon.
func (d *daemon) pluginDirs() []string {
	dirs := []string{d.config.CNI.BinDir}
	if self, err := os.Executable(); err == nil {
		dirs = append(dirs, filepath.Join(filepath.Dir(self), "..", ownPlugins))
	}
	return dirs
}

// openManager joins or spawns the keeper and recovers every sandbox and container.
func (d *daemon) openManager(ctx context.Context) (err error) {
	d.manager, err = sandbox.Open(ctx, sandbox.Config{
		Root:         d.config.Root,
		State:        d.config.State,
		CgroupDriver: cgroupDriver(d.config.CgroupDriver),
		CgroupParent: d.config.CgroupParent,
		Keeper:       d.keeper,
		Build:        buildVersion(),
		Images:       d.images,
		Layers:       d.images,
		Network:      d.network,
		Plugins:      !d.config.EmbeddedNetwork.Enabled,

		Handlers:           d.config.handlers(),
		Rlimits:            d.config.rlimits(),
		CDISpecDirs:        d.config.CDI.SpecDirs,
		MakeMissingSources: d.config.MakeMissingHostPaths,
	})
	if err != nil {
		return fmt.Errorf("recover sandboxes: %w", err)
	}
	return nil
}

// openSampler starts to sample what sandboxes and containers use.
func (d *daemon) openSampler(context.Context) (err error) {
	d.sampler, err = stats.New(stats.Config{
		Source: d.manager, Images: d.images, Period: d.config.Stats.Period.Value(),
		ContainerForm: cri.ContainerForm, SandboxForm: cri.SandboxForm,
	})
	return err
}

// openSpans makes ready to send spans, if that is configured.
func (d *daemon) openSpans(ctx context.Context) (err error) {
	if d.config.Tracing.Endpoint == "" {
		return nil
	}
	d.spans, err = otlp.Open(ctx, otlp.Config{
		Endpoint: d.config.Tracing.Endpoint,
		Sampling: d.config.Tracing.Sampling,
		Version:  buildVersion(),
		Skip:     func(method string) bool { return !cri.Traced(method) },
	})
	return err
}

// openServer makes the gRPC server with the CRI and the operator's service.
func (d *daemon) openServer(context.Context) (err error) {
	streamTLS, err := streamTLSConfig(&d.config.Stream)
	if err != nil {
		return err
	}
	var ended func(context.Context, *trace.Call)
	if d.spans != nil {
		ended = d.spans.Ended
	}
	timelines := trace.NewLog(ended)
	d.cri, err = cri.New(cri.Config{
		Runtime:        d.manager,
		Images:         criImages{d.images},
		Network:        d.network,
		Stats:          d.sampler,
		Trace:          timelines,
		RuntimeVersion: runtimeVersion(buildVersion()),
		Handlers:       d.config.handlerNames(),
		UserNamespaces: d.manager.UserNamespaces(),
		Info:           d.shownConfig(),
		StreamAddress:  d.config.Stream.Address, StreamTLS: streamTLS,
		StreamIdleTimeout: d.config.Stream.IdleTimeout.Value(),
	})
	if err != nil {
		return err
	}
	options := d.cri.ServerOptions()
	if d.spans != nil {
		options = append(options, d.spans.ServerOption())
	}
	d.server = grpc.NewServer(options...)
	d.cri.Register(d.server)
	operator.New(operatorImages{d.images}, timelines, d.info).Register(d.server)
	return nil
}

// shownConfig is what a verbose Status tells. critest looks for the disk of the containers below stateDir. Where the
// daemon is in containerd's place there is also the one thing that others read of containerd's configuration: minikube
// takes the cgroup driver from there, and not from the CRI.
func (d *daemon) shownConfig() map[string]any {
	shown := map[string]any{"stateDir": d.config.Root, "config": d.config}
	if d.config.Address == defaultConfig().Cadvisor.Address {
		options := map[string]any{"SystemdCgroup": d.manager.CgroupDriver() == sandbox.DriverSystemd}
		shown["containerd"] = map[string]any{"runtimes": map[string]any{"runc": map[string]any{"options": options}}}
	}
	return shown
}

// close closes what was opened. Containers go on; the keeper is asked to end if none lives.
func (d *daemon) close() {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	report := func(part string, err error) {
		if err != nil {
			klog.ErrorS(err, "Closing failed", "part", part)
		}
	}
	if d.cadvisor != nil {
		d.cadvisor.close()
	}
	if d.cri != nil {
		report("streams", d.cri.Close())
	}
	if d.spans != nil {
		report("spans", d.spans.Close(ctx))
	}
	if d.sampler != nil {
		d.sampler.Close()
	}
	if d.manager != nil {
		report("sandboxes", d.manager.Close(ctx))
	}
	if d.network != nil {
		d.network.Close()
	}
	if d.images != nil {
		report("images", d.images.Close())
	}
}

// info tells the operator of the daemon.
func (d *daemon) info(ctx context.Context) *operator.InfoResponse {
	info := &operator.InfoResponse{
		Version:      buildVersion(),
		Pid:          int64(os.Getpid()),
		Started:      d.started.UnixNano(),
		Root:         d.config.Root,
		State:        d.config.State,
		CgroupDriver: d.manager.CgroupDriver(),
		Keeper:       d.keeperInfo(ctx),
		Sandboxes:    int32(len(d.manager.Sandboxes())),
		Containers:   int32(len(d.manager.Containers())),
	}
	if !d.config.EmbeddedNetwork.Enabled {
		info.CniConfDir = d.config.CNI.ConfDir
		info.CniBinDir = strings.Join(d.pluginDirs(), string(filepath.ListSeparator))
	}
	return info
}

func (d *daemon) keeperInfo(ctx context.Context) *operator.KeeperInfo {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	info := &operator.KeeperInfo{Path: d.keeper}
	hello, err := keeper.New(d.config.State).Hello(ctx, buildVersion())
	if err == nil {
		info.Build, info.Pid, info.Live = hello.Build, int64(hello.PID), int32(hello.Live)
		err = d.manager.KeeperReady()
	}
	if err != nil {
		info.Error = err.Error()
	}
	return info
}
