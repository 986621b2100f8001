//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/node"
)

// The plugins of a broken network get the time that they need, but where one hangs.
const (
	patientNetwork   = "[cni]\nattach_timeout = \"2m\"\n"
	impatientNetwork = "[cni]\nattach_timeout = \"3s\"\n"
)

// reconfigure starts the daemon again with another configuration.
func reconfigure(t *testing.T, n *node.Node, config string) {
	t.Helper()
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.Dir, "config.toml"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
}

// brokenNetwork is a node whose network has one more plugin, the one named, of which bin makes the program.
func brokenNetwork(t *testing.T) (n *node.Node, plugins string) {
	t.Helper()
	name := "net" + strings.ToLower(filepath.Base(t.Name()))[:6]
	n, err := newNode(name, func(o *node.Options) {
		o.Config = patientNetwork
		o.CNIBin = filepath.Join(o.Dir, "plugins")
		if err := os.MkdirAll(o.CNIBin, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, plugin := range []string{"bridge", "host-local", "portmap", "firewall", "loopback"} {
			if err := os.Symlink(filepath.Join(binDir, "cni", plugin), filepath.Join(o.CNIBin, plugin)); err != nil {
				t.Fatal(err)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(n.CNIConf, "10-e2e.conflist")
	b, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(b), `{"type": "firewall"}`, `{"type": "firewall"}, {"type": "last"}`, 1)
	if err := os.WriteFile(conf, []byte(changed), 0o644); err != nil {
		t.Fatal(err)
	}
	setPlugin(t, n, "")
	if err := n.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, n)
	return n, n.CNIBin
}

// setPlugin makes the last plugin of the chain a shell script; it has the result of those before it in $result.
func setPlugin(t *testing.T, n *node.Node, body string) {
	t.Helper()
	program := "#!/bin/sh\nconf=$(cat)\n" + `
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}'; exit 0 ;;
ADD) ;;
*) exit 0 ;;
esac
` + body + `
echo "$conf" | sed 's/.*"prevResult"://; s/,"type":"last"}$//'
`
	path := filepath.Join(n.CNIBin, "last")
	if err := os.WriteFile(path+".new", []byte(program), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestNetworkThatFails(t *testing.T) {
	for _, test := range []struct {
		name, body string
		words      string
	}{
		{"failing", `echo '{"cniVersion":"1.0.0","code":100,"msg":"out of luck"}'; exit 1`, "out of luck"},
		{"missing", "", "last"},
		{"garbage", `echo no json; exit 0`, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			n, plugins := brokenNetwork(t)
			before, err := footprintAfterOne(timeout(t), n, registry.PID(), shared.PID(), keeperPID(t, shared))
			if err != nil {
				t.Fatal(err)
			}
			setPlugin(t, n, test.body)
			if test.name == "missing" {
				if err := os.Remove(filepath.Join(plugins, "last")); err != nil {
					t.Fatal(err)
				}
			}
			config := podConfig(t, n, "")
			_, err = n.Runtime.RunPodSandbox(timeout(t), &runtime.RunPodSandboxRequest{Config: config})
			if err == nil || !strings.Contains(err.Error(), test.words) {
				t.Errorf("run sandbox with a network that fails: %v", err)
			}
			wantOnlyStopped(t, n)
			leaks, err := n.Leaks(before, time.Minute, registry.PID(), shared.PID(), keeperPID(t, shared))
			if err != nil || len(leaks) > 0 {
				t.Errorf("left behind: %s, %v", strings.Join(leaks, "\n  "), err)
			}
			setPlugin(t, n, "")
			runPodOn(t, n, config).ip(t)
		})
	}
}

// wantOnlyStopped checks that no sandbox is ready, and removes those that a failed call left listed.
func wantOnlyStopped(t *testing.T, n *node.Node) {
	t.Helper()
	list, err := n.Runtime.ListPodSandbox(timeout(t), &runtime.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list.Items {
		wantEqual(t, fmt.Sprintf("state of sandbox %s", s.Id), s.State, runtime.PodSandboxState_SANDBOX_NOTREADY)
	}
	if err := n.RemoveAll(timeout(t)); err != nil {
		t.Error(err)
	}
}

func TestNetworkThatHangs(t *testing.T) {
	n, _ := brokenNetwork(t)
	allowed := []int{registry.PID(), shared.PID(), keeperPID(t, shared)}
	before, err := footprintAfterOne(timeout(t), n, allowed...)
	if err != nil {
		t.Fatal(err)
	}
	setPlugin(t, n, "sleep 4730")
	config := podConfig(t, n, "")
	reconfigure(t, n, impatientNetwork)
	_, err = n.Runtime.RunPodSandbox(timeout(t), &runtime.RunPodSandboxRequest{Config: config})
	if err == nil || !strings.Contains(err.Error(), "timed out") { // and not after the 4730 s of the plugin
		t.Errorf("run sandbox with a network that hangs: %v", err)
	}
	reconfigure(t, n, patientNetwork)
	wantOnlyStopped(t, n)
	if pids := processesWith(t, "4730"); len(pids) > 0 {
		t.Errorf("the plugin is left: %v", pids)
	}
	leaks, err := n.Leaks(before, time.Minute, allowed...)
	if err != nil || len(leaks) > 0 {
		t.Errorf("left behind: %s, %v", strings.Join(leaks, "\n  "), err)
	}
	setPlugin(t, n, "")
	runPodOn(t, n, config).ip(t)
}

// closeAtEnd removes all of a node when the test ends.
func closeAtEnd(t *testing.T, n *node.Node) {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		defer cancel()
		if err := errors.Join(n.RemoveAll(ctx), n.Close()); err != nil {
			t.Error(err)
		}
	})
}

func TestNoNetworkConfiguration(t *testing.T) {
	n, err := newNode("nonet", nil)
	if err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(n.CNIConf, "10-e2e.conflist")
	if err := os.Rename(conf, conf+".off"); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(timeout(t)); err != nil {
		t.Fatalf("the daemon must start before the network is there: %v", err)
	}
	closeAtEnd(t, n)
	ready := func() bool {
		response, err := n.Runtime.Status(timeout(t), &runtime.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range response.Status.Conditions {
			if c.Type == runtime.NetworkReady {
				return c.Status
			}
		}
		t.Fatal("no condition NetworkReady")
		return false
	}
	wantEqual(t, "network ready without configuration", ready(), false)
	config := podConfig(t, n, "")
	_, err = n.Runtime.RunPodSandbox(timeout(t), &runtime.RunPodSandboxRequest{Config: config})
	if err == nil || status.Code(err) == codes.OK {
		t.Error("a pod ran without network")
	}
	runPodOn(t, n, podConfig(t, n, "-host"), func(c *runtime.PodSandboxConfig) {
		c.Hostname = ""
		c.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_NODE
	})
	if err := os.Rename(conf+".off", conf); err != nil {
		t.Fatal(err)
	}
	eventually(t, "network is ready with configuration", ready)
	runPodOn(t, n, config).ip(t)
}
