package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"
)

// How long the daemon takes to end: drainTimeout, or keeper.SpawnTimeout when it is told to before the socket is open,
// and closeTimeout after that. TimeoutStopSec of the units is more than their sum.
const (
	// drainTimeout is how long calls that run may go on after the daemon was told to end. What they started goes on
	// without them: a retry joins it or finds its record.
	drainTimeout = 10 * time.Second
	// closeTimeout bounds letting go of the keeper.
	closeTimeout = 10 * time.Second
)

// serve is the life of the daemon: it checks and locks what is its own, opens the parts (the manager recovers every
// container in this), and only then opens the socket, so that nobody ever sees half a list. It returns nil when ctx
// ends and the calls that ran are drained. Containers go on living.
func serve(ctx context.Context, config *Config) error {
	if err := setupLogging(os.Stderr, config.LogFormat, config.Verbosity); err != nil {
		return err
	}
	keeper, err := preflight(config)
	if err != nil {
		return err
	}
	locked, err := lockDirs(config.Root, config.State)
	if err != nil {
		return err
	}
	defer locked.release()
	socket, err := socketPath(config.Address)
	if err != nil {
		return err
	}
	if err := checkStale(socket); err != nil { // before a keeper is spawned for nothing
		return err
	}

	d := &daemon{config: config, keeper: keeper, started: time.Now()}
	defer d.close()
	for _, open := range []func(context.Context) error{
		d.openImages, d.openNetwork, d.openManager, d.openSampler, d.openSpans, d.openServer, d.openCadvisor,
	} {
		if err := open(ctx); err != nil {
			return err
		}
	}
	listener, err := listen(socket)
	if err != nil {
		return err
	}
	klog.InfoS("Serving", "address", config.Address, "version", buildVersion(), "root", config.Root,
		"state", config.State, "sandboxes", len(d.manager.Sandboxes()), "containers", len(d.manager.Containers()))
	defer context.AfterFunc(ctx, d.cri.EndEvents)() // they have no end of their own, and the draining waits for it
	return serveSocket(ctx, d.server, listener, socket)
}

// serveSocket serves until ctx ends, then drains.
func serveSocket(ctx context.Context, server *grpc.Server, listener net.Listener, socket string) error {
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	notify(systemd.SdNotifyReady)
	select {
	case err := <-failed:
		return fmt.Errorf("serve %s: %w", socket, err)
	case <-ctx.Done():
	}
	notify(systemd.SdNotifyStopping)
	klog.InfoS("Stopping; containers go on", "drain", drainTimeout)
	// Removed while it is still ours: once the listener is closed, another daemon may take the name.
	if err := os.Remove(socket); err != nil {
		klog.ErrorS(err, "Removing the socket failed", "socket", socket)
	}
	drain(server, drainTimeout)
	return nil
}

// drain lets calls that run come to an end, but no longer than timeout.
func drain(server *grpc.Server, timeout time.Duration) {
	drained := make(chan struct{})
	go func() {
		server.GracefulStop()
		close(drained)
	}()
	select {
	case <-drained:
	case <-time.After(timeout):
		server.Stop()
		<-drained
	}
}

// notify tells systemd, if it started this process, of a change.
func notify(state string) {
	if _, err := systemd.SdNotify(false, state); err != nil {
		klog.ErrorS(err, "Notifying systemd failed", "state", state)
	}
}
