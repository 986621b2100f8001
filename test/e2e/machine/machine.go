// Package machine boots a machine for tests: a root filesystem with systemd, in namespaces of its own, by the scripts of
// hack/systemd. It is for units and packages; it is not a virtual machine, and has no cgroup controllers where the host
// has cgroup v1.
package machine

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// bootTimeout is how long the machine may take until systemd says that it is up.
const bootTimeout = 3 * time.Minute

// Machine is a booted machine. Its methods may be called from several goroutines.
type Machine struct {
	// log is what boot.sh printed.
	log    string
	pid    string // of process 1, as seen here
	cmd    *exec.Cmd
	exited chan struct{}
}

// Boot boots a machine whose files are those of root, changed in scratch, an empty directory; both have to be on a
// filesystem that is no overlay. scripts is hack/systemd. The machine dies with this process.
func Boot(ctx context.Context, scripts, root, scratch string) (*Machine, error) {
	if _, err := os.Stat(filepath.Join(root, ".complete")); err != nil {
		return nil, fmt.Errorf("boot: %w: hack/systemd/root.sh makes it", err)
	}
	m := &Machine{log: filepath.Join(scratch, "boot.log"), exited: make(chan struct{})}
	logFile, err := os.Create(m.log)
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	m.cmd = exec.Command(filepath.Join(scripts, "boot.sh"), root, scratch)
	m.cmd.Stdout, m.cmd.Stderr = logFile, logFile
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := m.cmd.Start(); err != nil {
		return nil, fmt.Errorf("boot: %w", err)
	}
	go func() {
		_ = m.cmd.Wait()
		close(m.exited)
	}()
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	if err := m.await(ctx, filepath.Join(scratch, "pid")); err != nil {
		m.Close()
		text, _ := os.ReadFile(m.log)
		return nil, fmt.Errorf("boot: %w\n%s", err, text)
	}
	return m, nil
}

// await waits for process 1, and then for it to say that all units are started.
func (m *Machine) await(ctx context.Context, pidFile string) error {
	var last error
	for {
		if text, err := os.ReadFile(pidFile); err == nil && m.pid == "" {
			m.pid = strings.TrimSpace(string(text))
		}
		if m.pid != "" {
			if _, last = m.Exec(ctx, nil, "systemctl", "is-system-running", "--wait"); last == nil {
				return nil
			}
		}
		select {
		case <-m.exited:
			return fmt.Errorf("the machine ended: %v", m.cmd.ProcessState)
		case <-ctx.Done():
			return fmt.Errorf("%w; last: %v", ctx.Err(), last)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Exec runs a command in the machine and returns its standard output. The error has what it wrote to standard error.
func (m *Machine) Exec(ctx context.Context, stdin io.Reader, command ...string) (string, error) {
	args := append([]string{"-a", "-t", m.pid, "--"}, command...)
	cmd := exec.CommandContext(ctx, "nsenter", args...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "SYSTEMD_PAGER="}
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Root is where the machine's files are seen from outside.
func (m *Machine) Root() string { return "/proc/" + m.pid + "/root" }

// Put copies a file into the machine, under its name only when it is whole.
func (m *Machine) Put(ctx context.Context, source, target string, mode os.FileMode) error {
	f, err := os.Open(source)
	if err != nil {
		return err
	}
	defer f.Close()
	return m.Write(ctx, f, target, mode)
}

// Write writes a file in the machine, with the directories above it.
func (m *Machine) Write(ctx context.Context, from io.Reader, target string, mode os.FileMode) error {
	script := fmt.Sprintf("mkdir -p '%[1]s' && cat >'%[2]s.new' && chmod %[3]o '%[2]s.new' && mv '%[2]s.new' '%[2]s'",
		filepath.Dir(target), target, mode)
	_, err := m.Exec(ctx, from, "sh", "-c", script)
	return err
}

// Wait returns when the machine has ended by itself.
func (m *Machine) Wait(ctx context.Context) error {
	select {
	case <-m.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the machine's end: %w", ctx.Err())
	}
}

// Close ends the machine, whatever runs in it.
func (m *Machine) Close() {
	_ = m.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-m.exited:
	case <-time.After(20 * time.Second):
		_ = m.cmd.Process.Kill()
		<-m.exited
	}
}
