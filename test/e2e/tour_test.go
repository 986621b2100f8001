//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/images"
)

// crictl runs crictl on the shared node and returns its trimmed output.
func crictl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := shared.Crictl(timeout(t), args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// The tour of the README, by crictl, with the short ids that it prints.
func TestTourByCrictl(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, config any) string {
		b, err := json.Marshal(config)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	podFile := write("pod.json", map[string]any{
		"metadata":      map[string]any{"name": "tour", "namespace": "default", "uid": "tour-1", "attempt": 1},
		"log_directory": dir, "linux": map[string]any{},
	})
	containerFile := write("container.json", map[string]any{
		"metadata": map[string]any{"name": "hello"}, "image": map[string]any{"image": images.Busybox},
		"command": []string{"sh", "-c", "echo hello from the tour; sleep 1000"}, "log_path": "hello.log",
	})
	if out := crictl(t, "version"); !strings.Contains(out, "gantry") {
		t.Errorf("version does not name the runtime: %s", out)
	}
	crictl(t, "pull", images.Busybox)
	if out := crictl(t, "images"); !strings.Contains(out, "registry.test/gantry/busybox") {
		t.Errorf("image is not listed: %s", out)
	}
	pod := crictl(t, "runp", podFile)
	t.Cleanup(func() {
		if t.Failed() {
			shared.Crictl(context.Background(), "rmp", "-f", pod)
		}
	})
	id := crictl(t, "create", pod, containerFile, podFile)
	if out := crictl(t, "ps", "-a", "-q", "--state", "Created"); out != id {
		t.Errorf("created containers are %q, expected %s", out, id)
	}
	crictl(t, "start", id[:13])
	if out := crictl(t, "ps", "-q", "--pod", pod[:13]); out != id {
		t.Errorf("running containers are %q, expected %s", out, id)
	}
	eventually(t, "log says hello", func() bool { return crictl(t, "logs", id[:13]) == "hello from the tour" })
	wantEqual(t, "output of exec -s", crictl(t, "exec", "-s", id[:13], "echo", "synchronously"), "synchronously")
	wantEqual(t, "output of exec", crictl(t, "exec", id[:13], "echo", "streaming"), "streaming")
	wantEqual(t, "output of exec with stdin", crictlWithInput(t, "through a pipe", "exec", "-i", id, "cat"), "through a pipe")
	if out := crictl(t, "inspectp", "-o", "go-template", "--template", "{{.status.network.ip}}", pod); out == "" {
		t.Error("pod has no address")
	}
	for _, command := range []string{"info", "imagefsinfo"} {
		crictl(t, command)
	}
	crictl(t, "stop", "-t", "0", id)
	wantEqual(t, "exited container", crictl(t, "ps", "-a", "-q", "--state", "Exited", "--pod", pod), id)
	crictl(t, "rm", id)
	crictl(t, "stopp", pod)
	crictl(t, "rmp", pod)
	if out := crictl(t, "pods", "-q", "--name", "tour"); out != "" {
		t.Errorf("removed pod is listed: %s", out)
	}
}

func TestStatusAndListsTellWhatWasAsked(t *testing.T) {
	p := runPod(t)
	status := p.status(t)
	wantEqual(t, "state", status.State, runtime.PodSandboxState_SANDBOX_READY)
	wantEqual(t, "annotation", status.Annotations["e2e/verbatim"], p.config.Annotations["e2e/verbatim"])
	wantEqual(t, "name", status.Metadata.Name, p.config.Metadata.Name)
	wantEqual(t, "network mode", status.Linux.Namespaces.Options.Network, runtime.NamespaceMode_POD)
	c := p.create(t, "first", "exit 3", func(c *runtime.ContainerConfig) { c.Labels = map[string]string{"l": "v"} })
	wantEqual(t, "state before start", c.status(t).State, runtime.ContainerState_CONTAINER_CREATED)
	if err := c.start(t); err != nil {
		t.Fatal(err)
	}
	s := c.waitExit(t)
	wantEqual(t, "exit code", s.ExitCode, 3)
	wantEqual(t, "reason", s.Reason, "Error")
	wantEqual(t, "image id", s.ImageId, c.config.Image.Image)
	wantEqual(t, "image", s.Image.Image, c.config.Image.UserSpecifiedImage) // which is in full
	if !(s.CreatedAt > 0 && s.StartedAt >= s.CreatedAt && s.FinishedAt >= s.StartedAt) {
		t.Errorf("times are out of order: created %d started %d finished %d", s.CreatedAt, s.StartedAt, s.FinishedAt)
	}
	for what, filter := range map[string]*runtime.ContainerFilter{
		"id prefix": {Id: c.id[:10]}, "pod": {PodSandboxId: p.id},
		"label": {PodSandboxId: p.id, LabelSelector: map[string]string{"l": "v"}},
		"state": {PodSandboxId: p.id, State: &runtime.ContainerStateValue{State: runtime.ContainerState_CONTAINER_EXITED}},
	} {
		list, err := p.node.Runtime.ListContainers(timeout(t), &runtime.ListContainersRequest{Filter: filter})
		if err != nil || len(list.Containers) != 1 || list.Containers[0].Id != c.id {
			t.Errorf("list by %s gives %v, %v", what, list.GetContainers(), err)
		}
	}
	list, err := p.node.Runtime.ListContainers(timeout(t), &runtime.ListContainersRequest{
		Filter: &runtime.ContainerFilter{Id: strings.Repeat("0", 64)},
	})
	if err != nil || len(list.Containers) != 0 {
		t.Errorf("list by an unknown id gives %v, %v", list.GetContainers(), err)
	}
}

func TestRemovedPodIsGoneWithItsContainers(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "left", "sleep 1000")
	p.remove(t)
	p.remove(t) // again: idempotent
	_, err := p.node.Runtime.ContainerStatus(timeout(t), &runtime.ContainerStatusRequest{ContainerId: c.id})
	wantNotFound(t, err)
	_, err = p.node.Runtime.PodSandboxStatus(timeout(t), &runtime.PodSandboxStatusRequest{PodSandboxId: p.id})
	wantNotFound(t, err)
	if _, err := os.Stat(c.logPath); err != nil {
		t.Errorf("the log is not the runtime's to remove: %v", err)
	}
	if pids := processesWith(t, c.id); len(pids) > 0 {
		t.Errorf("processes of the container: %v", pids)
	}
	if found := cgroupsNamed(t, c.id); len(found) > 0 {
		t.Errorf("cgroups of the container: %v", found)
	}
}

func TestManyPodsAtOnce(t *testing.T) {
	const n = 8
	done := make(chan error, n)
	ids := make([]string, n)
	image := pull(t, shared, images.Busybox)
	for i := range n {
		config := podConfig(t, shared, fmt.Sprintf("-%d", i))
		go func() {
			done <- func() error {
				response, err := shared.Runtime.RunPodSandbox(t.Context(), &runtime.RunPodSandboxRequest{Config: config})
				if err != nil {
					return err
				}
				ids[i] = response.PodSandboxId
				c := containerConfig("c", "sleep 1000")
				c.Image.Image = image
				created, err := shared.Runtime.CreateContainer(t.Context(), &runtime.CreateContainerRequest{
					PodSandboxId: ids[i], Config: c, SandboxConfig: config,
				})
				if err != nil {
					return err
				}
				_, err = shared.Runtime.StartContainer(t.Context(), &runtime.StartContainerRequest{ContainerId: created.ContainerId})
				return err
			}()
		}()
	}
	for range n {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	var ips []string
	for _, id := range ids {
		if id == "" {
			continue
		}
		p := &pod{node: shared, id: id}
		ips = append(ips, p.ip(t))
		p.remove(t)
	}
	slices.Sort(ips)
	if len(slices.Compact(ips)) != n {
		t.Errorf("addresses are not different: %v", ips)
	}
}
