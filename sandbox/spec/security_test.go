package spec

import (
	"reflect"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCapabilities(t *testing.T) {
	few := []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_ADMIN"}
	for _, tc := range []struct {
		name         string
		node         []string
		cap          *runtime.Capability
		set, ambient []string
	}{
		{"defaults", knownCapabilities, nil, defaultCapabilities, nil},
		{"defaults as far as the node goes", few, nil, []string{"CAP_CHOWN", "CAP_KILL"}, nil},
		{"add all", few, &runtime.Capability{AddCapabilities: []string{"ALL"}}, few, nil},
		{"drop all", few, &runtime.Capability{DropCapabilities: []string{"all"}}, nil, nil},
		{"drop all then add", few, &runtime.Capability{
			AddCapabilities: []string{"net_admin"}, DropCapabilities: []string{"ALL"},
		}, []string{"CAP_NET_ADMIN"}, nil},
		{"add all then drop", few, &runtime.Capability{
			AddCapabilities: []string{"ALL"}, DropCapabilities: []string{"CAP_KILL"},
		}, []string{"CAP_CHOWN", "CAP_NET_ADMIN"}, nil},
		{"drop wins", few, &runtime.Capability{
			AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"net_admin", "CHOWN", "KILL"},
		}, nil, nil},
		{"what the node cannot give", few, &runtime.Capability{AddCapabilities: []string{"SYS_RESOURCE"}},
			[]string{"CAP_CHOWN", "CAP_KILL"}, nil},
		{"ambient", few, &runtime.Capability{
			DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"NET_ADMIN", "SYS_TIME"},
		}, []string{"CAP_NET_ADMIN"}, []string{"CAP_NET_ADMIN"}},
		{"drop wins over ambient", few, &runtime.Capability{
			DropCapabilities: []string{"CHOWN", "KILL"}, AddAmbientCapabilities: []string{"KILL"},
		}, nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := secured(func(in *Input, sc *runtime.LinuxContainerSecurityContext) {
				in.Node.Capabilities, sc.Capabilities = tc.node, tc.cap
			})
			spec, _ := mustBuild(t, in)
			got := spec.Process.Capabilities
			for _, set := range [][]string{got.Bounding, got.Permitted, got.Effective} {
				if !slices.Equal(set, tc.set) {
					t.Errorf("got %v, want %v", set, tc.set)
				}
			}
			for _, set := range [][]string{got.Inheritable, got.Ambient} {
				if !slices.Equal(set, tc.ambient) {
					t.Errorf("got ambient and inheritable %v, want %v", set, tc.ambient)
				}
			}
		})
	}
}

func TestPrivilegedIsUnconfined(t *testing.T) {
	in := privileged()
	in.Node.Capabilities = []string{"CAP_SYS_ADMIN", "CAP_CHOWN"}
	spec, _ := mustBuild(t, in)
	if got := spec.Process.Capabilities.Bounding; !slices.Equal(got, []string{"CAP_CHOWN", "CAP_SYS_ADMIN"}) {
		t.Errorf("capabilities %v are not the node's", got)
	}
	if spec.Linux.Seccomp != nil || spec.Process.ApparmorProfile != "" {
		t.Error("confined by seccomp or AppArmor")
	}
	if len(spec.Linux.MaskedPaths)+len(spec.Linux.ReadonlyPaths) > 0 {
		t.Error("has masked or read-only paths")
	}
	if d := spec.Linux.Resources.Devices; len(d) != 1 || !d[0].Allow || d[0].Access != "rwm" || d[0].Type != "" {
		t.Errorf("device rules %+v do not allow all", d)
	}
	for _, m := range spec.Mounts {
		if slices.Contains(m.Options, "ro") {
			t.Errorf("%s is read-only", m.Destination)
		}
	}
	if len(spec.Linux.Devices) != 1 || spec.Linux.Devices[0].Path != "/dev/kvm" {
		t.Errorf("devices %+v are not the host's", spec.Linux.Devices)
	}
}

func TestPathsAreDefaultOnlyWithoutSecurityContext(t *testing.T) {
	spec, _ := mustBuild(t, minimal())
	if !slices.Contains(spec.Linux.MaskedPaths, "/proc/kcore") || !slices.Contains(spec.Linux.ReadonlyPaths, "/proc/sys") {
		t.Error("no defaults without a security context")
	}
	spec, _ = mustBuild(t, secured(func(*Input, *runtime.LinuxContainerSecurityContext) {}))
	if len(spec.Linux.MaskedPaths)+len(spec.Linux.ReadonlyPaths) > 0 {
		t.Error("empty lists do not mean none")
	}
}

func TestSeccompProfiles(t *testing.T) {
	kind := func(k runtime.SecurityProfile_ProfileType) *runtime.SecurityProfile {
		return &runtime.SecurityProfile{ProfileType: k}
	}
	for _, tc := range []struct {
		name       string
		profile    *runtime.SecurityProfile
		deprecated string
		want       bool
	}{
		{"none", nil, "", false},
		{"default", kind(runtime.SecurityProfile_RuntimeDefault), "", true},
		{"unconfined", kind(runtime.SecurityProfile_Unconfined), "", false},
		{"the new field wins", kind(runtime.SecurityProfile_Unconfined), "runtime/default", false},
		{"deprecated default", nil, "runtime/default", true},
		{"deprecated docker default", nil, "docker/default", true},
		{"deprecated unconfined", nil, "unconfined", false},
		{"deprecated localhost", nil, "localhost//p.json", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := secured(func(in *Input, sc *runtime.LinuxContainerSecurityContext) {
				sc.Seccomp, sc.SeccompProfilePath = tc.profile, tc.deprecated //nolint:staticcheck // SA1019: tested.
				in.Host.SeccompProfile = []byte(`{"defaultAction":"SCMP_ACT_ALLOW"}`)
			})
			if spec, _ := mustBuild(t, in); (spec.Linux.Seccomp != nil) != tc.want {
				t.Errorf("got a filter: %t, want %t", spec.Linux.Seccomp != nil, tc.want)
			}
			in.Node.Seccomp = false
			if tc.deprecated != "localhost//p.json" {
				if spec, _ := mustBuild(t, in); spec.Linux.Seccomp != nil {
					t.Error("got a filter on a node without seccomp")
				}
			}
		})
	}
}

func TestDefaultSeccompFollowsCapabilitiesAndArchitecture(t *testing.T) {
	build := func(native bool, add ...string) *specs.LinuxSeccomp {
		in := secured(func(in *Input, sc *runtime.LinuxContainerSecurityContext) {
			in.Node.SeccompNativeOnly = native
			sc.Seccomp = &runtime.SecurityProfile{}
			sc.Capabilities = &runtime.Capability{AddCapabilities: add}
		})
		spec, _ := mustBuild(t, in)
		return spec.Linux.Seccomp
	}
	allows := func(s *specs.LinuxSeccomp, name string) bool {
		return slices.ContainsFunc(s.Syscalls, func(call specs.LinuxSyscall) bool {
			return call.Action == specs.ActAllow && len(call.Args) == 0 && slices.Contains(call.Names, name)
		})
	}
	plain, admin := build(true), build(false, "SYS_ADMIN")
	if allows(plain, "mount") || !allows(admin, "mount") {
		t.Error("mount does not follow CAP_SYS_ADMIN")
	}
	if len(plain.Architectures) > 1 {
		t.Errorf("native only has the architectures %v", plain.Architectures)
	}
	if slices.Contains(admin.Architectures, specs.ArchX32) {
		t.Error("x32 is in the filter on a node without it")
	}
	if len(admin.Architectures) > 0 && !slices.Contains(admin.Architectures, plain.Architectures[0]) {
		t.Errorf("%v is not among %v", plain.Architectures[0], admin.Architectures)
	}
}

// What is compiled beforehand is what most containers have.
func TestDefaultSeccompIsThatOfAPlainContainer(t *testing.T) {
	in := secured(func(_ *Input, sc *runtime.LinuxContainerSecurityContext) { sc.Seccomp = &runtime.SecurityProfile{} })
	spec, _ := mustBuild(t, in)
	got, err := DefaultSeccomp(in.Node)
	if err != nil || len(got.Syscalls) == 0 || !reflect.DeepEqual(got, spec.Linux.Seccomp) {
		t.Errorf("got %v, %v", got, err)
	}
	in.Node.Seccomp = false
	if got, err := DefaultSeccomp(in.Node); got != nil || err != nil {
		t.Errorf("without seccomp: got %v, %v", got, err)
	}
}

func TestDefaultSeccompHasX32WhereTheKernelHas(t *testing.T) {
	in := secured(func(in *Input, sc *runtime.LinuxContainerSecurityContext) {
		in.Node.X32 = true
		sc.Seccomp = &runtime.SecurityProfile{}
	})
	spec, _ := mustBuild(t, in)
	archs := spec.Linux.Seccomp.Architectures
	if slices.Contains(archs, specs.ArchX86_64) != slices.Contains(archs, specs.ArchX32) {
		t.Errorf("got the architectures %v", archs)
	}
}

func TestSeccompFileIsOfEitherField(t *testing.T) {
	in := secured(func(_ *Input, sc *runtime.LinuxContainerSecurityContext) {
		sc.SeccompProfilePath = "localhost//a.json" //nolint:staticcheck // SA1019: tested.
	})
	if file, field := SeccompFile(in.Config); file != "/a.json" || field != "linux.security_context.seccomp_profile_path" {
		t.Errorf("got %q in %q", file, field)
	}
	file, field := SeccompFile(full().Config)
	if file != "/p.json" || field != "linux.security_context.seccomp.localhost_ref" {
		t.Errorf("got %q in %q", file, field)
	}
	if file, _ := SeccompFile(privileged().Config); file != "" {
		t.Errorf("a privileged container's profile %q is asked for", file)
	}
}

func TestAppArmorProfiles(t *testing.T) {
	localhost := func(ref string) *runtime.SecurityProfile {
		return &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: ref}
	}
	for _, tc := range []struct {
		name             string
		profile          *runtime.SecurityProfile
		deprecated, want string
	}{
		{"none", nil, "", DefaultAppArmorProfile},
		{"default", &runtime.SecurityProfile{}, "", DefaultAppArmorProfile},
		{"unconfined", &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}, "", ""},
		{"localhost", localhost("p"), "", "p"},
		{"localhost with the old prefix", localhost("localhost/p"), "", "p"},
		{"the new field wins", localhost("p"), "localhost/q", "p"},
		{"deprecated localhost", nil, "localhost/q", "q"},
		{"deprecated default", nil, "runtime/default", DefaultAppArmorProfile},
		{"deprecated unconfined", nil, "unconfined", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := secured(func(in *Input, sc *runtime.LinuxContainerSecurityContext) {
				in.Node.AppArmor = true
				sc.Apparmor, sc.ApparmorProfile = tc.profile, tc.deprecated //nolint:staticcheck // SA1019: tested.
			})
			if spec, _ := mustBuild(t, in); spec.Process.ApparmorProfile != tc.want {
				t.Errorf("got %q, want %q", spec.Process.ApparmorProfile, tc.want)
			}
		})
	}
}

func TestNamespacesFollowModes(t *testing.T) {
	find := func(spec *specs.Spec, kind specs.LinuxNamespaceType) (path string, ok bool) {
		for _, ns := range spec.Linux.Namespaces {
			if ns.Type == kind {
				return ns.Path, true
			}
		}
		return "", false
	}
	for _, tc := range []struct {
		options *runtime.NamespaceOption
		path    string
		present bool
	}{
		{nil, "/proc/7/ns/pid", true},
		{&runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER}, "", true},
		{&runtime.NamespaceOption{Pid: runtime.NamespaceMode_NODE}, "", false},
		{&runtime.NamespaceOption{Pid: runtime.NamespaceMode_TARGET, TargetId: "x"}, "/proc/7/ns/pid", true},
	} {
		spec, _ := mustBuild(t, secured(func(_ *Input, sc *runtime.LinuxContainerSecurityContext) {
			sc.NamespaceOptions = tc.options
		}))
		if path, ok := find(spec, specs.PIDNamespace); path != tc.path || ok != tc.present {
			t.Errorf("%v: got pid namespace %q, %t", tc.options, path, ok)
		}
	}
	in := hostNamespaces()
	in.Config.Linux.SecurityContext.NamespaceOptions = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER}
	spec, _ := mustBuild(t, in)
	if _, ok := find(spec, specs.NetworkNamespace); ok {
		t.Error("POD in a sandbox on the host's network is not the host's network")
	}
}

func TestLabelsAreInTheSpec(t *testing.T) {
	in := minimal()
	in.Labels = Labels{Process: "p", Mount: "m"}
	if spec, _ := mustBuild(t, in); spec.Process.SelinuxLabel != "p" || spec.Linux.MountLabel != "m" {
		t.Errorf("labels %q and %q", spec.Process.SelinuxLabel, spec.Linux.MountLabel)
	}
}
