//go:build e2e

package kubelet

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/images"
	"github.com/gantry-cri/gantry/test/e2e/node"
)

var (
	gatesFlag = flag.String("gates", "", "feature gates of the kubelet, such as EventedPLEG=true,CRIListStreaming=true")
	verbosity = flag.Int("kubelet-v", 2, "verbosity of the kubelet's log")
)

// What all tests share. The tests may kill the daemon and the kubelet and start them again, but leave both running.
var (
	registry *node.Registry
	gantry   *node.Node
	shared   *Kubelet
	before   node.Footprint // of the daemon without pods
)

// binDir and toolsDir are where make puts the programs.
var binDir, toolsDir string

func TestMain(m *testing.M) {
	flag.Parse()
	inner, code := node.Isolate()
	if !inner {
		os.Exit(code)
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "kubelet:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if err := startNode(ctx); err != nil {
		return 0, err
	}
	defer registry.Stop()
	gates, err := parseGates(*gatesFlag)
	if err != nil {
		return 0, err
	}
	shared, err = newKubelet("kubelet", gantry, Options{Gates: gates, Config: map[string]string{
		"containerLogMaxSize": "200Ki", "containerLogMonitorInterval": "3s", // so that rotation is seen
		"allowedUnsafeSysctls": "[net.core.somaxconn]",
	}})
	if err != nil {
		return 0, err
	}
	if err := shared.Start(ctx); err != nil {
		return 0, err
	}
	code = m.Run()
	if err := closeAll(); err != nil {
		fmt.Println("--- FAIL: leaves nothing behind")
		fmt.Println(err)
		code = 1
	} else {
		fmt.Println("--- PASS: leaves nothing behind")
	}
	if code != 0 {
		keepLogs()
	}
	return code, nil
}

// startNode furnishes the namespaces and starts a registry with the images and the daemon.
func startNode(ctx context.Context) error {
	top, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	binDir, toolsDir = filepath.Join(top, "bin"), filepath.Join(top, ".work/bin")
	if err := Furnish(node.Dir()); err != nil {
		return err
	}
	list, err := images.Kubelet(filepath.Join(toolsDir, "agnhost"))
	if err != nil {
		return err
	}
	registry, err = node.StartRegistry(ctx, toolsDir, filepath.Join(node.Dir(), "registry"), false)
	if err != nil {
		return err
	}
	if err := images.Push(ctx, images.Registry{Address: registry.Address}, list); err != nil {
		return err
	}
	gantry, err = newNode("node", func(o *node.Options) {
		if strings.Contains(*gatesFlag, "CRIListStreaming=true") {
			o.Verbosity = 5 // reads are logged, too
		}
	})
	if err != nil {
		return err
	}
	if err := gantry.Start(ctx); err != nil {
		return err
	}
	// The first pod leaves what is made once for all.
	_, err = gantry.Runtime.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: &runtime.PodSandboxConfig{
		Metadata: &runtime.PodSandboxMetadata{Name: "first", Namespace: Namespace, Uid: "first"}, Hostname: "first",
	}})
	if err != nil {
		return fmt.Errorf("run the first sandbox: %w", err)
	}
	if err := gantry.RemoveAll(ctx); err != nil {
		return err
	}
	before, err = gantry.Footprint(registry.PID())
	return err
}

// nodes counts the nodes of the run: each has a subnet of its own.
var nodes atomic.Int32

// newNode makes a node with directories below the run's; the first has the daemon's usual socket and state directory.
func newNode(name string, change func(*node.Options)) (*node.Node, error) {
	opts := node.Options{
		Dir: filepath.Join(node.Dir(), name), Bin: binDir, Tools: toolsDir, Mirror: registry.Address, Verbosity: 4,
	}
	number := nodes.Add(1)
	if number == 1 {
		opts.Address, opts.State = "unix:///run/gantry/gantry.sock", "/run/gantry"
	}
	if err := os.MkdirAll(opts.Dir, 0o755); err != nil {
		return nil, err
	}
	if change != nil {
		change(&opts)
	}
	n, err := node.New(opts)
	if err != nil {
		return nil, err
	}
	network := fmt.Sprintf(`{
  "cniVersion": "1.0.0", "name": %[1]q,
  "plugins": [
    {"type": "bridge", "bridge": "br-%[1]s", "isGateway": true, "ipMasq": true, "hairpinMode": true,
     "ipam": {"type": "host-local", "dataDir": %[2]q, "ranges": [[{"subnet": "10.78.%[3]d.0/24"}]],
              "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}
  ]
}`, name, filepath.Join(n.Dir, "ipam"), number)
	return n, os.WriteFile(filepath.Join(n.CNIConf, "10-test.conflist"), []byte(network), 0o644)
}

// newKubelet makes a kubelet for a node, with a directory below the run's.
func newKubelet(name string, n *node.Node, opts Options) (*Kubelet, error) {
	opts.Endpoint, opts.Runtime = n.Address, n.Runtime
	opts.Dir, opts.Tools, opts.Verbosity = filepath.Join(node.Dir(), name), toolsDir, *verbosity
	if err := os.MkdirAll(opts.Dir, 0o755); err != nil {
		return nil, err
	}
	return New(opts)
}

func parseGates(text string) (map[string]bool, error) {
	gates := make(map[string]bool)
	for field := range strings.SplitSeq(text, ",") {
		if field == "" {
			continue
		}
		name, value, _ := strings.Cut(field, "=")
		on, err := strconv.ParseBool(value)
		if err != nil {
			return nil, fmt.Errorf("feature gate %q: want NAME=true or NAME=false", field)
		}
		gates[name] = on
	}
	return gates, nil
}

// kubelets matches what kubelets leave when they end: cgroups, volumes of pods that they had no time to take down.
var kubelets = regexp.MustCompile(`^cgroup /sys/fs/cgroup/[^/]+/(kubepods|small|api|full)\b|^mount .*kubelet`)

// closeAll ends the kubelet, removes what it left in the runtime, looks whether anything outlives that, and ends the
// daemon.
func closeAll() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if err := shared.Stop(); err != nil {
		return err
	}
	if !gantry.Running() {
		if err := gantry.Start(ctx); err != nil {
			return err
		}
	}
	if err := gantry.RemoveAll(ctx); err != nil {
		return err
	}
	leaks, err := gantry.Leaks(before, time.Minute, registry.PID())
	if err != nil {
		return err
	}
	leaks = slices.DeleteFunc(leaks, kubelets.MatchString)
	if len(leaks) > 0 && !*record { // containerd leaves more
		err = errors.New("after all sandboxes were removed there is left:\n  " + strings.Join(leaks, "\n  "))
	}
	return errors.Join(err, gantry.Close())
}

// keepLogs copies the logs of daemons and kubelets to where they survive the run.
func keepLogs() {
	target := filepath.Join(filepath.Dir(toolsDir), "kubelet-logs")
	if os.MkdirAll(target, 0o755) != nil {
		return
	}
	logs, _ := filepath.Glob(filepath.Join(node.Dir(), "*", "*.log"))
	for _, log := range append(logs, "/run/gantry/keeper.log") {
		if b, err := os.ReadFile(log); err == nil {
			name := filepath.Base(filepath.Dir(log)) + "-" + filepath.Base(log)
			os.WriteFile(filepath.Join(target, name), b, 0o644)
		}
	}
	fmt.Println("logs are in", target)
}
