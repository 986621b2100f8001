package spec

import (
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestBuildRefuses has an entry for each thing that Build refuses, with the words that its error must say.
func TestBuildRefuses(t *testing.T) {
	type (
		cc = runtime.ContainerConfig
		sc = runtime.LinuxContainerSecurityContext
	)
	id := func(n int64) *runtime.Int64Value { return &runtime.Int64Value{Value: n} }
	profile := func(kind runtime.SecurityProfile_ProfileType, ref string) *runtime.SecurityProfile {
		return &runtime.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
	}
	const localhost = runtime.SecurityProfile_Localhost
	for _, tc := range []struct {
		name  string
		words string // separated by |
		set   func(in *Input, c *cc, s *sc)
	}{
		{"no command", "command|image", func(in *Input, _ *cc, _ *sc) { in.Image = nil }},
		{"NUL in args", "args[1]", func(_ *Input, c *cc, _ *sc) { c.Args = []string{"a", "b\x00"} }},
		{"relative cwd", `working_dir "a"`, func(_ *Input, c *cc, _ *sc) { c.WorkingDir = "a" }},
		{"env in Latin-1", `envs[1].key "B": expected a value in UTF-8`, func(_ *Input, c *cc, _ *sc) {
			c.Envs = []*runtime.KeyValue{{Key: "A"}, {Key: "B", Value: []byte{0xfc}}}
		}},
		{"empty env name", "envs[1].key", func(_ *Input, c *cc, _ *sc) {
			c.Envs = []*runtime.KeyValue{{Key: "A"}, {}}
		}},
		{"= in env name", `envs[0].key "A=B"`, func(_ *Input, c *cc, _ *sc) {
			c.Envs = []*runtime.KeyValue{{Key: "A=B"}}
		}},
		{"NUL in env value", `envs[0].key "A"`, func(_ *Input, c *cc, _ *sc) {
			c.Envs = []*runtime.KeyValue{{Key: "A", Value: []byte("x\x00")}}
		}},
		{"user and name", `run_as_username "a"`, func(_ *Input, _ *cc, s *sc) {
			s.RunAsUser, s.RunAsUsername = id(1), "a"
		}},
		{"group alone", "run_as_group 5|run_as_user", func(_ *Input, _ *cc, s *sc) { s.RunAsGroup = id(5) }},
		{"negative user", "run_as_user -1", func(_ *Input, _ *cc, s *sc) { s.RunAsUser = id(-1) }},
		{"large group", "run_as_group 2147483648", func(_ *Input, _ *cc, s *sc) {
			s.RunAsUser, s.RunAsGroup = id(1), id(1<<31)
		}},
		{"name with colon", `run_as_username "a:b"`, func(_ *Input, _ *cc, s *sc) { s.RunAsUsername = "a:b" }},
		{"negative supplemental", "supplemental_groups[0] -1", func(_ *Input, _ *cc, s *sc) {
			s.SupplementalGroups = []int64{-1}
		}},
		{"unknown policy", "supplemental_groups_policy|7", func(_ *Input, _ *cc, s *sc) {
			s.SupplementalGroupsPolicy = 7
		}},
		{"privileged elsewhere", "privileged|sandbox", func(_ *Input, _ *cc, s *sc) { s.Privileged = true }},
		{"unknown capability", `capabilities.add_capabilities[0] "FLY"`, func(_ *Input, _ *cc, s *sc) {
			s.Capabilities = &runtime.Capability{AddCapabilities: []string{"FLY"}}
		}},
		{"unknown drop", `capabilities.drop_capabilities[0] ""`, func(_ *Input, _ *cc, s *sc) {
			s.Capabilities = &runtime.Capability{DropCapabilities: []string{""}}
		}},
		{"unknown ambient", "add_ambient_capabilities[0]", func(_ *Input, _ *cc, s *sc) {
			s.Capabilities = &runtime.Capability{AddAmbientCapabilities: []string{"x"}}
		}},
		{"relative masked", `masked_paths[0] "proc"`, func(_ *Input, _ *cc, s *sc) {
			s.MaskedPaths = []string{"proc"}
		}},
		{"relative readonly", "readonly_paths[0]", func(_ *Input, _ *cc, s *sc) {
			s.ReadonlyPaths = []string{""}
		}},
		{"seccomp type", `seccomp.profile_type "9"`, func(_ *Input, _ *cc, s *sc) { s.Seccomp = profile(9, "") }},
		{"seccomp ref not for type", "seccomp.localhost_ref", func(_ *Input, _ *cc, s *sc) {
			s.Seccomp = profile(runtime.SecurityProfile_Unconfined, "/x")
		}},
		{"seccomp relative", `seccomp.localhost_ref "x"|absolute`, func(_ *Input, _ *cc, s *sc) {
			s.Seccomp = profile(localhost, "x")
		}},
		{"seccomp no ref", "seccomp.localhost_ref", func(_ *Input, _ *cc, s *sc) { s.Seccomp = profile(localhost, "") }},
		{"seccomp not JSON", `seccomp.localhost_ref "/x"|parse`, func(in *Input, _ *cc, s *sc) {
			s.Seccomp, in.Host.SeccompProfile = profile(localhost, "/x"), []byte("{")
		}},
		{"seccomp null call", "syscalls[0] is null", func(in *Input, _ *cc, s *sc) {
			s.Seccomp = profile(localhost, "/x")
			in.Host.SeccompProfile = []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[null]}`)
		}},
		{"seccomp unknown action", `syscalls[0].action "X"`, func(in *Input, _ *cc, s *sc) {
			s.Seccomp = profile(localhost, "/x")
			in.Host.SeccompProfile = []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"X"}]}`)
		}},
		{"seccomp unknown default action", `defaultAction ""`, func(in *Input, _ *cc, s *sc) {
			s.Seccomp, in.Host.SeccompProfile = profile(localhost, "/x"), []byte(`{}`)
		}},
		{"seccomp name and names", "both 'name' and 'names'", func(in *Input, _ *cc, s *sc) {
			s.Seccomp = profile(localhost, "/x")
			in.Host.SeccompProfile = []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
				{"name":"a","names":["a"],"action":"SCMP_ACT_LOG"}]}`)
		}},
		{"seccomp without kernel", "seccomp.localhost_ref|without seccomp", func(in *Input, _ *cc, s *sc) {
			s.Seccomp, in.Node.Seccomp = profile(localhost, "/x"), false
		}},
		{"seccomp path", `seccomp_profile_path "x"`, func(_ *Input, _ *cc, s *sc) {
			s.SeccompProfilePath = "x" //nolint:staticcheck // SA1019: the deprecated field is what is tested.
		}},
		{"apparmor without kernel", `apparmor.localhost_ref "p"|AppArmor`, func(_ *Input, _ *cc, s *sc) {
			s.Apparmor = profile(localhost, "p")
		}},
		{"apparmor bad name", "apparmor.localhost_ref", func(in *Input, _ *cc, s *sc) {
			in.Node.AppArmor, s.Apparmor = true, profile(localhost, "localhost/")
		}},
		{"apparmor string", `apparmor_profile "x"`, func(_ *Input, _ *cc, s *sc) {
			s.ApparmorProfile = "x" //nolint:staticcheck // SA1019: the deprecated field is what is tested.
		}},
		{"userns in a sandbox without", "userns_options|the node's", func(_ *Input, _ *cc, s *sc) {
			s.NamespaceOptions = &runtime.NamespaceOption{UsernsOptions: userNamespace(1000, 10)}
		}},
		{"userns without mappings", "userns_options.uids: 0 mappings", func(_ *Input, _ *cc, s *sc) {
			s.NamespaceOptions = &runtime.NamespaceOption{UsernsOptions: &runtime.UserNamespace{}}
		}},
		{"userns unlike the sandbox's", "userns_options|1001|1000", func(in *Input, _ *cc, s *sc) {
			in.Sandbox = mappedSandbox()
			s.NamespaceOptions = &runtime.NamespaceOption{UsernsOptions: userNamespace(1001, 10)}
		}},
		{"no userns in a sandbox with one", "userns_options|the sandbox's", func(in *Input, _ *cc, _ *sc) {
			in.Sandbox = mappedSandbox()
		}},
		{"no path of a userns", "userns_options|path", func(in *Input, _ *cc, s *sc) {
			in.Sandbox = mappedSandbox()
			s.NamespaceOptions = &runtime.NamespaceOption{UsernsOptions: userNamespace(1000, 10)}
		}},
		{"userns mode", "userns_options.mode", func(_ *Input, _ *cc, s *sc) {
			s.NamespaceOptions = &runtime.NamespaceOption{UsernsOptions: &runtime.UserNamespace{Mode: 8}}
		}},
		{"host network in a pod", `namespace_options.network "NODE"|POD`, func(_ *Input, _ *cc, s *sc) {
			s.NamespaceOptions = &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE}
		}},
		{"host ipc in a pod", `namespace_options.ipc "NODE"`, func(_ *Input, _ *cc, s *sc) {
			s.NamespaceOptions = &runtime.NamespaceOption{Ipc: runtime.NamespaceMode_NODE}
		}},
		{"own network", `namespace_options.network "CONTAINER"`, func(_ *Input, _ *cc, s *sc) {
			s.NamespaceOptions = &runtime.NamespaceOption{Network: runtime.NamespaceMode_CONTAINER}
		}},
		{"unknown ipc", "namespace_options.ipc", func(_ *Input, _ *cc, s *sc) {
			s.NamespaceOptions = &runtime.NamespaceOption{Ipc: 9}
		}},
		{"unknown pid", "namespace_options.pid", func(_ *Input, _ *cc, s *sc) {
			s.NamespaceOptions = &runtime.NamespaceOption{Pid: 9}
		}},
		{"no pid namespace", "namespace_options.pid", func(in *Input, _ *cc, _ *sc) { in.Namespaces.PID = "" }},
		{"no target", "target_id", func(_ *Input, _ *cc, s *sc) {
			s.NamespaceOptions = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_TARGET}
		}},
		{"no network namespace", "namespace_options.network|path", func(in *Input, _ *cc, _ *sc) {
			in.Namespaces.Network = ""
		}},
		{"no uts namespace", "uts", func(in *Input, _ *cc, _ *sc) { in.Namespaces.UTS = "" }},
		{"missing device", `devices[0].host_path "/dev/x"`, func(_ *Input, c *cc, _ *sc) {
			c.Devices = []*runtime.Device{{HostPath: "/dev/x", Permissions: "r"}}
		}},
		{"device permissions", `devices[0].permissions "rx"`, func(_ *Input, c *cc, _ *sc) {
			c.Devices = []*runtime.Device{{HostPath: "/dev/x", Permissions: "rx"}}
		}},
		{"device without permissions", `devices[0].permissions ""`, func(_ *Input, c *cc, _ *sc) {
			c.Devices = []*runtime.Device{{HostPath: "/dev/x"}}
		}},
		{"device at a relative path", `devices[0].container_path "x"`, func(in *Input, c *cc, _ *sc) {
			in.Host.Devices = map[string][]specs.LinuxDevice{"/dev/x": {{Path: "/dev/x", Type: "c"}}}
			c.Devices = []*runtime.Device{{HostPath: "/dev/x", ContainerPath: "x", Permissions: "r"}}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := secured(func(in *Input, s *sc) { tc.set(in, in.Config, s) })
			_, _, err := Build(in)
			wantError(t, err, strings.Split(tc.words, "|")...)
		})
	}
}

func TestBuildRefusesMounts(t *testing.T) {
	type m = runtime.Mount
	for _, tc := range []struct {
		name  string
		words string // separated by |
		mount *m
	}{
		{"nil", "mounts[1].host_path", nil},
		{"missing source", `mounts[1].host_path "/none"|exists`, &m{ContainerPath: "/a", HostPath: "/none"}},
		{"both sources", "mounts[1].host_path|image", &m{ContainerPath: "/a", HostPath: "/v", Image: &runtime.ImageSpec{}}},
		{"unknown image", `ImageVolumeMountFailed: mounts[1].image.image "i"`, &m{
			ContainerPath: "/a", Readonly: true, Image: &runtime.ImageSpec{Image: "i"},
		}},
		{"image without a name", "ImageVolumeMountFailed: mounts[1].image.image", &m{
			ContainerPath: "/a", Readonly: true, Image: &runtime.ImageSpec{},
		}},
		{"writable image", "ImageVolumeMountFailed: mounts[1].readonly false", &m{
			ContainerPath: "/a", Image: &runtime.ImageSpec{Image: "i"},
		}},
		{"image at the root", `ImageVolumeMountFailed: mounts[1].container_path "/"`, &m{
			ContainerPath: "/", Readonly: true, Image: &runtime.ImageSpec{Image: "i"},
		}},
		{"shared image", "ImageVolumeMountFailed: mounts[1].propagation", &m{
			ContainerPath: "/a", Readonly: true, Image: &runtime.ImageSpec{Image: "i"},
			Propagation: runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL,
		}},
		{"relative destination", `mounts[1].container_path "a"`, &m{ContainerPath: "a", HostPath: "/v"}},
		{"root", `mounts[1].container_path "/.."`, &m{ContainerPath: "/..", HostPath: "/v"}},
		{"uid mapping", "mounts[1].uidMappings", &m{
			ContainerPath: "/a", HostPath: "/v", UidMappings: []*runtime.IDMapping{{}},
		}},
		{"gid mapping", "mounts[1].gidMappings", &m{
			ContainerPath: "/a", HostPath: "/v", GidMappings: []*runtime.IDMapping{{}},
		}},
		{"rro but rw", "mounts[1].recursive_read_only|readonly", &m{
			ContainerPath: "/a", HostPath: "/v", RecursiveReadOnly: true,
		}},
		{"rro and slave", "mounts[1].propagation|PRIVATE", &m{
			ContainerPath: "/a", HostPath: "/v", RecursiveReadOnly: true, Readonly: true,
			Propagation: runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
		}},
		{"slave of private", `mounts[1].host_path "/v"|shared or slave`, &m{
			ContainerPath: "/a", HostPath: "/v", Propagation: runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
		}},
		{"shared with slave", `mounts[1].host_path "/slave"|shared`, &m{
			ContainerPath: "/a", HostPath: "/slave", Propagation: runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL,
		}},
		{"unknown propagation", "mounts[1].propagation", &m{ContainerPath: "/a", HostPath: "/v", Propagation: 5}},
		{"option of a file system", `mounts[1].mount_options[0] "size=1"`, &m{
			ContainerPath: "/a", HostPath: "/v", MountOptions: []string{"size=1"},
		}},
		{"rw against readonly", `mounts[1].mount_options[1] "rw"`, &m{
			ContainerPath: "/a", HostPath: "/v", Readonly: true, MountOptions: []string{"nodev", "rw"},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := minimal()
			in.Host.Sources = map[string]string{"/v": "/v", "/slave": "/slave"}
			in.Host.SlaveSources = map[string]bool{"/slave": true}
			in.Config.Mounts = []*runtime.Mount{{ContainerPath: "/ok", HostPath: "/v"}, tc.mount}
			_, _, err := Build(in)
			wantError(t, err, strings.Split(tc.words, "|")...)
			const first = "ImageVolumeMountFailed"
			if strings.HasPrefix(tc.words, first) && !strings.HasPrefix(err.Error(), first) {
				t.Errorf("error %q does not begin with %s", err, first)
			}
		})
	}
}

func TestResourcesRefuses(t *testing.T) {
	type r = runtime.LinuxContainerResources
	for words, limits := range map[string]*r{
		"linux.resources.cpu_shares -1":                  {CpuShares: -1},
		"linux.resources.cpu_period 999":                 {CpuPeriod: 999},
		"linux.resources.cpu_period -1":                  {CpuPeriod: -1},
		"linux.resources.cpu_period 1000001":             {CpuPeriod: 1000001},
		"linux.resources.cpu_quota -2":                   {CpuQuota: -2},
		"linux.resources.cpu_quota 999":                  {CpuQuota: 999},
		"linux.resources.memory_limit_in_bytes -1":       {MemoryLimitInBytes: -1},
		"linux.resources.memory_limit_in_bytes 1024":     {MemoryLimitInBytes: 1024},
		"linux.resources.memory_swap_limit_in_bytes -1":  {MemorySwapLimitInBytes: -1},
		"linux.resources.memory_swap_limit_in_bytes 9":   {MemorySwapLimitInBytes: 9, MemoryLimitInBytes: 8 << 20},
		"linux.resources.memory_swap_limit_in_bytes 100": {MemorySwapLimitInBytes: 100},
		"linux.resources.oom_score_adj 1001":             {OomScoreAdj: 1001},
		"linux.resources.oom_score_adj -1001":            {OomScoreAdj: -1001},
		`linux.resources.cpuset_cpus "3-1"`:              {CpusetCpus: "3-1"},
		`linux.resources.cpuset_cpus "0,,1"`:             {CpusetCpus: "0,,1"},
		`linux.resources.cpuset_mems "a"`:                {CpusetMems: "a"},
		`linux.resources.hugepage_limits[1].page_size`:   {HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB"}, nil}},
		`linux.resources.unified key "../x.y"`:           {Unified: map[string]string{"../x.y": "1"}},
		`linux.resources.unified key "memory"`:           {Unified: map[string]string{"memory": "1"}},
	} {
		_, err := Resources(limits, Node{CgroupV2: true})
		wantError(t, err, words)
	}
}
