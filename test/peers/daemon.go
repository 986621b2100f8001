// Package peers runs other runtimes as tests and benchmarks need them: in directories of their own, with the same CNI
// network and the same registry as the product, built from the modules of hack/peers by `make peers`. It is not how they
// are installed on a node.
package peers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Options say what a runtime works with. All fields but Address and Wrap are required.
type Options struct {
	// Dir is where everything of the runtime is put; it is made.
	Dir string
	// State is where is put what is below /run on a node; default Dir.
	State string
	// Peers holds the programs of hack/peers.
	Peers string
	// CNIConf and CNIBin are the directories of the network configuration and of its plugins.
	CNIConf, CNIBin string
	// Mirror is host:port of the registry that stands for every registry.
	Mirror string
	// SandboxImage is the image of the pause container.
	SandboxImage string
	// Address is the path of the socket; default runtime.sock in Dir.
	Address string
	// Wrap is a command that is given the daemon's command line and executes it in its own place; default none.
	Wrap []string
}

// inState is a path below State.
func (o *Options) inState(name string) string { return filepath.Join(cmp.Or(o.State, o.Dir), name) }

// Daemon is a runtime that can be started, killed and started again. Its methods are for one goroutine.
type Daemon struct {
	// Endpoint is its socket as a URL, LogFile where its messages go.
	Endpoint, LogFile string

	command []string
	env     []string
	cmd     *exec.Cmd
	exited  chan struct{}
}

// startTimeout is how long a daemon may take until it answers, with many pods to recover.
const startTimeout = 5 * time.Minute

// Start starts the daemon and waits until its CRI is ready.
func (d *Daemon) Start(ctx context.Context) error {
	log, err := os.OpenFile(d.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(d.command[0], d.command[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Env = log, log, append(os.Environ(), d.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s (make peers builds it): %w", filepath.Base(d.command[0]), err)
	}
	exited := make(chan struct{})
	go func() {
		cmd.Wait()
		close(exited)
	}()
	d.cmd, d.exited = cmd, exited
	return d.wait(ctx)
}

func (d *Daemon) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	conn, err := grpc.NewClient(d.Endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	client := runtime.NewRuntimeServiceClient(conn)
	for {
		_, err := client.Version(ctx, &runtime.VersionRequest{})
		if err == nil {
			return nil
		}
		select {
		case <-d.exited:
			return fmt.Errorf("%s: %v, see %s", filepath.Base(d.command[0]), d.cmd.ProcessState, d.LogFile)
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w, see %s", filepath.Base(d.command[0]), err, d.LogFile)
		case <-time.After(20 * time.Millisecond):
			conn.ResetConnectBackoff()
		}
	}
}

// PID is the daemon's process id.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Kill ends the daemon by SIGKILL and waits until it is gone. Its pods go on.
func (d *Daemon) Kill() {
	if d.cmd != nil {
		d.cmd.Process.Kill()
		<-d.exited
	}
}

// Stop ends the daemon by SIGTERM. Its pods go on.
func (d *Daemon) Stop() error {
	if d.cmd == nil {
		return nil
	}
	d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.exited:
		return nil
	case <-time.After(30 * time.Second):
		d.Kill()
		return errors.New("the runtime did not end within 30 s of SIGTERM")
	}
}
