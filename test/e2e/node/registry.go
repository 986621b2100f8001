package node

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Credentials that a registry started with Auth takes; the hash is bcrypt of the password.
const (
	RegistryUser     = "alibaba"
	RegistryPassword = "open sesame"
	registryHash     = "$2a$04$mqI2AOCKA/JwAj0tOcLIA.oh5Puzp5fRdn/A4wQ/WxPZXVugIspOC"
)

// Registry is a running image registry.
type Registry struct {
	// Address is host:port; it speaks plain HTTP.
	Address string
	cmd     *exec.Cmd
}

// StartRegistry starts the registry program of the tools directory with its storage in dir and waits until it answers.
// With auth it wants RegistryUser and RegistryPassword.
func StartRegistry(ctx context.Context, tools, dir string, auth bool) (*Registry, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	return StartRegistryAt(ctx, address, tools, dir, auth)
}

// StartRegistryAt is StartRegistry with an address, which is host:port.
func StartRegistryAt(ctx context.Context, address, tools, dir string, auth bool) (*Registry, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	config := fmt.Sprintf("version: 0.1\nlog: {level: warn, accesslog: {disabled: true}}\n"+
		"storage: {filesystem: {rootdirectory: %q}, delete: {enabled: true}}\nhttp: {addr: %q}\n",
		filepath.Join(dir, "data"), address)
	if auth {
		htpasswd := filepath.Join(dir, "htpasswd")
		if err := os.WriteFile(htpasswd, []byte(RegistryUser+":"+registryHash+"\n"), 0o600); err != nil {
			return nil, err
		}
		config += fmt.Sprintf("auth: {htpasswd: {realm: test, path: %q}}\n", htpasswd)
	}
	file := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "registry.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(tools, "registry"), "serve", file)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's Ctrl-C is for the program that started it
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start registry (make tools builds it): %w", err)
	}
	r := &Registry{Address: address, cmd: cmd}
	if err := r.wait(ctx); err != nil {
		r.Stop()
		return nil, fmt.Errorf("%w\n%s", err, tail(log.Name()))
	}
	return r, nil
}

func (r *Registry) wait(ctx context.Context) error {
	deadline := time.Now().Add(time.Minute)
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.Address+"/v2/", nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request)
		if err == nil {
			response.Body.Close()
			return nil
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return fmt.Errorf("wait for registry: %w", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// PID is the process id of the registry.
func (r *Registry) PID() int { return r.cmd.Process.Pid }

// Stop kills the registry; its storage stays. It may be called more than once.
func (r *Registry) Stop() {
	r.cmd.Process.Kill()
	r.cmd.Wait()
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
