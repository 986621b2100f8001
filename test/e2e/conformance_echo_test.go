//go:build e2e

package e2e

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/images"
)

// oddStrings are labels or annotations that are easy to lose or to change.
func oddStrings() map[string]string {
	return map[string]string{
		"": "empty key", "empty": "", "space": " \t\r\n ", "ünïcödé/ключ": "値 🚢 \u0000\u2028", "quote": `"\"'{}`,
		"io.kubernetes.pod.uid": "kubelet's own", strings.Repeat("k", 1000): "long key", "number": "0755",
	}
}

func TestLabelsAndAnnotationsComeBackVerbatim(t *testing.T) {
	t.Parallel()
	labels, annotations := oddStrings(), oddStrings()
	annotations["big"] = strings.Repeat("Größe ", 1<<18) // 2 MiB
	p := runPod(t, func(c *runtime.PodSandboxConfig) {
		maps.Copy(c.Labels, labels)
		c.Annotations = annotations
	})
	c := p.create(t, "c", "sleep 1000", func(c *runtime.ContainerConfig) {
		c.Labels, c.Annotations = labels, annotations
		c.Metadata.Attempt = 4000000000
	})
	type labelled interface {
		GetLabels() map[string]string
		GetAnnotations() map[string]string
	}
	inPodStatus, err := shared.Runtime.PodSandboxStatus(timeout(t), &runtime.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatal(err)
	}
	for what, pair := range map[string][2]labelled{
		"sandbox status": {inPodStatus.Status, p.config}, "sandbox list": {podsOf(t, p.config)[0], p.config},
		"container status": {c.status(t), c.config}, "container list": {p.containers(t)[0], c.config},
		"container in sandbox status": {inPodStatus.ContainersStatuses[0], c.config},
	} {
		if !maps.Equal(pair[0].GetLabels(), pair[1].GetLabels()) {
			t.Errorf("labels in %s are %q", what, pair[0].GetLabels())
		}
		if !maps.Equal(pair[0].GetAnnotations(), pair[1].GetAnnotations()) {
			t.Errorf("annotations in %s differ, %d of %d", what, len(pair[0].GetAnnotations()), len(pair[1].GetAnnotations()))
		}
	}
	wantEqual(t, "attempt", c.status(t).Metadata.Attempt, 4000000000)
	if err := c.start(t); err != nil {
		t.Error(err)
	}
}

// The kubelet finds its termination log by a mount's path in the status, and takes the log from its path.
func TestStatusOfAContainerIsItsConfiguration(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	p := runPod(t)
	c := p.create(t, "c", "sleep 1000", func(c *runtime.ContainerConfig) {
		c.LogPath = "c/7.log"
		c.Metadata.Attempt = 7
		c.Image.UserSpecifiedImage = "what the user wrote"
		c.Mounts = []*runtime.Mount{
			{ContainerPath: "/z", HostPath: link, Readonly: true},
			{ContainerPath: "/a//b/../c", HostPath: dir + "/", Propagation: runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
			{ContainerPath: "/dev/termination-log", HostPath: filepath.Join(dir, "log"), SelinuxRelabel: true},
		}
		c.Linux.Resources = &runtime.LinuxContainerResources{
			CpuShares: 300, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 100, CpuPeriod: 100000, CpuQuota: 20000,
		}
		if err := os.WriteFile(filepath.Join(dir, "log"), nil, 0o666); err != nil {
			t.Fatal(err)
		}
	})
	check := func(when string) {
		s := c.status(t)
		wantSame(t, "mounts "+when, s.Mounts, c.config.Mounts)
		wantEqual(t, "log path "+when, s.LogPath, filepath.Join(p.config.LogDirectory, "c/7.log"))
		wantEqual(t, "attempt "+when, s.Metadata.Attempt, 7)
		wantEqual(t, "image "+when, s.Image.Image, c.config.Image.Image)
		wantEqual(t, "image as the user wrote it "+when, s.Image.UserSpecifiedImage, "what the user wrote")
		wantEqual(t, "stop signal "+when, s.StopSignal, runtime.Signal_SIGNAL_SIGTERM)
		if !proto.Equal(s.Resources.GetLinux(), c.config.Linux.Resources) {
			t.Errorf("resources %s are %v, expected %v", when, s.Resources, c.config.Linux.Resources)
		}
	}
	check("when created")
	if err := c.start(t); err != nil {
		t.Fatal(err)
	}
	check("when running")
	c.exec(t, "echo note > /dev/termination-log")
	if b, err := os.ReadFile(filepath.Join(dir, "log")); err != nil || string(b) != "note\n" {
		t.Errorf("termination log is %q, %v", b, err)
	}
	if err := c.stop(t, 0); err != nil {
		t.Fatal(err)
	}
	check("when exited")
}

// One id for an image wherever it is told, and one reference by digest.
func TestTheIDOfAnImageIsTheSameEverywhere(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	id := pull(t, shared, images.Users)
	c := p.start(t, "c", "sleep 1000", usersImage)
	status, err := shared.Images.ImageStatus(timeout(t), &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: id}})
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "Image.id", status.Image.GetId(), id)
	wantEqual(t, "ContainerStatus.image_id", c.status(t).ImageId, id)
	listed := p.containers(t)[0]
	wantEqual(t, "Container.image_id", listed.ImageId, id)
	wantEqual(t, "Container.image_ref", listed.ImageRef, c.status(t).ImageRef)
	wantEqual(t, "ContainerStatus.image_ref", c.status(t).ImageRef, status.Image.RepoDigests[0])
	wantEqual(t, "user of the image", status.Image.Username, "app")
	if status.Image.Uid != nil || status.Image.Size == 0 || status.Image.Pinned {
		t.Errorf("uid beside a username, or no size, or pinned: %v", status.Image)
	}
	list, err := shared.Images.ListImages(timeout(t), &runtime.ListImagesRequest{
		Filter: &runtime.ImageFilter{Image: &runtime.ImageSpec{Image: images.Users}},
	})
	if err != nil {
		t.Fatal(err)
	}
	wantSame(t, "image by list and by status", list.Images, []*runtime.Image{status.Image})
}
