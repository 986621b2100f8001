package spec

import (
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// mountsOf builds with these mounts, whose sources are all there and shared.
func mountsOf(t *testing.T, mounts ...*runtime.Mount) *specs.Spec {
	t.Helper()
	in := minimal()
	in.Files = Files{Hostname: "/s/hostname", Hosts: "/s/hosts", ResolvConf: "/s/resolv.conf", Shm: "/s/shm"}
	in.Host.Sources, in.Host.SharedSources = map[string]string{}, map[string]bool{}
	for _, m := range mounts {
		in.Host.Sources[m.HostPath], in.Host.SharedSources["/real"+m.HostPath] = "/real"+m.HostPath, true
	}
	in.Config.Mounts = mounts
	spec, _ := mustBuild(t, in)
	return spec
}

func at(spec *specs.Spec, destination string) []specs.Mount {
	return slices.DeleteFunc(slices.Clone(spec.Mounts), func(m specs.Mount) bool { return m.Destination != destination })
}

func TestMountsReplaceTheRuntimesOwn(t *testing.T) {
	for _, destination := range []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/shm", "/proc", "/sys/"} {
		clean := strings.TrimSuffix(destination, "/")
		found := at(mountsOf(t, &runtime.Mount{ContainerPath: destination, HostPath: "/v"}), clean)
		if len(found) != 1 || found[0].Source != "/real/v" {
			t.Errorf("at %s: %+v, want only the configuration's", destination, found)
		}
	}
}

func TestMountAtDevHidesWhatIsBelow(t *testing.T) {
	spec := mountsOf(t, &runtime.Mount{ContainerPath: "/dev", HostPath: "/dev"})
	if len(at(spec, "/dev/pts")) > 0 || len(at(spec, "/dev/mqueue")) > 0 {
		t.Error("pts or mqueue is mounted over the given /dev")
	}
	if len(at(spec, "/dev/shm")) != 1 {
		t.Error("the sandbox's shm is missing")
	}
}

func TestMountsAreParentsFirstAndLastWins(t *testing.T) {
	spec := mountsOf(t,
		&runtime.Mount{ContainerPath: "/a/b/c", HostPath: "/1"},
		&runtime.Mount{ContainerPath: "/a/b/", HostPath: "/2"},
		&runtime.Mount{ContainerPath: "/a", HostPath: "/3"},
		&runtime.Mount{ContainerPath: "/a/./b", HostPath: "/4"},
	)
	var got []string
	for _, m := range spec.Mounts {
		if strings.HasPrefix(m.Destination, "/a") {
			got = append(got, m.Destination+"="+m.Source)
		}
	}
	if want := []string{"/a=/real/3", "/a/b=/real/4", "/a/b/c=/real/1"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestMountOptions(t *testing.T) {
	slave := runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	shared := runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL
	for _, tc := range []struct {
		mount *runtime.Mount
		want  string
		root  string
	}{
		{&runtime.Mount{}, "rbind rprivate", ""},
		{&runtime.Mount{Readonly: true}, "rbind rprivate ro", ""},
		{&runtime.Mount{Readonly: true, RecursiveReadOnly: true}, "rbind rprivate rro", ""},
		{&runtime.Mount{Propagation: slave}, "rbind rslave", "rslave"},
		{&runtime.Mount{Propagation: shared, Readonly: true}, "rbind rshared ro", "rshared"},
		{&runtime.Mount{MountOptions: []string{"noexec", "nodev", "exec"}}, "rbind rprivate nodev exec", ""},
		{&runtime.Mount{MountOptions: []string{"rw"}}, "rbind rprivate", ""},
		{&runtime.Mount{MountOptions: []string{"ro"}}, "rbind rprivate ro", ""},
		{&runtime.Mount{Readonly: true, RecursiveReadOnly: true, MountOptions: []string{"ro"}}, "rbind rprivate rro", ""},
	} {
		tc.mount.ContainerPath, tc.mount.HostPath = "/a", "/v"
		spec := mountsOf(t, tc.mount)
		if got := strings.Join(at(spec, "/a")[0].Options, " "); got != tc.want {
			t.Errorf("%v: got %q, want %q", tc.mount, got, tc.want)
		}
		if spec.Linux.RootfsPropagation != tc.root {
			t.Errorf("%v: got the root's propagation %q, want %q", tc.mount, spec.Linux.RootfsPropagation, tc.root)
		}
	}
}

func TestSharedRootStaysSharedAfterASlaveMount(t *testing.T) {
	shared := runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL
	slave := runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	spec := mountsOf(t,
		&runtime.Mount{ContainerPath: "/a", HostPath: "/1", Propagation: shared},
		&runtime.Mount{ContainerPath: "/b", HostPath: "/2", Propagation: slave},
	)
	if spec.Linux.RootfsPropagation != "rshared" {
		t.Errorf("got %q", spec.Linux.RootfsPropagation)
	}
}

func TestReadonlyRootHasReadonlyFilesButWritableShm(t *testing.T) {
	spec, _ := mustBuild(t, full())
	if !slices.Contains(at(spec, "/etc/resolv.conf")[0].Options, "ro") {
		t.Error("resolv.conf is writable")
	}
	if slices.Contains(at(spec, "/dev/shm")[0].Options, "ro") {
		t.Error("shm is read-only")
	}
}

func TestImageVolumeIsReadOnlyAndCannotRunPrograms(t *testing.T) {
	for _, tc := range []struct {
		change func(*runtime.Mount)
		want   []string
	}{
		{func(*runtime.Mount) {}, []string{"lowerdir=/a:/b", "nodev", "nosuid", "noexec", "ro"}},
		{func(m *runtime.Mount) { m.RecursiveReadOnly = true }, []string{"lowerdir=/a:/b", "nodev", "nosuid", "noexec", "ro"}},
		{
			func(m *runtime.Mount) { m.MountOptions = []string{"exec", "ro"} },
			[]string{"lowerdir=/a:/b", "nodev", "nosuid", "ro", "exec"},
		},
	} {
		in := minimal()
		m := &runtime.Mount{ContainerPath: "/data/", Readonly: true, Image: &runtime.ImageSpec{Image: "i"}}
		tc.change(m)
		in.Config.Mounts = []*runtime.Mount{m}
		prepared := []string{"ro", "lowerdir=/a:/b"}
		in.Host.Volumes = map[int]specs.Mount{0: {Type: "overlay", Source: "overlay", Options: prepared}}
		spec, _, err := Build(in)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(spec.Mounts, func(m specs.Mount) bool { return m.Destination == "/data" })
		if i < 0 || spec.Mounts[i].Type != "overlay" || !slices.Equal(spec.Mounts[i].Options, tc.want) {
			t.Errorf("mounts %+v, expected one at /data with %q", spec.Mounts, tc.want)
		}
		if prepared[0] != "ro" || prepared[1] != "lowerdir=/a:/b" {
			t.Errorf("the input was changed: %q", prepared)
		}
	}
}
