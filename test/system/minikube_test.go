//go:build e2e

package system

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// What minikube calls on a node whose runtime is containerd, on one where Gantry is in its place.
func TestMinikubeCalls(t *testing.T) {
	b := kindNode(t)
	b.shown("which", "containerd")
	b.shown("containerd", "--version")
	b.shown("sed", "-i", "-r", `s|^( *)sandbox = .*$|\1sandbox = "registry.k8s.io/pause:3.10.1"|`,
		"/etc/containerd/config.toml")
	b.shown("systemctl", "daemon-reload")
	b.shown("systemctl", "restart", "containerd")
	b.shown("systemctl", "is-active", "--quiet", "service", "containerd")
	b.driver()
	b.minikubeImages()
	b.minikubeContainers()

	b.shown("systemctl", "stop", "-f", "containerd.service")
	b.fails("systemctl", "is-active", "--quiet", "service", "containerd")
	b.shown("systemctl", "start", "containerd")
	b.quiet()
}

// driver reads the cgroup driver as minikube does.
func (b *box) driver() {
	b.Helper()
	var info struct {
		Config struct {
			Containerd struct {
				Runtimes map[string]struct{ Options struct{ SystemdCgroup bool } }
			}
		}
	}
	if err := json.Unmarshal([]byte(b.run("crictl", "info")), &info); err != nil {
		b.Fatal(err)
	}
	if !info.Config.Containerd.Runtimes["runc"].Options.SystemdCgroup {
		b.Errorf("crictl info: %+v, expected SystemdCgroup", info)
	}
}

// minikubeImages loads, lists, exports, tags and removes an image.
func (b *box) minikubeImages() {
	b.Helper()
	if err := b.Write(b.ctx, bytes.NewReader(archive), "/tmp/load.tar", 0o644); err != nil {
		b.Fatal(err)
	}
	ctr := func(args ...string) string {
		b.Helper()
		return b.shown(append([]string{"ctr", "-n=k8s.io", "images"}, args...)...)
	}
	ctr("import", "/tmp/load.tar")
	if out := ctr("ls", "name=="+busyboxImage); !strings.Contains(out, busyboxImage) {
		b.Errorf("images ls: %q", out)
	}
	if out := ctr("ls", "name==localhost/none:1"); strings.Contains(out, "localhost") {
		b.Errorf("images ls of a name that is not there: %q", out)
	}
	ctr("tag", busyboxImage, "localhost/second:v1")
	ctr("export", "/tmp/save.tar", busyboxImage)
	b.Log(b.fails("ctr", "-n=k8s.io", "images", "push", busyboxImage))
	b.run("crictl", "rmi", busyboxImage)
	b.fails("crictl", "inspecti", "localhost/second:v1")
	ctr("import", "/tmp/save.tar")
	if out := b.run("crictl", "images", "--output", "json"); !strings.Contains(out, busyboxImage) {
		b.Errorf("crictl images after the way out and in again: %s", out)
	}
}

// minikubeContainers lists, stops and removes containers.
func (b *box) minikubeContainers() {
	b.Helper()
	c := b.pod("web", "", counts)
	list := []string{"crictl", "--timeout=10s", "ps", "-a", "--quiet", "--no-trunc"}
	b.want("all", b.shown(list...), c)
	b.want("by name", b.shown(append(list, "--name=c")...), c)
	b.want("by another name", b.shown(append(list, "--name=etcd")...), "")
	b.shown("crictl", "logs", "--tail", "1", c)
	var listed []struct{ ID, Status string }
	out := b.shown("runc", "--root", "/run/containerd/runc/k8s.io", "list", "-f", "json")
	if err := json.Unmarshal([]byte(out), &listed); err != nil || len(listed) != 1 || listed[0].ID != c ||
		listed[0].Status != "running" {
		b.Errorf("runc list: %+v, %v", listed, err)
	}
	b.Log(b.fails("runc", "--root", "/run/containerd/runc/k8s.io", "pause", c))
	b.shown("crictl", "stop", "--timeout=10", c)
	b.want("runc list after the stop", b.run("runc", "list", "-f", "json"), "[]")
	b.shown("crictl", "rm", "--force", c)
	b.want("all", b.run(list...), "")
}
