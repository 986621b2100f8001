package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Options say what a node is made of. Zero fields have the defaults that their comments name.
type Options struct {
	// Dir is where everything of the node is put; it has to exist.
	Dir string
	// Bin holds the product's programs, with the CNI plugins in Bin/cni; Tools holds crictl.
	Bin, Tools string
	// Address is the daemon's socket as a URL; default a socket in Dir.
	Address string
	// State is the daemon's --state; default Dir/state. Its --root is Dir/root.
	State string
	// CNIConf is its --cni-conf-dir, default Dir/cni.d; CNIBin its --cni-bin-dir, default Bin/cni.
	CNIConf, CNIBin string
	// EmbeddedNetwork gives the daemon --embedded-network.
	EmbeddedNetwork bool
	// Keeper is its --keeper; default Bin/gantry-keeper.
	Keeper string
	// Mirror is host:port of the registry that stands for every registry without a directory of its own.
	Mirror string
	// Config is the text of a configuration file for --config; default none.
	Config string
	// Verbosity is its -v.
	Verbosity int
	// Wrap is a command that is given the daemon's command line and executes it in its own place; default none.
	Wrap []string
}

// Node is a daemon and the means to speak to it. Its methods are for one goroutine, its clients for any number.
type Node struct {
	Options
	// Runtime and Images are clients of the daemon; they outlive its restarts.
	Runtime runtime.RuntimeServiceClient
	Images  runtime.ImageServiceClient
	conn    *grpc.ClientConn
	cmd     *exec.Cmd
	exited  chan struct{}
}

// startTimeout is how long a daemon may take until it answers.
const startTimeout = 2 * time.Minute

// New makes the directories of a node and clients for it. The daemon is started by Start.
func New(opts Options) (*Node, error) {
	setDefault := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	setDefault(&opts.Address, "unix://"+filepath.Join(opts.Dir, "gantry.sock"))
	setDefault(&opts.State, filepath.Join(opts.Dir, "state"))
	setDefault(&opts.CNIConf, filepath.Join(opts.Dir, "cni.d"))
	setDefault(&opts.CNIBin, filepath.Join(opts.Bin, "cni"))
	setDefault(&opts.Keeper, filepath.Join(opts.Bin, "gantry-keeper"))
	n := &Node{Options: opts}
	if err := os.MkdirAll(n.CNIConf, 0o755); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(n.Dir, "logs"), 0o755); err != nil {
		return nil, err
	}
	if opts.Mirror != "" {
		if err := n.MirrorHost("_default", opts.Mirror); err != nil {
			return nil, err
		}
	}
	if opts.Config != "" {
		if err := os.WriteFile(n.configFile(), []byte(opts.Config), 0o644); err != nil {
			return nil, err
		}
	}
	conn, err := grpc.NewClient(n.Address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return nil, err
	}
	n.conn, n.Runtime, n.Images = conn, runtime.NewRuntimeServiceClient(conn), runtime.NewImageServiceClient(conn)
	return n, nil
}

// Root is the daemon's --root.
func (n *Node) Root() string { return filepath.Join(n.Dir, "root") }

func (n *Node) configFile() string { return filepath.Join(n.Dir, "config.toml") }

// LogFile is where the daemon's and the keeper's messages go.
func (n *Node) LogFile() string { return filepath.Join(n.Dir, "gantryd.log") }

// RegistryConfig is its --registry-config-dir.
func (n *Node) RegistryConfig() string { return filepath.Join(n.Dir, "hosts.d") }

// MirrorHost makes images of a registry host come from a loopback address. "_default" means every other host.
func (n *Node) MirrorHost(host, address string) error {
	dir := filepath.Join(n.RegistryConfig(), host)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	hosts := fmt.Sprintf("server = \"http://%[1]s\"\n[host.\"http://%[1]s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", address)
	return os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(hosts), 0o644)
}

// args is the daemon's command line.
func (n *Node) args() []string {
	args := []string{
		"--address=" + n.Address, "--root=" + n.Root(), "--state=" + n.State,
		"--cni-conf-dir=" + n.CNIConf, "--cni-bin-dir=" + n.CNIBin,
		"--registry-config-dir=" + n.RegistryConfig(), "--cgroup-driver=cgroupfs", "--keeper=" + n.Keeper,
		fmt.Sprintf("-v=%d", n.Verbosity),
	}
	if n.Config != "" {
		args = append(args, "--config="+n.configFile())
	}
	if n.EmbeddedNetwork {
		args = append(args, "--embedded-network")
	}
	return args
}

// Start starts the daemon and waits until it answers. When it exits instead the error holds the end of its log.
func (n *Node) Start(ctx context.Context) error {
	log, err := os.OpenFile(n.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	command := append(append(slices.Clone(n.Wrap), filepath.Join(n.Bin, "gantryd")), n.args()...)
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's Ctrl-C is for the program that started it
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start gantryd (make build builds it): %w", err)
	}
	exited := make(chan struct{})
	go func() {
		cmd.Wait()
		close(exited)
	}()
	n.cmd, n.exited = cmd, exited
	n.conn.ResetConnectBackoff()
	deadline := time.Now().Add(startTimeout)
	for {
		select {
		case <-exited:
			return fmt.Errorf("gantryd: %v\n%s", cmd.ProcessState, tail(n.LogFile()))
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
		_, err := n.Runtime.Version(ctx, &runtime.VersionRequest{})
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("wait for gantryd: %w\n%s", err, tail(n.LogFile()))
		}
		time.Sleep(10 * time.Millisecond)
		n.conn.ResetConnectBackoff()
	}
}

// PID is the daemon's process id.
func (n *Node) PID() int { return n.cmd.Process.Pid }

// Running reports whether the daemon runs.
func (n *Node) Running() bool {
	if n.cmd == nil {
		return false
	}
	select {
	case <-n.exited:
		return false
	default:
		return true
	}
}

// Kill ends the daemon by SIGKILL and waits until it is gone.
func (n *Node) Kill() {
	if n.cmd != nil {
		n.cmd.Process.Kill()
		<-n.exited
	}
}

// Stop ends the daemon by SIGTERM. Containers go on.
func (n *Node) Stop() error {
	if !n.Running() {
		return nil
	}
	n.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-n.exited:
	case <-time.After(time.Minute):
		n.Kill()
		return errors.New("gantryd did not end within a minute of SIGTERM")
	}
	if code := n.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("gantryd: %v after SIGTERM\n%s", n.cmd.ProcessState, tail(n.LogFile()))
	}
	return nil
}

// RemoveAll stops and removes every sandbox, trying all of them.
func (n *Node) RemoveAll(ctx context.Context) error {
	list, err := n.Runtime.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	var errs []error
	for _, s := range list.Items {
		if _, err := n.Runtime.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: s.Id}); err != nil {
			errs = append(errs, fmt.Errorf("stop sandbox %s: %w", s.Id, err))
		}
		if _, err := n.Runtime.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: s.Id}); err != nil {
			errs = append(errs, fmt.Errorf("remove sandbox %s: %w", s.Id, err))
		}
	}
	return errors.Join(errs...)
}

// Close ends the daemon and the keeper. Sandboxes have to be removed before.
func (n *Node) Close() error {
	err := errors.Join(n.Stop(), n.shutdownKeeper())
	n.conn.Close()
	return err
}

// CrictlArgs are the global arguments that make crictl speak to this node.
func (n *Node) CrictlArgs() []string {
	return []string{"--config", os.DevNull, "--runtime-endpoint", n.Address, "--image-endpoint", n.Address}
}

// Crictl runs the real crictl against the node and returns its standard output; the error holds its standard error.
func (n *Node) Crictl(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(n.Tools, "crictl"), append(n.CrictlArgs(), args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("crictl %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// Gantryd runs the daemon's program with the node's flags and more arguments, and returns all that it printed.
func (n *Node) Gantryd(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, filepath.Join(n.Bin, "gantryd"), append(n.args(), args...)...).CombinedOutput()
	return string(out), err
}

// tail is the end of a log file.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	const most = 4000
	if len(b) > most {
		b = b[len(b)-most:]
	}
	return string(b)
}
