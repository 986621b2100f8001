package spec

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func mappings(host, length uint32) []*runtime.IDMapping {
	return []*runtime.IDMapping{{HostId: host, Length: length}}
}

// userNamespace has gids that differ from the uids.
func userNamespace(host, length uint32) *runtime.UserNamespace {
	return &runtime.UserNamespace{Uids: mappings(host, length), Gids: mappings(host+1, length)}
}

func mappedSandbox() *runtime.PodSandboxConfig {
	return &runtime.PodSandboxConfig{Linux: &runtime.LinuxPodSandboxConfig{
		SecurityContext: &runtime.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtime.NamespaceOption{UsernsOptions: userNamespace(1000, 10)},
		},
	}}
}

// mapped is a container in a user namespace, with volumes of each kind.
func mapped() Input {
	return secured(func(in *Input, sc *runtime.LinuxContainerSecurityContext) {
		in.Sandbox = mappedSandbox()
		in.Namespaces.User = "/ns/user"
		in.Files = Files{Hosts: "/s/hosts", Shm: "/s/shm"}
		in.Host = Host{
			Sources: map[string]string{"/v": "/v"},
			Volumes: map[int]specs.Mount{
				1: {Type: "overlay", Source: "overlay", Options: []string{"ro", "lowerdir=/a:/b"}},
				2: {Type: "bind", Source: "/empty", Options: []string{"rbind", "ro"}},
			},
		}
		sc.NamespaceOptions = &runtime.NamespaceOption{UsernsOptions: userNamespace(1000, 10)}
		image := &runtime.ImageSpec{Image: "i"}
		uids, gids := mappings(1000, 10), mappings(1001, 10)
		in.Config.Mounts = []*runtime.Mount{
			{ContainerPath: "/v", HostPath: "/v", UidMappings: uids, GidMappings: gids, Readonly: true},
			{ContainerPath: "/i", Image: image, UidMappings: uids, GidMappings: gids, Readonly: true},
			{ContainerPath: "/e", Image: image, UidMappings: uids, GidMappings: gids, Readonly: true},
			{ContainerPath: "/plain", HostPath: "/v"},
		}
	})
}

func TestUserNamespaceIsJoinedAndMountsAreMapped(t *testing.T) {
	s, _, err := Build(mapped())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: "/ns/user"}) {
		t.Errorf("namespaces %v", s.Linux.Namespaces)
	}
	if got, want := s.Linux.GIDMappings, (specs.LinuxIDMapping{HostID: 1001, Size: 10}); len(got) != 1 || got[0] != want {
		t.Errorf("gid mappings %v, expected %v", got, want)
	}
	want := map[string]string{"/v": "ridmap", "/i": "idmap", "/e": "ridmap", "/plain": "", "/etc/hosts": "", "/dev/shm": ""}
	for _, m := range s.Mounts {
		got := ""
		for _, o := range m.Options {
			if strings.HasSuffix(o, "idmap") {
				got = o
			}
		}
		if got != want[m.Destination] {
			t.Errorf("mount %s has the option %q, expected %q", m.Destination, got, want[m.Destination])
		}
	}
}

func TestGroupOfTerminalsIsLeftOutWhereThereIsNone(t *testing.T) {
	for length, want := range map[uint32]bool{5: false, 6: true} {
		in := mapped()
		in.Config.Mounts = nil
		u := userNamespace(1000, length)
		in.Sandbox.Linux.SecurityContext.NamespaceOptions.UsernsOptions = u
		in.Config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = u
		s, _, err := Build(in)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/dev/pts" })
		if got := slices.Contains(s.Mounts[i].Options, "gid=5"); got != want {
			t.Errorf("%d groups: gid=5 is %t", length, got)
		}
	}
}

func TestMappingsOfMountsAreTheSandboxs(t *testing.T) {
	for name, tc := range map[string]struct {
		uids, gids []*runtime.IDMapping
		field      string
	}{
		"other uids":   {mappings(1, 10), mappings(1001, 10), "mounts[0].uidMappings"},
		"other gids":   {mappings(1000, 10), mappings(1000, 10), "mounts[0].gidMappings"},
		"no gids":      {mappings(1000, 10), nil, "mounts[0].gidMappings"},
		"two mappings": {append(mappings(1000, 10), mappings(2000, 10)...), nil, "mounts[0].uidMappings"},
	} {
		in := mapped()
		in.Config.Mounts = []*runtime.Mount{{ContainerPath: "/v", HostPath: "/v", UidMappings: tc.uids, GidMappings: tc.gids}}
		if _, _, err := Build(in); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.field) {
			t.Errorf("%s: %v, expected InvalidArgument that names %s", name, err, tc.field)
		}
	}
}

func TestUserNamespaceIsChecked(t *testing.T) {
	const pod, node = runtime.NamespaceMode_POD, runtime.NamespaceMode_NODE
	ok := mappings(1000, 10)
	for name, tc := range map[string]struct {
		u    *runtime.UserNamespace
		want string
	}{
		"none":              {nil, ""},
		"node":              {&runtime.UserNamespace{Mode: node}, ""},
		"pod":               {&runtime.UserNamespace{Uids: ok, Gids: ok}, ""},
		"highest id":        {&runtime.UserNamespace{Uids: ok, Gids: mappings(math.MaxUint32-1, 1)}, ""},
		"node and mappings": {&runtime.UserNamespace{Mode: node, Uids: ok}, `u.mode "NODE"`},
		"container":         {&runtime.UserNamespace{Mode: runtime.NamespaceMode_CONTAINER}, `u.mode "CONTAINER"`},
		"target":            {&runtime.UserNamespace{Mode: runtime.NamespaceMode_TARGET}, `u.mode "TARGET"`},
		"no mode known":     {&runtime.UserNamespace{Mode: 8}, `u.mode "8"`},
		"no uids":           {&runtime.UserNamespace{Mode: pod, Gids: ok}, "u.uids: 0 mappings"},
		"no gids":           {&runtime.UserNamespace{Uids: ok}, "u.gids: 0 mappings"},
		"two":               {&runtime.UserNamespace{Uids: append(ok[:1:1], ok...), Gids: ok}, "u.uids: 2 mappings"},
		"null":              {&runtime.UserNamespace{Uids: []*runtime.IDMapping{nil}, Gids: ok}, "u.uids[0].length 0"},
		"empty":             {&runtime.UserNamespace{Uids: ok, Gids: mappings(1000, 0)}, "u.gids[0].length 0"},
		"without root": {&runtime.UserNamespace{
			Uids: []*runtime.IDMapping{{ContainerId: 1, HostId: 1, Length: 1}}, Gids: ok,
		}, "u.uids[0].container_id 1"},
		"beyond the last id": {&runtime.UserNamespace{Uids: mappings(math.MaxUint32-1, 2), Gids: ok}, "u.uids[0].host_id 4294967294"},
		"overflow":           {&runtime.UserNamespace{Uids: mappings(math.MaxUint32, math.MaxUint32), Gids: ok}, "u.uids[0].host_id"},
	} {
		err := CheckUserNamespace("u", tc.u)
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tc.want != "" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: %v, expected InvalidArgument that says %s", name, err, tc.want)
		}
	}
}

func TestSysBesideTheNodesNetwork(t *testing.T) {
	for _, tc := range []struct {
		userns  bool
		network runtime.NamespaceMode
		want    string
	}{
		{true, runtime.NamespaceMode_NODE, "bind /sys rbind rprivate rro"},
		{true, runtime.NamespaceMode_POD, "sysfs sysfs nosuid noexec nodev ro"},
		{false, runtime.NamespaceMode_NODE, "sysfs sysfs nosuid noexec nodev ro"},
	} {
		in := mapped()
		options := in.Sandbox.Linux.SecurityContext.NamespaceOptions
		options.Network = tc.network
		if !tc.userns {
			options.UsernsOptions = nil
		}
		b := &builder{in: in}
		if m := b.sysMount("ro"); m.Destination != "/sys" || m.Type+" "+m.Source+" "+strings.Join(m.Options, " ") != tc.want {
			t.Errorf("%+v: %+v", tc, m)
		}
	}
}
