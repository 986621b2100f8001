package checkpoint

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func fullConfig() *runtime.ContainerConfig {
	return &runtime.ContainerConfig{
		Metadata:   &runtime.ContainerMetadata{Name: "c"},
		Command:    []string{"sh"},
		Args:       []string{"-c", "true"},
		Envs:       []*runtime.KeyValue{{Key: "a", Value: []byte("1")}, {Key: "b", Value: []byte("2")}},
		WorkingDir: "/tmp",
		Mounts:     []*runtime.Mount{{ContainerPath: "/data", HostPath: "/a"}},
		Linux: &runtime.LinuxContainerConfig{
			Resources:       &runtime.LinuxContainerResources{CpuShares: 2},
			SecurityContext: &runtime.LinuxContainerSecurityContext{ReadonlyRootfs: true},
		},
	}
}

// written writes a pod and reads it again.
func written(t *testing.T) *Pod {
	t.Helper()
	pod, err := NewPod("pod", "", &runtime.PodSandboxConfig{Linux: &runtime.LinuxPodSandboxConfig{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := pod.Add("id", "image", "ref", fullConfig()); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := pod.Write(dir); err != nil {
		t.Fatal(err)
	}
	read, err := ReadPod(dir)
	if err != nil {
		t.Fatal(err)
	}
	return read
}

func TestWhatMayDiffer(t *testing.T) {
	c := written(t).Container("c")
	if c == nil {
		t.Fatal("container is not found by its name")
	}
	config := fullConfig()
	slices.Reverse(config.Envs)
	config.Mounts[0].HostPath = "/b"
	config.Mounts[0].ContainerPath = "/data/"
	config.Linux.Resources.CpuShares = 3
	config.Labels = map[string]string{"x": "y"}
	config.LogPath = "other.log"
	config.Metadata.Attempt = 7
	if err := c.Match(config, "image"); err != nil {
		t.Error(err)
	}
}

func TestWhatMayNotDiffer(t *testing.T) {
	c := written(t).Container("c")
	for field, change := range map[string]func(*runtime.ContainerConfig){
		"command":          func(c *runtime.ContainerConfig) { c.Command = nil },
		"args":             func(c *runtime.ContainerConfig) { c.Args[1] = "false" },
		"envs":             func(c *runtime.ContainerConfig) { c.Envs[0].Value = []byte("2") },
		"working_dir":      func(c *runtime.ContainerConfig) { c.WorkingDir = "" },
		"mounts":           func(c *runtime.ContainerConfig) { c.Mounts[0].Readonly = true },
		"devices":          func(c *runtime.ContainerConfig) { c.Devices = []*runtime.Device{{ContainerPath: "/dev/x"}} },
		"security_context": func(c *runtime.ContainerConfig) { c.Linux.SecurityContext.ReadonlyRootfs = false },
		"stdin":            func(c *runtime.ContainerConfig) { c.Stdin = true },
	} {
		config := proto.CloneOf(fullConfig())
		change(config)
		err := c.Match(config, "image")
		if !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), field) {
			t.Errorf("%s differs: %v", field, err)
		}
	}
	if err := c.Match(fullConfig(), "other"); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("another image: %v", err)
	}
}

func TestSandboxHasToHaveTheSameNamespaces(t *testing.T) {
	err := written(t).MatchSandbox(&runtime.PodSandboxConfig{Linux: &runtime.LinuxPodSandboxConfig{
		SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE}},
	}})
	if !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("host network: %v", err)
	}
}

func TestWhatIsNoCheckpoint(t *testing.T) {
	for name, content := range map[string]string{
		"missing":         "",
		"torn":            `{"version": 1, "con`,
		"another version": `{"version": 2}`,
		"path for an id":  `{"version": 1, "containers": [{"id": "../../etc", "config": {}}]}`,
		"no id":           `{"version": 1, "containers": [{"config": {}}]}`,
		"torn container":  `{"version": 1, "containers": [{"id": "a", "config": []}]}`,
	} {
		dir := t.TempDir()
		if content != "" {
			if err := os.WriteFile(filepath.Join(dir, PodFile), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := ReadPod(dir); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestArchiveAppearsWhole(t *testing.T) {
	dir, out := t.TempDir(), t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "checkpoint"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "checkpoint/a.img"), []byte("a"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	path := filepath.Join(out, "x.tar")
	if err := WriteArchive(ctx, path, dir); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var names []string
	r := tar.NewReader(f)
	for header, err := r.Next(); err != io.EOF; header, err = r.Next() {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, header.Name)
	}
	if !slices.Equal(names, []string{"checkpoint/", "checkpoint/a.img"}) {
		t.Errorf("archive has %v", names)
	}
	cancel()
	if err := WriteArchive(ctx, filepath.Join(out, "y.tar"), dir); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of the context: %v", err)
	}
	if entries, _ := os.ReadDir(out); len(entries) != 1 {
		t.Errorf("there is %v", entries)
	}
}

// watching is a context that looks around whenever it is asked whether it has ended.
type watching struct {
	context.Context
	look func()
}

func (w watching) Err() error {
	w.look()
	return w.Context.Err()
}

// A daemon that is killed leaves what is there at that moment.
func TestArchiveIsNotSeenBefore(t *testing.T) {
	dir, out := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.img"), []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(out, "x.tar")
	for _, before := range []string{"", "x.tar"} { // the second time it replaces the first
		looks := 0
		ctx := watching{t.Context(), func() {
			looks++
			var names []string
			entries, err := os.ReadDir(out)
			for _, e := range entries {
				names = append(names, e.Name())
			}
			if found := strings.Join(names, " "); err != nil || found != before {
				t.Errorf("while the archive is written there is %q, %v; want %q", found, err, before)
			}
		}}
		if err := WriteArchive(ctx, path, dir); err != nil {
			t.Fatal(err)
		}
		if entries, _ := os.ReadDir(out); looks < 2 || len(entries) != 1 || entries[0].Name() != "x.tar" {
			t.Errorf("after %d looks there is %v", looks, entries)
		}
		if err := os.WriteFile(filepath.Join(dir, "b.img"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	content, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(content), "b.img") {
		t.Errorf("the archive was not replaced: %d bytes, %v", len(content), err)
	}
}
