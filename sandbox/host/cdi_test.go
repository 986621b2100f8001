package host

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/spec"
)

const cdiSpec = `{"cdiVersion": "0.7.0", "kind": "example.com/gpu",
 "containerEdits": {"env": ["VENDOR=yes"]},
 "devices": [{"name": "one", "containerEdits": {
   "deviceNodes": [{"path": "/dev/gpu1", "hostPath": "/dev/null", "permissions": "rw"}],
   "mounts": [{"hostPath": "/lib/vendor", "containerPath": "/vendor", "options": ["ro", "rbind"]}],
   "env": ["GPU=one"], "additionalGids": [44]}}]}`

func writeCDI(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func emptySpec() *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Env: []string{"GPU=none", "A=b"}}, Linux: &specs.Linux{
		Resources: &specs.LinuxResources{},
	}}
}

func TestCDIDevicesEditTheSpec(t *testing.T) {
	dir := writeCDI(t, map[string]string{"vendor.json": cdiSpec, "broken.json": "{"})
	s, user := emptySpec(), spec.User{Groups: []uint32{7}}
	device := &runtime.CDIDevice{Name: "example.com/gpu=one"}
	err := InjectCDI(t.Context(), []string{"/nonexistent", dir}, s, &user, []*runtime.CDIDevice{device, device})
	if err != nil {
		t.Fatal(err)
	}
	if env := s.Process.Env; !slices.Contains(env, "GPU=one") || !slices.Contains(env, "VENDOR=yes") || slices.Contains(env, "GPU=none") {
		t.Errorf("environment %q", env)
	}
	if d := s.Linux.Devices; len(d) != 1 || d[0].Path != "/dev/gpu1" || d[0].Major != 1 || d[0].Minor != 3 {
		t.Errorf("devices %+v", d)
	}
	if r := s.Linux.Resources.Devices; len(r) != 1 || !r[0].Allow || r[0].Access != "rw" || *r[0].Minor != 3 {
		t.Errorf("rules %+v", r)
	}
	if len(s.Mounts) != 1 || s.Mounts[0].Destination != "/vendor" {
		t.Errorf("mounts %+v", s.Mounts)
	}
	if !slices.Equal(user.Groups, []uint32{7, 44}) {
		t.Errorf("groups %v", user.Groups)
	}
}

func TestCDIDevicesThatAreNotThereAreNamed(t *testing.T) {
	dir := writeCDI(t, map[string]string{"vendor.json": cdiSpec, "broken.json": "{"})
	twice := writeCDI(t, map[string]string{"a.json": cdiSpec, "b.json": cdiSpec})
	for _, tc := range []struct {
		dir, name string
		words     []string
	}{
		{dir, "example.com/gpu=two", []string{`"example.com/gpu=two"`, dir, "broken.json"}},
		{dir, "gpu", []string{`CDI_devices[0].name "gpu"`, "vendor/class=name"}},
		{dir, "", []string{"CDI_devices[0].name"}},
		{twice, "example.com/gpu=one", []string{`"example.com/gpu=one"`, "conflict"}},
	} {
		err := InjectCDI(t.Context(), []string{tc.dir}, emptySpec(), &spec.User{}, []*runtime.CDIDevice{{Name: tc.name}})
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v, expected an invalid argument", tc.name, err)
			continue
		}
		for _, word := range tc.words {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%q: error %q, expected %q in it", tc.name, err, word)
			}
		}
	}
}
