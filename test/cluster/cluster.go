package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// options say what a cluster is made of.
type options struct {
	Nodes   int
	Metrics bool
}

// cluster is a running cluster, seen from outside. What is exported is kept in the record, .work/cluster/cluster.json.
type cluster struct {
	// Dir holds all of the cluster's files; PID is the program that takes everything with it when it ends.
	Dir string
	PID int
	// Supervisor is a process on the cluster's network.
	Supervisor int
	work       string // where the record is
}

const (
	// upTimeout is how long a cluster may take until it is ready.
	upTimeout = 10 * time.Minute
	// downTimeout is how long it may take to end.
	downTimeout = 2 * time.Minute
)

func workDir(top string) string              { return filepath.Join(top, ".work/cluster") }
func recordFile(work string) string          { return filepath.Join(work, "cluster.json") }
func supervisorLog(work string) string       { return filepath.Join(work, "cluster.log") }
func controlSocket(clusterDir string) string { return filepath.Join(clusterDir, "control.sock") }

// errNone is returned while no cluster is recorded.
var errNone = errors.New("no cluster runs here: make cluster starts one")

// open finds the cluster that another process started.
func open(top string) (*cluster, error) {
	c := &cluster{work: workDir(top)}
	b, err := os.ReadFile(recordFile(c.work))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNone
	}
	if err != nil {
		return nil, err
	}
	return c, json.Unmarshal(b, c)
}

// alive reports whether the cluster has not ended without down, as with the machine.
func (c *cluster) alive() bool { return syscall.Kill(c.PID, 0) == nil }

// start starts a cluster and waits until it is ready. After an error nothing of it runs.
func start(ctx context.Context, top string, o options) (*cluster, error) {
	if old, err := open(top); err == nil && old.alive() {
		return nil, fmt.Errorf("a cluster runs already, pid %d: make cluster-down ends it", old.PID)
	}
	c := &cluster{work: workDir(top)}
	if err := os.MkdirAll(c.work, 0o755); err != nil {
		return nil, err
	}
	log, err := os.Create(supervisorLog(c.work))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	arguments, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(filepath.Join(top, ".work/bin/gantry-cluster"), "supervise", string(arguments))
	cmd.Dir, cmd.Stdout, cmd.Stderr = top, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // it outlives the terminal
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c.PID = cmd.Process.Pid
	c.Dir = filepath.Join(os.TempDir(), fmt.Sprintf("gantry-e2e-%d", c.PID)) // node.Dir there
	exited := make(chan struct{})
	go func() {
		cmd.Wait()
		close(exited)
	}()
	if err := c.waitReady(ctx, exited); err != nil {
		c.keepLogs()
		return nil, errors.Join(err, c.down())
	}
	return c, nil
}

func (c *cluster) waitReady(ctx context.Context, exited <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, upTimeout)
	defer cancel()
	for {
		_, err := c.ask(ctx, http.MethodGet, "/ready")
		if err == nil {
			return c.save()
		}
		select {
		case <-exited:
			return fmt.Errorf("the cluster ended\n%s", tail(supervisorLog(c.work)))
		case <-ctx.Done():
			return fmt.Errorf("wait for the cluster: %w: %w\n%s", ctx.Err(), err, tail(supervisorLog(c.work)))
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// save finds the supervisor and writes the record.
func (c *cluster) save() error {
	conn, err := net.Dial("unix", controlSocket(c.Dir))
	if err != nil {
		return err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var peerErr error
	err = raw.Control(func(fd uintptr) {
		peer, peerErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, peerErr); err != nil {
		return fmt.Errorf("ask who listens: %w", err)
	}
	c.Supervisor = int(peer.Pid)
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return os.WriteFile(recordFile(c.work), b, 0o644)
}

// control asks for a change of a node: kill ends all its processes at once, start starts it with the files that it had,
// reboot is both with another boot id. It comes back when that is done, before the node is ready.
func (c *cluster) control(ctx context.Context, name, verb string) error {
	_, err := c.ask(ctx, http.MethodPost, "/nodes/"+name+"/"+verb)
	return err
}

func (c *cluster) ask(ctx context.Context, method, path string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://cluster"+path, nil)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", controlSocket(c.Dir))
		},
	}}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %s", method, path, response.Status, bytes.TrimSpace(body))
	}
	return body, err
}

// command is a command on the cluster's network.
func (c *cluster) command(ctx context.Context, args ...string) *exec.Cmd {
	network := fmt.Sprintf("--net=/proc/%d/ns/net", c.Supervisor)
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{network, "--"}, args...)...)
	tools, _ := filepath.Abs(filepath.Join(c.work, "../bin"))
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.kubeconfig(), "PATH="+tools+":"+os.Getenv("PATH"))
	return cmd
}

func (c *cluster) kubeconfig() string { return filepath.Join(c.Dir, "control-plane/kubeconfig") }

// enter runs a command with the terminal and ends with its code.
func (c *cluster) enter(args []string) error {
	cmd := c.command(context.Background(), args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	return err
}

// keepLogs copies the logs to where they survive the cluster.
func (c *cluster) keepLogs() {
	target := filepath.Join(filepath.Dir(c.work), "cluster-logs")
	if os.RemoveAll(target) != nil || os.MkdirAll(target, 0o755) != nil {
		return
	}
	for _, pattern := range []string{"*/*.log", "*/*/*.log"} {
		logs, _ := filepath.Glob(filepath.Join(c.Dir, pattern))
		for _, log := range append(logs, supervisorLog(c.work)) {
			if b, err := os.ReadFile(log); err == nil {
				name := strings.ReplaceAll(strings.TrimPrefix(strings.TrimPrefix(log, c.Dir), c.work)[1:], "/", "-")
				os.WriteFile(filepath.Join(target, name), b, 0o644)
			}
		}
	}
	fmt.Println("logs are in", target)
}

// tail is the end of a log file.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-6000):])
}
