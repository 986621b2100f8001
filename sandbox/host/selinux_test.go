package host

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/spec"
)

func TestSELinuxOptionsOfTheContainerWin(t *testing.T) {
	pod := &runtime.SELinuxOption{User: "u", Type: "t", Level: "s0:c1,c2"}
	for _, tc := range []struct {
		container *runtime.SELinuxOption
		want      string
	}{
		{nil, "user:u type:t level:s0:c1,c2"},
		{&runtime.SELinuxOption{}, "user:u type:t level:s0:c1,c2"},
		{&runtime.SELinuxOption{Role: "r", Type: "x"}, "user:u role:r type:x level:s0:c1,c2"},
		{&runtime.SELinuxOption{Level: "s0"}, "user:u type:t level:s0"},
	} {
		if got := strings.Join(mergeSELinux(pod, tc.container, pod.Level), " "); got != tc.want {
			t.Errorf("%v: got %s, expected %s", tc.container, got, tc.want)
		}
	}
	if got := mergeSELinux(nil, nil, "s0:c5,c6"); !slices.Equal(got, []string{"level:s0:c5,c6"}) {
		t.Errorf("without options: %q", got)
	}
}

func TestSELinuxOptionsAreChecked(t *testing.T) {
	for _, level := range []string{"", "s0", "s0:c1,c2", "s0-s0:c0.c1023", "s0:c1.c3,c5", "s0:c0-s1:c1"} {
		if err := checkSELinux(&runtime.SELinuxOption{Level: level}); err != nil {
			t.Errorf("%q: %v", level, err)
		}
	}
	for _, o := range []*runtime.SELinuxOption{
		{Level: "s0,c1,c2"}, {Level: "wrong"}, {Level: "s0:c1,"}, {Level: "s0:c12345"}, {Level: "s0:c1\n"}, {Type: "a:b"}, {User: "a b"},
	} {
		if err := checkSELinux(o); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "selinux_options.") {
			t.Errorf("%v: %v", o, err)
		}
	}
}

func TestLabelledRootfsHasTheContext(t *testing.T) {
	rootfs := []specs.Mount{{Type: "overlay", Options: []string{"lowerdir=/a"}}, {Type: "bind", Options: []string{"rbind"}}}
	got := LabelRootfs(rootfs, "system_u:object_r:container_file_t:s0:c1,c2")
	want := `context="system_u:object_r:container_file_t:s0:c1,c2"`
	if !slices.Equal(got[0].Options, []string{"lowerdir=/a", want}) || len(got[1].Options) != 1 || len(rootfs[0].Options) != 1 {
		t.Errorf("got %v from %v", got, rootfs)
	}
}

func TestNothingIsLabelledWithoutALabel(t *testing.T) {
	if err := Relabel(t.Context(), &spec.Input{Files: spec.Files{Hosts: "/nonexistent"}}); err != nil {
		t.Error(err)
	}
}
