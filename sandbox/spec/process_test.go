package spec

import (
	"slices"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCommandDropsCmdAndArgsReplaceIt(t *testing.T) {
	for _, tc := range []struct{ command, args, want []string }{
		{nil, nil, []string{"/entry", "cmd"}},
		{nil, []string{"a"}, []string{"/entry", "a"}},
		{[]string{"c"}, nil, []string{"c"}},
		{[]string{"c"}, []string{"a"}, []string{"c", "a"}},
	} {
		in := minimal()
		in.Config.Command, in.Config.Args = tc.command, tc.args
		if spec, _ := mustBuild(t, in); !slices.Equal(spec.Process.Args, tc.want) {
			t.Errorf("command %q args %q: got %q, want %q", tc.command, tc.args, spec.Process.Args, tc.want)
		}
	}
}

func TestEnvLastWins(t *testing.T) {
	in := minimal()
	in.Image.Env = []string{"A=1", "TERM=dumb", "A=2", "HOSTNAME=image", "=x", "no", "nul=\x00"}
	in.Config.Tty = true
	in.Config.Envs = []*runtime.KeyValue{{Key: "B", Value: []byte("ü=")}, {Key: "A", Value: []byte("3")}, {Key: "E"}}
	spec, _ := mustBuild(t, in)
	want := []string{defaultPath, "TERM=dumb", "HOSTNAME=image", "A=3", "B=ü=", "E="}
	if !slices.Equal(spec.Process.Env, want) {
		t.Errorf("got %q, want %q", spec.Process.Env, want)
	}
}

func TestCwdIsConfigsElseImagesElseRoot(t *testing.T) {
	for _, tc := range []struct{ config, image, want string }{
		{"", "", "/"}, {"", "/img", "/img"}, {"", "img", "/img"}, {"/c/../d", "/img", "/d"},
	} {
		in := minimal()
		in.Config.WorkingDir, in.Image.WorkingDir = tc.config, tc.image
		if spec, _ := mustBuild(t, in); spec.Process.Cwd != tc.want {
			t.Errorf("config %q image %q: got %q, want %q", tc.config, tc.image, spec.Process.Cwd, tc.want)
		}
	}
}

func TestUser(t *testing.T) {
	id := func(n int64) *runtime.Int64Value { return &runtime.Int64Value{Value: n} }
	for _, tc := range []struct {
		name        string
		image       string
		uid, gid    *runtime.Int64Value
		username    string
		user, group string
	}{
		{"nothing given", "", nil, nil, "", "", ""},
		{"image's", "app:grp", nil, nil, "", "app", "grp"},
		{"uid", "app:grp", id(7), nil, "", "7", ""},
		{"uid and gid", "7:8", id(7), id(9), "", "7", "9"},
		{"name", "app:grp", nil, nil, "other", "other", ""},
		{"the image's name again", "app:grp", nil, nil, "app", "app", "grp"},
		{"the image's name again with a group", "app:grp", nil, id(5), "app", "app", "5"},
		{"the image's uid again", "1000:1001", id(1000), nil, "", "1000", "1001"},
		{"the image's uid in another spelling", "0100:1", id(100), nil, "", "100", "1"},
		{"root again", ":1", id(0), nil, "", "0", "1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := secured(func(in *Input, sc *runtime.LinuxContainerSecurityContext) {
				in.Image = &ocispec.ImageConfig{Cmd: []string{"c"}, User: tc.image}
				sc.RunAsUser, sc.RunAsGroup, sc.RunAsUsername = tc.uid, tc.gid, tc.username
			})
			if _, user := mustBuild(t, in); user.User != tc.user || user.Group != tc.group {
				t.Errorf("got %q:%q, want %q:%q", user.User, user.Group, tc.user, tc.group)
			}
		})
	}
}

func TestRlimitsAreTheNodes(t *testing.T) {
	in := minimal()
	in.Node.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 2, Soft: 1}}
	spec, _ := mustBuild(t, in)
	if !slices.Equal(spec.Process.Rlimits, in.Node.Rlimits) {
		t.Errorf("got %v", spec.Process.Rlimits)
	}
	spec.Process.Rlimits[0].Hard = 1 // whoever starts the container lowers it there
	if in.Node.Rlimits[0].Hard != 2 {
		t.Error("containers share their limits")
	}
}

func TestPrivilegedWithoutHostDevices(t *testing.T) {
	in := privileged()
	in.Node.NoHostDevices = true
	spec, _ := mustBuild(t, in)
	if len(spec.Linux.Devices) > 0 || spec.Linux.Resources.Devices[0].Allow {
		t.Errorf("devices %+v, rules %+v", spec.Linux.Devices, spec.Linux.Resources.Devices)
	}
}
