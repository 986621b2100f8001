package kubelet

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// ControlPlane is etcd and a kube-apiserver, without scheduler: pods are bound to their node by name. Controllers are started
// by Run.
// Everybody who has the token may do everything. Its methods are for one goroutine, but for Kubectl and Get.
type ControlPlane struct {
	// Dir holds its files; it has to exist. Tools holds etcd, kube-apiserver and kubectl (make k8s builds them).
	Dir, Tools string
	// Address is where the server listens; default 127.0.0.1.
	Address string
	// ServerArgs are arguments of the server in place of those by which it makes a certificate for itself, asks nobody who
	// may do what, and gives pods no tokens.
	ServerArgs []string
	commands   []*exec.Cmd
}

// Addresses of the control plane, in the network namespace of the run.
const (
	etcdURL  = "http://127.0.0.1:2379"
	peerURL  = "http://127.0.0.1:2380"
	apiToken = "token-of-the-tests"
)

// URL is the address of the server.
func (c *ControlPlane) URL() string { return "https://" + net.JoinHostPort(c.Address, "6443") }

// ServiceAccountKey is the file of the key that signs the tokens of pods.
func (c *ControlPlane) ServiceAccountKey() string {
	return filepath.Join(c.Dir, "service-accounts.pem")
}

// Kubeconfig is the file for kubectl and for Options.Kubeconfig.
func (c *ControlPlane) Kubeconfig() string { return filepath.Join(c.Dir, "kubeconfig") }

// Start starts both and waits until the server is ready.
func (c *ControlPlane) Start(ctx context.Context) error {
	setDefault(&c.Address, "127.0.0.1")
	if err := c.writeFiles(); err != nil {
		return err
	}
	err := c.Run("etcd", "--data-dir="+filepath.Join(c.Dir, "etcd"), "--listen-client-urls="+etcdURL,
		"--advertise-client-urls="+etcdURL, "--listen-peer-urls="+peerURL, "--unsafe-no-fsync", "--log-level=warn")
	if err != nil {
		return err
	}
	args := []string{
		"--etcd-servers=" + etcdURL, "--bind-address=" + c.Address, "--service-cluster-ip-range=10.96.0.0/16",
		"--token-auth-file=" + filepath.Join(c.Dir, "tokens.csv"),
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + c.ServiceAccountKey(),
		"--service-account-signing-key-file=" + c.ServiceAccountKey(), "--kubelet-preferred-address-types=InternalIP",
	}
	if c.ServerArgs == nil {
		args = append(args, "--cert-dir="+filepath.Join(c.Dir, "certs"), "--advertise-address="+NodeIP,
			"--authorization-mode=AlwaysAllow", "--disable-admission-plugins=ServiceAccount")
	}
	if err := c.Run("kube-apiserver", append(args, c.ServerArgs...)...); err != nil {
		return err
	}
	return c.waitReady(ctx)
}

func (c *ControlPlane) writeFiles() error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	kubeconfig := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: test
clusters: [{name: test, cluster: {server: %q, insecure-skip-tls-verify: true}}]
users: [{name: test, user: {token: %q}}]
contexts: [{name: test, context: {cluster: test, user: test}}]
`, c.URL(), apiToken)
	return errors.Join(
		os.WriteFile(c.ServiceAccountKey(), block, 0o600),
		os.WriteFile(filepath.Join(c.Dir, "tokens.csv"), []byte(apiToken+",test,test,system:masters\n"), 0o600),
		os.WriteFile(c.Kubeconfig(), []byte(kubeconfig), 0o600),
	)
}

// Run starts a program of the tools with a log of its own, NAME.log in Dir. Stop ends it.
func (c *ControlPlane) Run(program string, args ...string) error {
	log, err := os.Create(filepath.Join(c.Dir, program+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(c.Tools, program), args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.Dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s (make k8s builds it): %w", program, err)
	}
	c.commands = append(c.commands, cmd)
	return nil
}

func (c *ControlPlane) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		out, err := c.Kubectl(ctx, "", "get", "--raw", "/readyz")
		if err == nil && out == "ok" {
			return nil
		}
		select {
		case <-ctx.Done():
			log, _ := os.ReadFile(filepath.Join(c.Dir, "kube-apiserver.log"))
			return fmt.Errorf("wait for kube-apiserver: %w\n%s", err, log[max(0, len(log)-4000):])
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// Kubectl runs kubectl with text for its standard input and returns its standard output; the error holds its standard
// error.
func (c *ControlPlane) Kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(c.Tools, "kubectl"), append([]string{"--kubeconfig", c.Kubeconfig()}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	cmd.Env = append(os.Environ(), "HOME="+c.Dir) // its cache
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// Get gets a path from the server as JSON.
func (c *ControlPlane) Get(ctx context.Context, client *http.Client, path string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL()+path, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+apiToken)
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("get %s: %s: %s", path, response.Status, body)
	}
	return body, err
}

// Stop kills what Start and Run started; their files stay.
func (c *ControlPlane) Stop() {
	for _, cmd := range c.commands {
		cmd.Process.Kill()
		cmd.Wait()
	}
}
