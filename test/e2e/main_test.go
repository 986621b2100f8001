//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/images"
	"github.com/gantry-cri/gantry/test/e2e/node"
)

// What all tests share: a registry with the images and a node whose daemon the tests may kill and start again, but
// leave running.
var (
	registry *node.Registry
	shared   *node.Node
	before   node.Footprint
)

// binDir and toolsDir are where make puts the programs.
var binDir, toolsDir string

func TestMain(m *testing.M) {
	inner, code := node.Isolate()
	if !inner {
		os.Exit(code)
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	top, err := filepath.Abs("../..")
	if err != nil {
		return 0, err
	}
	binDir, toolsDir = filepath.Join(top, "bin"), filepath.Join(top, ".work/bin")
	os.Setenv("PATH", toolsDir+":"+os.Getenv("PATH")) // hack/criu.sh puts a CRIU there where the system's is too old
	if err := startRegistry(ctx); err != nil {
		return 0, err
	}
	defer registry.Stop()
	shared, err = newNode("node", nil)
	if err != nil {
		return 0, err
	}
	if os.Getenv(imagesVariable) != "" {
		// On an emulated machine plugins, which are programs of Go, take a minute for a pod.
		shared.EmbeddedNetwork = true
		if err := os.RemoveAll(shared.CNIConf); err != nil {
			return 0, err
		}
	}
	if err := shared.Start(ctx); err != nil {
		return 0, err
	}
	if before, err = footprintAfterOne(ctx, shared, registry.PID()); err != nil {
		return 0, err
	}
	code = m.Run()
	if err := errors.Join(leavesNothing(), closeAll()); err != nil {
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

// imagesVariable names the storage of a registry with the images, for machines that have no Go to build them with.
const imagesVariable = "GANTRY_TEST_IMAGES"

func startRegistry(ctx context.Context) (err error) {
	dir, ready := filepath.Join(node.Dir(), "registry"), os.Getenv(imagesVariable)
	if ready != "" {
		if err := os.CopyFS(dir, os.DirFS(ready)); err != nil {
			return err
		}
	}
	if registry, err = node.StartRegistry(ctx, toolsDir, dir, false); err != nil || ready != "" {
		return err
	}
	return images.Push(ctx, images.Registry{Address: registry.Address}, images.E2E())
}

// closeAll ends the shared node and looks for what outlives its programs.
func closeAll() error {
	if err := shared.Close(); err != nil {
		return err
	}
	tops, _ := filepath.Glob("/sys/fs/cgroup/*/gantry*")
	if len(tops) > 0 {
		return fmt.Errorf("cgroups outlive the programs: %s", strings.Join(tops, " "))
	}
	return nil
}

// nodes counts the nodes of the run: each has a subnet of its own, whose bridge stays.
var nodes int

// newNode makes a node below the run's directory with a bridge network of its own.
func newNode(name string, change func(*node.Options)) (*node.Node, error) {
	opts := node.Options{
		Dir: filepath.Join(node.Dir(), name), Bin: binDir, Tools: toolsDir, Mirror: registry.Address, Verbosity: 4,
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
	nodes++
	return n, writeNetwork(n, name, fmt.Sprintf("10.77.%d.0/24", nodes))
}

// writeNetwork writes a network configuration of the usual plugins.
func writeNetwork(n *node.Node, name, subnet string) error {
	list := fmt.Sprintf(`{
  "cniVersion": "1.0.0", "name": "e2e-%[1]s",
  "plugins": [
    {"type": "bridge", "bridge": "e2e-%[1]s", "isGateway": true, "ipMasq": true, "hairpinMode": true,
     "ipam": {"type": "host-local", "dataDir": %[2]q, "ranges": [[{"subnet": %[3]q}]],
              "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}},
    {"type": "firewall"}
  ]
}`, name, filepath.Join(n.Dir, "ipam"), subnet)
	return os.WriteFile(filepath.Join(n.CNIConf, "10-e2e.conflist"), []byte(list), 0o644)
}

// footprintAfterOne looks around after the first pod is gone again: it leaves what is made once for all, such as the
// bridge and the runtime's own top cgroup.
func footprintAfterOne(ctx context.Context, n *node.Node, allowedPIDs ...int) (node.Footprint, error) {
	_, err := n.Runtime.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: &runtime.PodSandboxConfig{
		Metadata: &runtime.PodSandboxMetadata{Name: "first", Namespace: "e2e", Uid: "first"}, Hostname: "first",
	}})
	if err != nil {
		return nil, fmt.Errorf("run the first sandbox: %w", err)
	}
	if err := n.RemoveAll(ctx); err != nil {
		return nil, err
	}
	return n.Footprint(allowedPIDs...)
}

// leavesNothing removes all sandboxes and images of the shared node and looks for what is left.
func leavesNothing() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if !shared.Running() {
		if err := shared.Start(ctx); err != nil {
			return err
		}
	}
	if err := shared.RemoveAll(ctx); err != nil {
		return err
	}
	leaks, err := shared.Leaks(before, time.Minute, registry.PID())
	if err != nil {
		return err
	}
	if len(leaks) > 0 {
		return errors.New("after all sandboxes were removed there is left:\n  " + strings.Join(leaks, "\n  "))
	}
	return nil
}

// keepLogs copies the daemon's log to where it survives the run.
func keepLogs() {
	target := filepath.Join(filepath.Dir(toolsDir), "e2e-logs")
	if os.MkdirAll(target, 0o755) != nil {
		return
	}
	logs, _ := filepath.Glob(filepath.Join(node.Dir(), "*", "*.log"))
	keepers, _ := filepath.Glob(filepath.Join(node.Dir(), "*", "*", "*.log"))
	for _, log := range append(logs, keepers...) {
		if b, err := os.ReadFile(log); err == nil {
			name := filepath.Base(filepath.Dir(log)) + "-" + filepath.Base(log)
			os.WriteFile(filepath.Join(target, name), b, 0o644)
		}
	}
	fmt.Println("logs are in", target)
}
