package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// bootTimeout is generous: it takes 20 s on a quiet machine.
const bootTimeout = 5 * time.Minute

// machine is a running guest. What it writes to its disks is gone with it.
type machine struct {
	cmd     *exec.Cmd
	exited  chan struct{}
	url     string // of the agent
	console string // file
}

// boot starts a guest on the image and the payload below dir and waits for its agent.
func boot(ctx context.Context, dir string) (*machine, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	m := &machine{exited: make(chan struct{}), url: "http://" + address + "/run", console: filepath.Join(dir, "console.log")}
	m.cmd = exec.Command("qemu-system-x86_64", qemuArgs(dir, m.console, address)...)
	m.cmd.Env = append(os.Environ(), "TMPDIR="+dir) // for what the guest writes
	m.cmd.Stdout, m.cmd.Stderr = os.Stderr, os.Stderr
	// Its own group, so that Ctrl-C leaves the end to us; and however we end, it ends.
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go m.attend(started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start QEMU (make vm-test installs it): %w", err)
	}
	begin := time.Now()
	if err := m.wait(ctx); err != nil {
		m.powerOff()
		return nil, err
	}
	fmt.Printf("The guest is up after %.0f s; its agent is %s.\n", time.Since(begin).Seconds(), m.url)
	return m, nil
}

// attend starts QEMU and waits for its end, on one thread: the parent-death signal is tied to that.
func (m *machine) attend(started chan<- error) {
	runtime.LockOSThread()
	err := m.cmd.Start()
	started <- err
	if err == nil {
		_ = m.cmd.Wait()
		close(m.exited)
	}
}

func qemuArgs(dir, console, agent string) []string {
	return []string{
		"-M", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,-cx16", "-smp", "2", "-m", "3072",
		"-nodefaults", "-display", "none", "-serial", "file:" + console,
		"-kernel", filepath.Join(dir, "vmlinuz"),
		"-append", "root=/dev/nvme0n1 rw console=ttyS0 quiet net.ifnames=0 panic=5 tsc=reliable mitigations=off audit=0 psi=1",
		// The only disk whose driver is built in, as the kernel numbers several in the order in which they answer.
		"-drive", "if=none,id=root,format=raw,snapshot=on,file=" + filepath.Join(dir, "root.ext4"),
		"-device", "nvme,serial=root,drive=root",
		"-drive", "if=none,id=payload,format=raw,snapshot=on,file=" + filepath.Join(dir, "payload.ext4"),
		"-device", "virtio-blk-pci,drive=payload",
		// The guest reaches nothing, and only the host reaches it.
		"-netdev", "user,id=net,restrict=on,hostfwd=tcp:" + agent + "-10.0.2.15:80",
		"-device", "virtio-net-pci,netdev=net",
	}
}

// freeAddress is a loopback address that nobody listens on just now.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// wait returns when the agent answers.
func (m *machine) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	for {
		if _, err := m.bootID(ctx); err == nil {
			return nil
		}
		select {
		case <-m.exited:
			return fmt.Errorf("QEMU ended: %v", m.cmd.ProcessState)
		case <-ctx.Done():
			return fmt.Errorf("wait for the guest, whose console is %s: %w", m.console, ctx.Err())
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// powerOff ends the guest at once.
func (m *machine) powerOff() {
	_ = m.cmd.Process.Kill()
	<-m.exited
}

// sh runs a shell script in the guest, passing its output on while it runs. The script is killed when ctx ends.
func (m *machine) sh(ctx context.Context, out io.Writer, script string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, m.url, strings.NewReader(script))
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("ask the guest's agent: %w", err)
	}
	defer response.Body.Close()
	if _, err := io.Copy(out, response.Body); err != nil {
		return fmt.Errorf("read from the guest: %w", err)
	}
	if code := response.Trailer.Get("Exit-Code"); code != "0" {
		return fmt.Errorf("exit code %q of: %s", code, script)
	}
	return nil
}

// saveJournal keeps what the guest's services said.
func (m *machine) saveJournal(file string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	f, err := os.Create(file)
	if err != nil {
		return
	}
	defer f.Close()
	if err := m.sh(ctx, f, "journalctl --no-pager -o short-monotonic; cat /run/gantry/keeper.log"); err == nil {
		fmt.Println("The guest's journal is", file)
	}
}
