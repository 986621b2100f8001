package main

import (
	"context"
	"crypto/tls"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/gantry-cri/gantry/test/e2e/images"
	"github.com/gantry-cri/gantry/test/e2e/node"
	"github.com/gantry-cri/gantry/test/kubelet"
)

// The cluster's network. The bridge has one port for each node; nothing leads out of it.
const (
	bridge       = "cluster0"
	controlIP    = "192.0.2.1"
	registryAt   = controlIP + ":5000"
	nodeIPs      = "192.0.2.%d"
	firstNodeIP  = 11
	clusterCIDR  = "10.244.0.0/16"
	serviceCIDR  = "10.96.0.0/16"
	apiServiceIP = "10.96.0.1" // the first of them
)

//go:embed metrics.yaml
var metricsManifest string

// supervisor is the process on the cluster's network that runs the control plane and the nodes.
type supervisor struct {
	options
	bin, tools string
	ca         *authority
	control    *kubelet.ControlPlane
	client     *http.Client // for the API server

	mu    sync.Mutex // held while a node is changed
	nodes []*member
	ready bool
}

// supervise runs a cluster until ctx ends. It is run in namespaces of its own.
func supervise(ctx context.Context, args []string) error {
	top, err := os.Getwd()
	if err != nil {
		return err
	}
	s := &supervisor{bin: filepath.Join(top, "bin"), tools: filepath.Join(top, ".work/bin")}
	if err := json.Unmarshal([]byte(args[0]), &s.options); err != nil {
		return err
	}
	s.client = &http.Client{
		Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
	}
	listener, err := net.Listen("unix", controlSocket(node.Dir()))
	if err != nil {
		return err
	}
	go http.Serve(listener, s.handler())
	if err := s.start(ctx); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func (s *supervisor) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, upTimeout)
	defer cancel()
	began := time.Now()
	report := func(what string) { fmt.Printf("%6.1f s  %s\n", time.Since(began).Seconds(), what) }
	weigh()
	if err := addBridge(); err != nil {
		return err
	}
	pushed := make(chan error, 1)
	go func() { pushed <- s.startRegistry(ctx) }()
	if err := s.startControlPlane(ctx); err != nil {
		return err
	}
	report("the control plane is ready")
	if err := <-pushed; err != nil {
		return err
	}
	report("images are pushed")
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.Nodes {
		m, err := s.newMember(i + 1)
		if err != nil {
			return err
		}
		s.nodes = append(s.nodes, m)
		if err := m.start(); err != nil {
			return err
		}
	}
	for _, m := range s.nodes {
		if err := s.join(ctx, m); err != nil {
			return err
		}
		report(m.Name + " has joined")
	}
	if s.Metrics {
		manifest := strings.ReplaceAll(metricsManifest, "METRICS_SERVER", images.MetricsServer)
		if _, err := s.control.Kubectl(ctx, manifest, "apply", "-f", "-"); err != nil {
			return err
		}
	}
	args := []string{"wait", "--for=condition=Ready", "nodes", "--all", "--timeout=5m"}
	if _, err := s.control.Kubectl(ctx, "", args...); err != nil {
		return err
	}
	report("all nodes are ready")
	s.ready = true
	return nil
}

// weigh gives the cluster as much of the processors as its many processes would have without a cgroup of their own, on
// a machine where others are busy, too.
func weigh() {
	for file, weight := range map[string]string{"cpu/cpu.shares": "16384", "cpu.weight": "1600"} {
		os.WriteFile(filepath.Join("/sys/fs/cgroup", file), []byte(weight), 0) // only one of them exists
	}
}

func addBridge() error {
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}}
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	address, err := netlink.ParseAddr(controlIP + "/24")
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(link, address), netlink.LinkSetUp(link))
}

func (s *supervisor) startRegistry(ctx context.Context) error {
	list, err := images.Cluster(s.tools, s.Metrics)
	if err != nil {
		return err
	}
	if _, err := node.StartRegistryAt(ctx, registryAt, s.tools, filepath.Join(node.Dir(), "registry"), false); err != nil {
		return err
	}
	return images.Push(ctx, images.Registry{Address: registryAt}, list)
}

func (s *supervisor) startControlPlane(ctx context.Context) (err error) {
	dir := filepath.Join(node.Dir(), "control-plane")
	if s.ca, err = newAuthority(filepath.Join(dir, "pki")); err != nil {
		return err
	}
	ca := s.ca
	s.control = &kubelet.ControlPlane{Dir: dir, Tools: s.tools, Address: controlIP, ServerArgs: []string{
		"--advertise-address=" + controlIP, "--tls-cert-file=" + ca.crt("server"),
		"--tls-private-key-file=" + ca.keyFile("server"), "--client-ca-file=" + ca.crt("ca"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged",
		"--kubelet-certificate-authority=" + ca.crt("ca"), "--kubelet-client-certificate=" + ca.crt("admin"),
		"--kubelet-client-key=" + ca.keyFile("admin"),
		// Aggregated servers, and by their endpoints: there is no kube-proxy on this network.
		"--enable-aggregator-routing", "--requestheader-client-ca-file=" + ca.crt("ca"),
		"--requestheader-allowed-names=front-proxy", "--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + ca.crt("front-proxy"), "--proxy-client-key-file=" + ca.keyFile("front-proxy"),
		// Tests wait for pods to leave a dead node.
		"--default-not-ready-toleration-seconds=10", "--default-unreachable-toleration-seconds=10",
	}}
	err = errors.Join(
		ca.issue("server", "kube-apiserver", "", controlIP, apiServiceIP),
		ca.issue("admin", "admin", "system:masters"),
		ca.issue("front-proxy", "front-proxy", ""),
		ca.issue("kube-proxy", "system:kube-proxy", ""),
		ca.kubeconfig("kube-proxy", s.control.URL()),
	)
	if err != nil {
		return err
	}
	if err := s.control.Start(ctx); err != nil {
		return err
	}
	config := "--kubeconfig=" + s.control.Kubeconfig()
	return errors.Join(
		s.control.Run("kube-controller-manager", config, "--bind-address=127.0.0.1", "--leader-elect=false",
			"--service-account-private-key-file="+s.control.ServiceAccountKey(), "--root-ca-file="+ca.crt("ca"),
			"--allocate-node-cidrs", "--cluster-cidr="+clusterCIDR, "--service-cluster-ip-range="+serviceCIDR),
		s.control.Run("kube-scheduler", config, "--bind-address=127.0.0.1", "--leader-elect=false"),
	)
}

// handler serves the control socket.
func (s *supervisor) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.ready {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("POST /nodes/{name}/{verb}", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if err := s.change(r.Context(), r.PathValue("name"), r.PathValue("verb")); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	return mux
}

// change does what cluster.control says.
func (s *supervisor) change(ctx context.Context, name, verb string) error {
	for _, m := range s.nodes {
		switch {
		case m.Name != name:
			continue
		case verb == "kill":
			return m.kill()
		case verb == "reboot":
			m.kill()
			m.newBoot()
		case verb != "start":
			return fmt.Errorf("unknown verb %q", verb)
		}
		if err := m.start(); err != nil {
			return err
		}
		return s.join(ctx, m)
	}
	return fmt.Errorf("no node %q", name)
}
