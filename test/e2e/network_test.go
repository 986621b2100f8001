//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/images"
	"github.com/gantry-cri/gantry/test/e2e/node"
)

// webServer changes a container into the test's web server.
func webServer(c *runtime.ContainerConfig) {
	c.Image.Image, c.Command = images.Web, nil
}

// fetch gets a URL, trying until the server is up.
func fetch(t *testing.T, url string) string {
	t.Helper()
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var body []byte
	eventually(t, url+" answers", func() bool {
		response, err := client.Get(url)
		if err != nil {
			return false
		}
		defer response.Body.Close()
		body, err = io.ReadAll(response.Body)
		return err == nil && response.StatusCode == http.StatusOK
	})
	return string(body)
}

func TestContainersOfAPodTalkOverLocalhost(t *testing.T) {
	p := runPod(t)
	p.start(t, "server", "", webServer)
	client := p.start(t, "client", "sleep 1000")
	got := client.exec(t, "for i in $(seq 300); do wget -q -O- http://127.0.0.1/ && exit; sleep 0.1; done; exit 1")
	if !strings.Contains(got, "hello from "+p.config.Hostname) {
		t.Errorf("server answered %q", got)
	}
}

// onBothNetworks runs a test on the shared node, which has a network of plugins, and on one with the embedded network.
func onBothNetworks(t *testing.T, test func(t *testing.T, n *node.Node)) {
	t.Run("plugins", func(t *testing.T) { test(t, shared) })
	t.Run("embedded", func(t *testing.T) { test(t, embeddedNode(t, "emb-both", "10.91.0.0/24")) })
}

func TestPodsTalk(t *testing.T) { onBothNetworks(t, podsTalk) }

func podsTalk(t *testing.T, n *node.Node) {
	server := runPodOn(t, n, podConfig(t, n, "-server"))
	client := runPodOn(t, n, podConfig(t, n, "-client"))
	server.start(t, "server", "", webServer)
	c := client.start(t, "client", "sleep 1000")
	got := c.exec(t, fmt.Sprintf("for i in $(seq 300); do wget -q -O- http://%s/ && exit; sleep 0.1; done; exit 1", server.ip(t)))
	if !strings.Contains(got, "hello from "+server.config.Hostname) {
		t.Errorf("server answered %q", got)
	}
	if server.ip(t) == client.ip(t) {
		t.Error("both pods have the same address")
	}
}

func TestHostPort(t *testing.T) { onBothNetworks(t, hostPort) }

func hostPort(t *testing.T, n *node.Node) {
	const port = 23080
	p := runPodOn(t, n, podConfig(t, n, ""), func(c *runtime.PodSandboxConfig) {
		c.PortMappings = []*runtime.PortMapping{
			{Protocol: runtime.Protocol_TCP, ContainerPort: 80, HostPort: port},
			{Protocol: runtime.Protocol_TCP, ContainerPort: 81}, // 0 is no mapping
		}
	})
	p.start(t, "server", "", webServer)
	for what, url := range map[string]string{
		"pod address": fmt.Sprintf("http://%s/", p.ip(t)), "host port": fmt.Sprintf("http://127.0.0.1:%d/", port),
	} {
		if got := fetch(t, url); !strings.Contains(got, "hello from "+p.config.Hostname) {
			t.Errorf("server by %s answered %q", what, got)
		}
	}
	p.remove(t)
	if conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second); err == nil {
		conn.Close()
		t.Error("host port is open after the pod was removed")
	}
}

func TestHostNetwork(t *testing.T) {
	p := runPod(t, func(c *runtime.PodSandboxConfig) {
		c.Hostname = ""
		c.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_NODE
	})
	c := p.start(t, "c", "sleep 1000", func(c *runtime.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_NODE
	})
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "network namespace", c.exec(t, "readlink /proc/self/ns/net"), own)
	hostname, _ := os.Hostname()
	wantEqual(t, "hostname", c.exec(t, "hostname"), hostname)
	wantEqual(t, "address in status", p.status(t).GetNetwork().GetIp(), "")
}

func TestPortForward(t *testing.T) {
	p := runPod(t)
	p.start(t, "server", "", webServer)
	fetch(t, fmt.Sprintf("http://%s/", p.ip(t)))
	ctx, cancel := context.WithCancel(timeout(t))
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		shared.Crictl(ctx, "port-forward", p.id, "23081:80")
	}()
	if got := fetch(t, "http://127.0.0.1:23081/"); !strings.Contains(got, "hello from") {
		t.Errorf("server answered %q", got)
	}
	cancel()
	<-ended
}

func TestEmbeddedNetwork(t *testing.T) {
	n, err := newNode("embedded", func(o *node.Options) { o.EmbeddedNetwork = true })
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(n.CNIConf); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, n)
	p := runPodOn(t, n, podConfig(t, n, ""), func(c *runtime.PodSandboxConfig) {
		c.PortMappings = []*runtime.PortMapping{{ContainerPort: 80, HostPort: 23082}}
	})
	p.start(t, "server", "", webServer)
	if got := fetch(t, "http://127.0.0.1:23082/"); !strings.Contains(got, "hello from "+p.config.Hostname) {
		t.Errorf("server answered %q", got)
	}
}
