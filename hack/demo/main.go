// Command demo runs a node to try: a registry on loopback with images made here, the daemon with its embedded network,
// and one pod made by crictl. It is run from the top of the tree by `make run` and removes everything at Ctrl-C. It is
// not how a node is installed.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/gantry-cri/gantry/cni"
	"github.com/gantry-cri/gantry/test/e2e/images"
	"github.com/gantry-cri/gantry/test/e2e/node"
)

// address is the daemon's default, so that its clients need no flag.
const address = "unix:///run/gantry/gantry.sock"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root: containers and networks are the kernel's")
	}
	socket := strings.TrimPrefix(address, "unix://")
	if conn, err := net.Dial("unix", socket); err == nil {
		conn.Close()
		return fmt.Errorf("%s is in use: another gantryd runs; stop it first", socket)
	}
	work, err := filepath.Abs(".work")
	if err != nil {
		return err
	}
	dir := filepath.Join(work, "run")
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return err
	}
	defer os.Remove(filepath.Dir(socket)) // it stays if somebody has something in it
	fmt.Println("Making two images of local pieces and pushing them to a registry on loopback ...")
	registry, err := node.StartRegistry(ctx, filepath.Join(work, "bin"), filepath.Join(dir, "registry"), false)
	if err != nil {
		return err
	}
	defer registry.Stop()
	if err := images.Push(ctx, images.Registry{Address: registry.Address}, images.E2E()[:2]); err != nil {
		return err
	}
	n, err := node.New(node.Options{
		Dir: dir, Bin: filepath.Join(filepath.Dir(work), "bin"), Tools: filepath.Join(work, "bin"),
		Address: address, EmbeddedNetwork: true, Mirror: registry.Address,
	})
	if err != nil {
		return err
	}
	if err := n.Start(ctx); err != nil {
		return errors.Join(err, n.Close())
	}
	defer func() { err = errors.Join(err, cleanUp(n)) }()
	if err := n.RemoveAll(ctx); err != nil { // of a demonstration that was killed
		return err
	}
	if err := show(ctx, n); err != nil {
		return err
	}
	return attend(ctx, n)
}

// attend starts the daemon again when it dies, as systemd would, until ctx ends.
func attend(ctx context.Context, n *node.Node) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(50 * time.Millisecond):
		}
		if n.Running() {
			continue
		}
		start := time.Now()
		if err := n.Start(ctx); err != nil {
			return err
		}
		fmt.Printf("The daemon died. It was started again, is ready after %d ms, and has pid %d.\n",
			time.Since(start).Milliseconds(), n.PID())
	}
}

// show makes a pod as a user would and prints what can be seen of it.
func show(ctx context.Context, n *node.Node) error {
	pod, container, err := writeConfigs(n.Dir)
	if err != nil {
		return err
	}
	crictl := func(args ...string) string {
		if err != nil {
			return ""
		}
		fmt.Println("$ crictl", strings.Join(args, " "))
		var out string
		out, err = n.Crictl(ctx, args...)
		out = strings.TrimSpace(out)
		fmt.Println(out)
		return out
	}
	start := time.Now()
	crictl("pull", images.Busybox)
	podID := crictl("runp", pod)
	containerID := crictl("create", podID, container, pod)
	crictl("start", containerID)
	fmt.Printf("(%d ms, crictl's four processes included)\n", time.Since(start).Milliseconds())
	crictl("pods")
	crictl("ps")
	ip := crictl("inspectp", "-o", "go-template", "--template", "{{.status.network.ip}}", podID)
	crictl("logs", containerID)
	answer := crictl("exec", containerID, "sh", "-c", "echo hello from $(hostname), kernel $(uname -r)")
	if err != nil {
		return err
	}
	fmt.Printf(`
The node is up.
  pod address  %s
  exec said    %s
  daemon's log %s

Type next, in another terminal:
  export CONTAINER_RUNTIME_ENDPOINT=%s
  .work/bin/crictl ps
  .work/bin/crictl exec -it %.13s sh
  bin/gantry doctor
  kill -9 %d    # the daemon: the container does not notice, and it is started again

Ctrl-C here stops it and removes everything.
`, ip, answer, n.LogFile(), n.Address, containerID, n.PID())
	return nil
}

// writeConfigs writes the files that crictl reads.
func writeConfigs(dir string) (pod, container string, err error) {
	type object = map[string]any
	logs := filepath.Join(dir, "logs")
	labels := object{"io.kubernetes.pod.name": "demo", "io.kubernetes.pod.namespace": "default"} // what crictl ps shows
	configs := map[string]object{
		"pod.json": {
			"metadata": object{"name": "demo", "namespace": "default", "uid": "demo-1"}, "hostname": "demo",
			"log_directory": logs, "linux": object{}, "labels": labels,
		},
		"container.json": {
			"metadata": object{"name": "hello"}, "image": object{"image": images.Busybox}, "log_path": "hello.log",
			"command": []string{"sh", "-c", "echo hello from gantry; exec sleep 1000000"}, "labels": labels,
		},
	}
	for name, config := range configs {
		b, err := json.MarshalIndent(config, "", "  ")
		if err != nil {
			return "", "", err
		}
		if err := os.WriteFile(filepath.Join(dir, name), append(b, '\n'), 0o644); err != nil {
			return "", "", err
		}
	}
	return filepath.Join(dir, "pod.json"), filepath.Join(dir, "container.json"), nil
}

// cleanUp removes the pods, ends the programs and removes the files, trying every step.
func cleanUp(n *node.Node) error {
	fmt.Println("\nRemoving everything ...")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if !n.Running() {
		if err := n.Start(ctx); err != nil { // somebody followed the advice to kill it
			return err
		}
	}
	if err := errors.Join(n.RemoveAll(ctx), n.Close(), removeNetwork(ctx, n)); err != nil {
		return err
	}
	return os.RemoveAll(n.Dir)
}

// removeNetwork removes the bridge and the nftables table of the embedded network, which outlive the daemon.
func removeNetwork(ctx context.Context, n *node.Node) error {
	network, err := cni.Open(cni.Config{CacheDir: filepath.Join(n.Root(), "cni"), Embedded: true})
	if err != nil {
		return err
	}
	defer network.Close()
	return network.Cleanup(ctx)
}
