package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gantry-cri/gantry/test/e2e/images"
	"github.com/gantry-cri/gantry/test/e2e/node"
	"github.com/gantry-cri/gantry/test/peers"
)

// launcher starts runtimes in the namespaces that node.Isolate made, with equal networks and images.
type launcher struct {
	bin, work string
	registry  *node.Registry
	stops     []func() error
	embedded  bool // gantry makes the pods' networks itself
}

// launch starts the registry and the runtimes of these names.
func launch(ctx context.Context, names []string, embedded bool) (l *launcher, targets []*target, err error) {
	work, err := filepath.Abs(".work")
	if err != nil {
		return nil, nil, err
	}
	l = &launcher{bin: filepath.Join(filepath.Dir(work), "bin"), work: work, embedded: embedded}
	l.registry, err = node.StartRegistry(ctx, filepath.Join(work, "bin"), filepath.Join(node.Dir(), "registry"), false)
	if err != nil {
		return l, nil, err
	}
	l.stops = append(l.stops, func() error { l.registry.Stop(); return nil })
	list := slices.DeleteFunc(images.E2E(), func(i images.Image) bool {
		return !slices.Contains(i.Refs, images.Busybox) && !slices.Contains(i.Refs, images.Pause)
	})
	if err := images.Push(ctx, images.Registry{Address: l.registry.Address}, list); err != nil {
		return l, nil, err
	}
	for i, name := range names {
		name, bin, other := strings.Cut(name, "=")
		start := map[string]func(context.Context, *target, int) error{"containerd": l.containerd, "crio": l.crio}[name]
		switch {
		case name == "gantry" && !other:
			start = l.gantry(l.bin)
		case other && start == nil:
			if bin, err = filepath.Abs(bin); err != nil {
				return l, nil, err
			}
			start = l.gantry(bin)
		case start == nil || other:
			return l, nil, fmt.Errorf("runtime %q: expected gantry, containerd, crio, or a name of your own, '=' and a directory of gantry's programs", name)
		}
		t := &target{name: name, image: images.Busybox, parent: "/bench-" + name + "/pods", logs: filepath.Join(node.Dir(), "logs-"+name)}
		t.account.cgroups = []string{filepath.Join(accounts(), "bench-"+name)}
		if err := os.MkdirAll(t.logs, 0o755); err != nil {
			return l, nil, err
		}
		if err := start(ctx, t, i); err != nil {
			return l, nil, err
		}
		targets = append(targets, t)
	}
	return l, targets, nil
}

// close ends what was started, the last first.
func (l *launcher) close() error {
	var errs []error
	for _, stop := range slices.Backward(l.stops) {
		errs = append(errs, stop())
	}
	return errors.Join(errs...)
}

// accounts is where the hierarchy of cgroups is mounted that accounts CPU time.
func accounts() string {
	if _, err := os.Stat("/sys/fs/cgroup/cpuacct"); err == nil {
		return "/sys/fs/cgroup/cpuacct"
	}
	return "/sys/fs/cgroup"
}

// inCgroup is a command that executes the one that it is given in a cgroup, for the account.
func inCgroup(name string) []string {
	dir := filepath.Join(accounts(), "bench-"+name, "daemon")
	return []string{"sh", "-c", `mkdir -p "$0" && echo $$ >"$0/cgroup.procs" && exec "$@"`, dir}
}

// stateDir is where a runtime has what is below /run on a node: in memory, as there.
func stateDir(name string) string { return filepath.Join("/run", "bench-"+name) }

// gantry returns what starts the daemon of the programs in bin.
func (l *launcher) gantry(bin string) func(context.Context, *target, int) error {
	return func(ctx context.Context, t *target, i int) error { return l.startGantry(ctx, t, i, bin) }
}

func (l *launcher) startGantry(ctx context.Context, t *target, i int, bin string) error {
	n, err := node.New(node.Options{
		Dir: filepath.Join(node.Dir(), t.name), Bin: bin, CNIBin: filepath.Join(l.bin, "cni"), Tools: filepath.Join(l.work, "bin"), Mirror: l.registry.Address,
		State: stateDir(t.name), EmbeddedNetwork: l.embedded, Wrap: inCgroup(t.name),
	})
	if err != nil {
		return err
	}
	if err := writeNetwork(n.CNIConf, t.name, i); err != nil {
		return err
	}
	if err := n.Start(ctx); err != nil {
		return err
	}
	l.stops = append(l.stops, n.Close)
	t.endpoint, t.names = n.Address, []string{"gantryd", "gantry-keeper", "gantry-reaper", "pause"}
	t.account.cgroups = append(t.account.cgroups, filepath.Join(accounts(), "gantry-keeper-*"))
	t.restart = func(ctx context.Context) error {
		n.Kill()
		return n.Start(ctx)
	}
	return nil
}

func (l *launcher) containerd(ctx context.Context, t *target, i int) error {
	t.names = []string{"containerd", "containerd-shim", "pause"}
	return l.peer(ctx, t, i, peers.Containerd)
}

func (l *launcher) crio(ctx context.Context, t *target, i int) error {
	t.names = []string{"crio", "conmon"}
	host, _, _ := strings.Cut(images.Busybox, "/")
	return l.peer(ctx, t, i, func(o peers.Options) (*peers.Daemon, error) { return peers.CRIO(o, host) })
}

// peer starts a runtime of package peers.
func (l *launcher) peer(ctx context.Context, t *target, i int, prepare func(peers.Options) (*peers.Daemon, error)) error {
	conf := filepath.Join(node.Dir(), t.name+".cni")
	if err := os.MkdirAll(conf, 0o755); err != nil {
		return err
	}
	if err := writeNetwork(conf, t.name, i); err != nil {
		return err
	}
	d, err := prepare(peers.Options{
		Dir: filepath.Join(node.Dir(), t.name), State: stateDir(t.name), Peers: filepath.Join(l.work, "peers"), CNIConf: conf,
		CNIBin: filepath.Join(l.bin, "cni"), Mirror: l.registry.Address, SandboxImage: images.Pause, Wrap: inCgroup(t.name),
	})
	if err != nil {
		return err
	}
	if err := d.Start(ctx); err != nil {
		return err
	}
	l.stops = append(l.stops, d.Stop)
	t.endpoint, t.pause = d.Endpoint, images.Pause
	t.restart = func(ctx context.Context) error {
		d.Kill()
		return d.Start(ctx)
	}
	return nil
}

// writeNetwork writes the configuration of a usual network: a bridge, addresses of its own, port mappings, a firewall.
func writeNetwork(dir, name string, i int) error {
	list := fmt.Sprintf(`{
  "cniVersion": "1.0.0", "name": %[1]q,
  "plugins": [
    {"type": "bridge", "bridge": "br-%[2]s", "isGateway": true, "ipMasq": true, "hairpinMode": true,
     "ipam": {"type": "host-local", "dataDir": %[3]q, "ranges": [[{"subnet": "10.%[4]d.0.0/16"}]],
              "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}},
    {"type": "firewall"}
  ]
}`, "bench-"+name, strings.ToLower(name), filepath.Join(node.Dir(), "ipam-"+name), 80+i)
	return os.WriteFile(filepath.Join(dir, "10-bench.conflist"), []byte(list), 0o644)
}
