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
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// ControlPlane is etcd and a kube-apiserver, without scheduler and controllers: pods are bound to their node by name.
// Everybody who has the token may do everything.
type ControlPlane struct {
	// Dir holds its files; it has to exist. Tools holds etcd, kube-apiserver and kubectl (make k8s builds them).
	Dir, Tools string
	commands   []*exec.Cmd
}

// Addresses of the control plane, in the network namespace of the run.
const (
	etcdURL   = "http://127.0.0.1:2379"
	peerURL   = "http://127.0.0.1:2380"
	serverURL = "https://127.0.0.1:6443"
	apiToken  = "token-of-the-tests"
)

// Kubeconfig is the file for kubectl and for Options.Kubeconfig.
func (c *ControlPlane) Kubeconfig() string { return filepath.Join(c.Dir, "kubeconfig") }

// Start starts both and waits until the server is ready.
func (c *ControlPlane) Start(ctx context.Context) error {
	if err := c.writeFiles(); err != nil {
		return err
	}
	err := c.run("etcd", "--data-dir="+filepath.Join(c.Dir, "etcd"), "--listen-client-urls="+etcdURL,
		"--advertise-client-urls="+etcdURL, "--listen-peer-urls="+peerURL, "--unsafe-no-fsync", "--log-level=warn")
	if err != nil {
		return err
	}
	key := filepath.Join(c.Dir, "service-accounts.pem")
	err = c.run("kube-apiserver", "--etcd-servers="+etcdURL, "--cert-dir="+filepath.Join(c.Dir, "certs"),
		"--bind-address=127.0.0.1", "--advertise-address="+NodeIP, "--service-cluster-ip-range=10.96.0.0/16",
		"--authorization-mode=AlwaysAllow", "--token-auth-file="+filepath.Join(c.Dir, "tokens.csv"),
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+key,
		"--service-account-signing-key-file="+key, "--disable-admission-plugins=ServiceAccount",
		"--kubelet-preferred-address-types=InternalIP")
	if err != nil {
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
`, serverURL, apiToken)
	return errors.Join(
		os.WriteFile(filepath.Join(c.Dir, "service-accounts.pem"), block, 0o600),
		os.WriteFile(filepath.Join(c.Dir, "tokens.csv"), []byte(apiToken+",test,test,system:masters\n"), 0o600),
		os.WriteFile(c.Kubeconfig(), []byte(kubeconfig), 0o600),
	)
}

// run starts a program of the tools with a log of its own.
func (c *ControlPlane) run(program string, args ...string) error {
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
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, serverURL+path, nil)
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

// Stop kills both; their files stay.
func (c *ControlPlane) Stop() {
	for _, cmd := range c.commands {
		cmd.Process.Kill()
		cmd.Wait()
	}
}
