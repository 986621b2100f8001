//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/node"
)

// embeddedNode is a node with the embedded network on a bridge of its own and no plugins.
func embeddedNode(t *testing.T, name, subnet string) *node.Node {
	t.Helper()
	n, err := newNode(name, func(o *node.Options) {
		o.EmbeddedNetwork = true
		o.Config = fmt.Sprintf("[embedded_network]\nbridge = %q\nsubnet = %q\n", name, subnet)
		o.CNIBin = o.Dir + "/no-plugins"
	})
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
	return n
}

// emptyPod runs a sandbox on a node, without a test that owns it.
func emptyPod(ctx context.Context, n *node.Node, name string, ports ...*runtime.PortMapping) (string, error) {
	response, err := n.Runtime.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: &runtime.PodSandboxConfig{
		Metadata: &runtime.PodSandboxMetadata{Name: name, Namespace: "e2e", Uid: name}, Hostname: name, PortMappings: ports,
	}})
	return response.GetPodSandboxId(), err
}

func TestEmbeddedNetworkOutlivesTheDaemon(t *testing.T) {
	n := embeddedNode(t, "emb-restart", "10.86.0.0/24")
	mapping := &runtime.PortMapping{ContainerPort: 80, HostPort: 23083}
	p := runPodOn(t, n, podConfig(t, n, ""), func(c *runtime.PodSandboxConfig) {
		c.PortMappings = []*runtime.PortMapping{mapping}
	})
	p.start(t, "server", "", webServer)
	client := runPodOn(t, n, podConfig(t, n, "-client")).start(t, "client", "sleep 1000")
	check := func() {
		t.Helper()
		for _, url := range []string{
			fmt.Sprintf("http://%s/", p.ip(t)), "http://127.0.0.1:23083/", "http://10.86.0.1:23083/",
		} {
			if got := fetch(t, url); !strings.Contains(got, "hello from "+p.config.Hostname) {
				t.Errorf("server by %s answered %q", url, got)
			}
		}
		for _, from := range []*container{client, p.start(t, fmt.Sprint("self", time.Now().UnixNano()), "sleep 1000")} {
			if got := from.exec(t, "wget -q -O- http://10.86.0.1:23083/"); !strings.Contains(got, "hello from") {
				t.Errorf("server by host port from a pod answered %q", got)
			}
		}
	}
	ip := p.ip(t)
	check()
	n.Kill()
	if err := n.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "address after a restart", p.ip(t), ip)
	check()
	if other := runPodOn(t, n, podConfig(t, n, "-other")); other.ip(t) == ip {
		t.Errorf("address %s was given twice", ip)
	}
	_, err := emptyPod(timeout(t), n, "refused", mapping)
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "host port 23083/tcp: sandbox "+p.id) {
		t.Errorf("run sandbox with a host port that is taken: %v", err)
	}
}

func TestEmbeddedNetworkIsTakenAway(t *testing.T) {
	n := embeddedNode(t, "emb-clean", "10.93.0.0/24")
	refused := func(why string) {
		t.Helper()
		if out, err := n.Gantryd(timeout(t), "network", "cleanup"); err == nil || !strings.Contains(out, why) {
			t.Errorf("network cleanup: %v, %q; want a word of %q", err, out, why)
		}
	}
	stop := func() {
		t.Helper()
		if err := n.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	here := func() string {
		t.Helper()
		out, err := exec.CommandContext(timeout(t), "sh", "-c", "ip link && ip route && nft list tables").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	id, err := emptyPod(timeout(t), n, "emb-clean")
	if err != nil {
		t.Fatal(err)
	}
	refused("in use by another gantryd")
	stop()
	refused("sandbox " + id + " and 0 more are attached")
	for _, part := range []string{"emb-clean:", "10.93.0.0/24", "table inet emb-clean"} {
		if found := here(); !strings.Contains(found, part) {
			t.Errorf("no %s while a pod is attached:\n%s", part, found)
		}
	}
	if err := n.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
	if err := n.RemoveAll(timeout(t)); err != nil {
		t.Fatal(err)
	}
	stop()
	if out, err := n.Gantryd(timeout(t), "network", "cleanup"); err != nil {
		t.Errorf("network cleanup: %v, %s", err, out)
	}
	if found := here(); strings.Contains(found, "emb-clean") || strings.Contains(found, "10.93.0.") {
		t.Errorf("the network was not taken away:\n%s", found)
	}
	if err := n.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
}

func TestEmbeddedNetworkTakesThePodCIDR(t *testing.T) {
	n := embeddedNode(t, "emb-cidr", "10.87.0.0/24")
	tell := func(cidr string) error {
		_, err := n.Runtime.UpdateRuntimeConfig(timeout(t), &runtime.UpdateRuntimeConfigRequest{
			RuntimeConfig: &runtime.RuntimeConfig{NetworkConfig: &runtime.NetworkConfig{PodCidr: cidr}},
		})
		return err
	}
	old := runPodOn(t, n, podConfig(t, n, "-old"))
	if err := tell("10.88.3.0/24"); err != nil {
		t.Fatal(err)
	}
	young := runPodOn(t, n, podConfig(t, n, "-young"))
	young.start(t, "server", "", webServer)
	if !netip.MustParsePrefix("10.88.3.0/24").Contains(netip.MustParseAddr(young.ip(t))) {
		t.Errorf("address is %s, expected one of the range that was told", young.ip(t))
	}
	wantEqual(t, "address of the pod from before", old.ip(t), "10.87.0.2")
	c := old.start(t, "client", "sleep 1000")
	got := c.exec(t, fmt.Sprintf("for i in $(seq 300); do wget -q -O- http://%s/ && exit; sleep 0.1; done; exit 1", young.ip(t)))
	if !strings.Contains(got, "hello from") {
		t.Errorf("a pod of the other range answered %q", got)
	}
	n.Kill()
	if err := n.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
	late := runPodOn(t, n, podConfig(t, n, "-late"))
	if !strings.HasPrefix(late.ip(t), "10.88.3.") {
		t.Errorf("after a restart the address is %s", late.ip(t))
	}
	if err := tell("10.88.3.0"); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "pod_cidr") {
		t.Errorf("tell what is no range: %v", err)
	}
	if err := tell(""); err != nil {
		t.Errorf("tell nothing: %v", err)
	}
}

func TestEmbeddedNetworkRefusesWhenItIsFull(t *testing.T) {
	n := embeddedNode(t, "emb-full", "10.89.0.0/29")
	var ids []string
	for i := range 5 {
		id, err := emptyPod(timeout(t), n, fmt.Sprint("pod", i))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	_, err := emptyPod(timeout(t), n, "late")
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "10.89.0.0/29: sandboxes have 5 of 5") {
		t.Errorf("one pod too many: %v", err)
	}
	if _, err := n.Runtime.StopPodSandbox(timeout(t), &runtime.StopPodSandboxRequest{PodSandboxId: ids[2]}); err != nil {
		t.Fatal(err)
	}
	if _, err := emptyPod(timeout(t), n, "late"); err != nil {
		t.Errorf("a pod after another was stopped: %v", err)
	}
}

// TestEmbeddedNetworkSurvivesKills kills the daemon while pods start, and again while they are removed.
func TestEmbeddedNetworkSurvivesKills(t *testing.T) {
	n := embeddedNode(t, "emb-kill", "10.90.0.0/26") // what leaks is soon missed
	allowed := []int{registry.PID(), shared.PID(), keeperPID(t, shared)}
	before, err := footprintAfterOne(timeout(t), n, allowed...)
	if err != nil {
		t.Fatal(err)
	}
	const pods = 16
	for round := range 8 {
		var group sync.WaitGroup
		begun := make(chan struct{}, pods)
		for i := range pods {
			group.Go(func() {
				begun <- struct{}{}
				// Fails for those that the kill comes before.
				emptyPod(timeout(t), n, fmt.Sprintf("pod%d-%d", round, i), &runtime.PortMapping{
					ContainerPort: 80, HostPort: int32(24000 + i),
				})
			})
		}
		<-begun
		time.Sleep(time.Duration(round) * 8 * time.Millisecond)
		n.Kill()
		group.Wait()
		if err := n.Start(timeout(t)); err != nil {
			t.Fatal(err)
		}
		wantDistinctAddresses(t, n)
		if round%2 == 1 { // also in the midst of the removal
			go n.RemoveAll(timeout(t))
			time.Sleep(time.Duration(round) * 3 * time.Millisecond)
			n.Kill()
			if err := n.Start(timeout(t)); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.RemoveAll(timeout(t)); err != nil {
			t.Fatal(err)
		}
	}
	leaks, err := n.Leaks(before, time.Minute, append(allowed, n.PID(), keeperPID(t, n))...)
	if err != nil || len(leaks) > 0 {
		t.Errorf("left behind: %s, %v", strings.Join(leaks, "\n  "), err)
	}
	if files, err := os.ReadDir(n.Root() + "/cni/attachments"); err != nil || len(files) > 0 {
		t.Errorf("attachments are left: %v, %v", files, err)
	}
	for i := range pods { // all host ports and addresses are free again
		if _, err := emptyPod(timeout(t), n, fmt.Sprint("last", i), &runtime.PortMapping{
			ContainerPort: 80, HostPort: int32(24000 + i),
		}); err != nil {
			t.Errorf("run a pod at the end: %v", err)
		}
	}
}

func TestEmbeddedNetworkOfUnusualPods(t *testing.T) {
	n := embeddedNode(t, "emb-pods", "10.92.0.0/24")
	for name, change := range map[string]func(*runtime.PodSandboxConfig){
		"without IPv6": func(c *runtime.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"net.ipv6.conf.all.disable_ipv6": "1"}
		},
		"with a user namespace": inUserns(1 << 20),
	} {
		t.Run(name, func(t *testing.T) {
			if name == "with a user namespace" {
				needUserns(t)
			}
			p := runPodOn(t, n, podConfig(t, n, ""), change)
			more := len(p.status(t).GetNetwork().GetAdditionalIps())
			if _, err := os.Stat("/proc/sys/net/ipv6"); err == nil {
				wantEqual(t, "IPv6 address", more == 1, name != "without IPv6")
			}
			url := "http://" + p.ip(t) + "/"
			join := func(*runtime.ContainerConfig) {}
			if name == "with a user namespace" {
				join = joining(1 << 20)
			}
			p.start(t, "server", "", webServer, join)
			if got := fetch(t, url); !strings.Contains(got, "hello from") {
				t.Errorf("server answered %q", got)
			}
		})
	}
}

func wantDistinctAddresses(t *testing.T, n *node.Node) {
	t.Helper()
	list, err := n.Runtime.ListPodSandbox(timeout(t), &runtime.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for _, item := range list.Items {
		response, err := n.Runtime.PodSandboxStatus(timeout(t), &runtime.PodSandboxStatusRequest{PodSandboxId: item.Id})
		if status.Code(err) == codes.NotFound {
			continue // what the kill left half-made is removed
		}
		if err != nil {
			t.Fatal(err)
		}
		ip := response.Status.GetNetwork().GetIp()
		if item.State != runtime.PodSandboxState_SANDBOX_READY || ip == "" {
			continue
		}
		if seen[ip] != "" {
			t.Errorf("sandboxes %s and %s have the same address %s", seen[ip], item.Id, ip)
		}
		seen[ip] = item.Id
	}
}
