//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/images"
)

// imageVolume mounts an image at /volume.
func imageVolume(image, subPath string, changes ...func(*runtime.Mount)) func(*runtime.ContainerConfig) {
	m := &runtime.Mount{
		ContainerPath: "/volume", Readonly: true, Image: &runtime.ImageSpec{Image: image}, ImageSubPath: subPath,
	}
	for _, change := range changes {
		change(m)
	}
	return func(c *runtime.ContainerConfig) { c.Mounts = append(c.Mounts, m) }
}

// wantVolumeError checks an error of CreateContainer: the kubelet knows it by how its text begins.
func wantVolumeError(t *testing.T, err error, code codes.Code, words ...string) {
	t.Helper()
	wantCode(t, err, code, append(words, "desc = ImageVolumeMountFailed: ")...)
}

func TestImageVolumeIsReadOnly(t *testing.T) {
	p := runPod(t)
	data := pull(t, shared, images.Data)
	c := p.start(t, "c", "sleep 1000", imageVolume(data, ""))
	wantEqual(t, "file", c.exec(t, "cat /volume/data/sub/file"), "from the image")
	wantEqual(t, "program of another layer", c.exec(t, "test -e /volume/bin/busybox && echo there"), "there")
	for _, command := range []string{
		"echo x > /volume/new", "echo x > /volume/data/sub/file", "rm /volume/data/run", "mount -o remount,rw /volume",
	} {
		if r := c.execSync(t, 20, "sh", "-c", command); r.ExitCode == 0 {
			t.Errorf("%q succeeded", command)
		}
	}
	if r := c.execSync(t, 20, "sh", "-c", "/volume/data/run"); r.ExitCode != 126 {
		t.Errorf("a program ran from a volume: code %d, %s %s", r.ExitCode, r.Stdout, r.Stderr)
	}
	options := strings.Fields(c.exec(t, "grep ' /volume ' /proc/mounts"))[3]
	for _, want := range []string{"ro", "nosuid", "nodev", "noexec"} {
		if !strings.Contains(","+options+",", ","+want+",") {
			t.Errorf("volume has the options %s, expected %s", options, want)
		}
	}
	m := c.status(t).Mounts[0]
	wantEqual(t, "image in the status", m.GetImage().GetImage(), data)
	if ref := m.GetImage().GetImageRef(); !strings.HasPrefix(ref, "registry.test/gantry/data@sha256:") {
		t.Errorf("reference in the status is %q, expected one by digest", ref)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), "/volume") {
		t.Errorf("the volume is mounted on the host:\n%s", mounts)
	}
}

func TestImageVolumeSubPath(t *testing.T) {
	p := runPod(t)
	data := pull(t, shared, images.Data)
	for name, want := range map[string]string{
		"data/sub": "file", "/data/alias/": "file", "outside": "own", "data/escape": "own", "data/escape/../data/sub": "file",
	} {
		id := strings.NewReplacer("/", "-", ".", "-").Replace(name)
		c := p.start(t, id, "sleep 1000", imageVolume(data, name))
		wantEqual(t, "files at "+name, c.exec(t, "ls /volume"), want)
		wantEqual(t, "sub-path in the status", c.status(t).Mounts[0].ImageSubPath, name)
	}
}

// A sub-path may be a single file, as with other volumes.
func TestImageVolumeOfASingleFile(t *testing.T) {
	p := runPod(t)
	data := pull(t, shared, images.Data)
	c := p.start(t, "c", "sleep 1000", imageVolume(data, "data/alias/file", func(m *runtime.Mount) { m.ContainerPath = "/etc/one" }))
	wantEqual(t, "the file", c.exec(t, "cat /etc/one"), "from the image")
	if r := c.execSync(t, 60, "sh", "-c", "echo x >> /etc/one"); r.ExitCode == 0 {
		t.Error("the file is writable")
	}
	wantEqual(t, "sub-path in the status", c.status(t).Mounts[0].ImageSubPath, "data/alias/file")
	other := p.start(t, "other", "sleep 1000", imageVolume(data, "data/sub"))
	wantEqual(t, "the file in another container", other.exec(t, "cat /volume/file"), "from the image")
}

func TestImageVolumeThatIsRefused(t *testing.T) {
	p := runPod(t)
	data := pull(t, shared, images.Data)
	refused := func(name string, code codes.Code, word string, change func(*runtime.ContainerConfig)) {
		t.Helper()
		config := containerConfig(name, "true")
		change(config)
		_, err := p.tryCreate(t, config)
		wantVolumeError(t, err, code, word)
	}
	for _, path := range []string{"missing", "data/run/", "data/run/..", "data/host/etc", "../../etc/ssl", "data/sub/file/x"} {
		refused("path", codes.InvalidArgument, path, imageVolume(data, path))
	}
	refused("writable", codes.InvalidArgument, "readonly", imageVolume(data, "", func(m *runtime.Mount) { m.Readonly = false }))
	refused("absent", codes.NotFound, "registry.test/none", imageVolume("registry.test/none:1", ""))
	refused("both", codes.InvalidArgument, "host_path", imageVolume(data, "", func(m *runtime.Mount) { m.HostPath = "/etc" }))
	list, err := p.node.Runtime.ListContainers(timeout(t), &runtime.ListContainersRequest{
		Filter: &runtime.ContainerFilter{PodSandboxId: p.id},
	})
	if err != nil || len(list.Containers) > 0 {
		t.Errorf("left %v, %v", list.GetContainers(), err)
	}
}

// An image that is removed while containers have it as a volume stays readable, also for one that is started by the
// next daemon; its space is freed when the last of them is removed.
func TestImageVolumeOutlivesItsImage(t *testing.T) {
	p := runPod(t)
	data := pull(t, shared, images.Data)
	running := p.start(t, "running", "sleep 1000", imageVolume(data, "data"))
	created := p.create(t, "created", "cat /volume/file; sleep 1000", imageVolume(data, "data/sub"))
	_, err := shared.Images.RemoveImage(timeout(t), &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: data}})
	if err != nil {
		t.Fatal(err)
	}
	shared.Kill()
	restart(t)
	wantEqual(t, "file in the running container", running.exec(t, "cat /volume/sub/file"), "from the image")
	if err := created.start(t); err != nil {
		t.Fatalf("start after the image was removed and the daemon restarted: %v", err)
	}
	created.waitLog(t, "from the image")
	if ref := created.status(t).Mounts[0].GetImage().GetImageRef(); !strings.Contains(ref, "@sha256:") {
		t.Errorf("reference after a restart is %q", ref)
	}
	layer := filepath.Join(shared.Dir, "root/images/snapshots/snapshots/*/fs/data/sub/file")
	if found, _ := filepath.Glob(layer); len(found) != 1 {
		t.Fatalf("layer of the volume: %v", found)
	}
	for _, c := range []*container{running, created} {
		if err := c.stop(t, 0); err != nil {
			t.Fatal(err)
		}
		_, err := p.node.Runtime.RemoveContainer(timeout(t), &runtime.RemoveContainerRequest{ContainerId: c.id})
		if err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "layer of the removed image is freed", func() bool {
		found, _ := filepath.Glob(layer)
		return len(found) == 0
	})
}

// What an image declares by VOLUME is a writable directory with what the image has there.
func TestDeclaredVolumesAreWritable(t *testing.T) {
	out := runPod(t).output(t, "c", "cat /data/sub/file; for d in /data/sub /declared/new; do echo; echo x > $d/w && cat $d/w; done",
		func(c *runtime.ContainerConfig) { c.Image.Image = images.Data })
	if got := strings.Join(strings.Fields(out), " "); got != "from the image x x" {
		t.Errorf("output %q", out)
	}
}
