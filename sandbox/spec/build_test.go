package spec

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var update = flag.Bool("update", false, "write the golden files")

// minimal is the least that Build takes: what crictl sends when all is left out.
func minimal() Input {
	return Input{
		ID:          "c0ffee",
		Sandbox:     &runtime.PodSandboxConfig{Hostname: "pod-1"},
		Config:      &runtime.ContainerConfig{},
		Image:       &ocispec.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"cmd"}},
		Node:        Node{Hostname: "node-1", Capabilities: knownCapabilities, OOMScoreFloor: -1000, Seccomp: true},
		CgroupsPath: "/kubepods/pod1/c0ffee",
		Namespaces:  Namespaces{Network: "/ns/net", IPC: "/ns/ipc", UTS: "/ns/uts", PID: "/proc/7/ns/pid"},
	}
}

// secured is minimal with a security context that change fills.
func secured(change func(in *Input, sc *runtime.LinuxContainerSecurityContext)) Input {
	in := minimal()
	sc := &runtime.LinuxContainerSecurityContext{}
	in.Config.Linux = &runtime.LinuxContainerConfig{SecurityContext: sc}
	in.Sandbox.Linux = &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{}}
	change(&in, sc)
	return in
}

func privileged() Input {
	mode := os.FileMode(0o660)
	return secured(func(in *Input, sc *runtime.LinuxContainerSecurityContext) {
		in.Sandbox.Linux.SecurityContext.Privileged = true
		in.Node.CgroupV2, in.Node.AppArmor = true, true
		in.Host.AllDevices = []specs.LinuxDevice{{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232, FileMode: &mode}}
		sc.Privileged = true
		sc.MaskedPaths, sc.ReadonlyPaths = []string{"/proc/kcore"}, []string{"/proc/sys"}
		sc.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: "/p.json"}
		sc.Apparmor = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: "p"}
		sc.Capabilities = &runtime.Capability{DropCapabilities: []string{"ALL"}}
	})
}

// full has something in every field that the kubelet sends.
func full() Input {
	return secured(func(in *Input, sc *runtime.LinuxContainerSecurityContext) {
		in.Node.CgroupV2, in.Node.AppArmor, in.Node.SwapAccounting = true, true, true
		in.Node.HugePageSizes, in.Node.OOMScoreFloor = []string{"2MB"}, -500
		in.Files = Files{Hostname: "/s/hostname", Hosts: "/s/hosts", ResolvConf: "/s/resolv.conf", Shm: "/s/shm"}
		in.Host = Host{
			Sources:       map[string]string{"/var/vol": "/mnt/vol", "/var/hosts": "/var/hosts", "/var/ro": "/var/ro"},
			SharedSources: map[string]bool{"/mnt/vol": true},
			Devices: map[string][]specs.LinuxDevice{
				"/dev/fuse": {{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}},
				"/dev/snd":  {{Path: "/dev/snd/seq", Type: "c", Major: 116, Minor: 1}},
			},
			SeccompProfile: []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
				{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"},
				{"names":["mount"],"action":"SCMP_ACT_ERRNO","excludes":{"caps":["CAP_SYS_ADMIN"]}}]}`),
		}
		c := in.Config
		c.Args, c.WorkingDir, c.Tty = []string{"-v"}, "/work/", true
		in.Image.Env = []string{"PATH=/bin", "A=image", "junk"}
		c.Envs = []*runtime.KeyValue{{Key: "A", Value: []byte("config")}, {Key: "B", Value: []byte("a=b")}}
		c.Mounts = []*runtime.Mount{
			{ContainerPath: "/data/deep", HostPath: "/var/vol", Propagation: runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL},
			{ContainerPath: "/data", HostPath: "/var/ro", Readonly: true, MountOptions: []string{"nodev", "noexec"}},
			{ContainerPath: "/etc/hosts", HostPath: "/var/hosts"},
		}
		c.Devices = []*runtime.Device{
			{HostPath: "/dev/fuse", ContainerPath: "/dev/fuse", Permissions: "rw"},
			{HostPath: "/dev/snd", ContainerPath: "/dev/sound", Permissions: "rwm"},
		}
		c.Linux.Resources = &runtime.LinuxContainerResources{
			CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, CpusetCpus: "0-1", OomScoreAdj: -997,
			MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20,
			HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}, {PageSize: "1GB"}},
			Unified:        map[string]string{"memory.oom.group": "1"},
		}
		sc.NamespaceOptions = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER}
		sc.RunAsUser, sc.RunAsGroup = &runtime.Int64Value{Value: 1000}, &runtime.Int64Value{Value: 2000}
		sc.SupplementalGroups, sc.SupplementalGroupsPolicy = []int64{3000}, runtime.SupplementalGroupsPolicy_Strict
		sc.ReadonlyRootfs, sc.NoNewPrivs = true, true
		sc.MaskedPaths, sc.ReadonlyPaths = []string{"/proc/kcore"}, []string{"/proc/sys"}
		sc.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: "/p.json"}
		sc.Capabilities = &runtime.Capability{
			AddCapabilities: []string{"net_admin"}, DropCapabilities: []string{"KILL"},
			AddAmbientCapabilities: []string{"CAP_NET_BIND_SERVICE"},
		}
	})
}

func hostNamespaces() Input {
	in := secured(func(in *Input, sc *runtime.LinuxContainerSecurityContext) {
		sc.NamespaceOptions = &runtime.NamespaceOption{
			Network: runtime.NamespaceMode_NODE, Ipc: runtime.NamespaceMode_NODE, Pid: runtime.NamespaceMode_NODE,
		}
		in.Sandbox.Hostname = ""
		in.Sandbox.Linux.SecurityContext.NamespaceOptions = sc.NamespaceOptions
	})
	in.Namespaces = Namespaces{}
	in.Files.Shm = "/dev/shm"
	return in
}

func TestBuildMatchesGoldenFiles(t *testing.T) {
	for name, in := range map[string]Input{
		"minimal": minimal(), "privileged": privileged(), "full": full(), "host": hostNamespaces(), "userns": mapped(),
	} {
		t.Run(name, func(t *testing.T) {
			spec, user, err := Build(in)
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(struct {
				User User
				Spec *specs.Spec
			}{user, spec}, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(file, append(got, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if string(want) != string(got)+"\n" {
				t.Errorf("differs from %s (run with -update and look at the diff):\n%s", file, got)
			}
		})
	}
}

// mustBuild is Build for input that is right.
func mustBuild(t *testing.T, in Input) (*specs.Spec, User) {
	t.Helper()
	spec, user, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	return spec, user
}

func TestBuildLeavesItsInputAlone(t *testing.T) {
	in := full()
	in.Config.Command = slices.Grow([]string{"sh"}, 4)
	image := slices.Grow([]string{"/entry"}, 4)
	in.Image.Entrypoint = image
	before, _ := json.Marshal(in)
	mustBuild(t, in)
	if after, _ := json.Marshal(in); string(after) != string(before) {
		t.Errorf("Build changed its input from\n%s\nto\n%s", before, after)
	}
	if spare := image[:2][1]; spare != "" {
		t.Errorf("Build wrote %q behind the image's entry point", spare)
	}
}

// FuzzBuild builds from what any client may send: no input may make it panic, and an error is always the client's.
func FuzzBuild(f *testing.F) {
	for _, in := range []Input{{}, minimal(), privileged(), full(), hostNamespaces(), mapped()} {
		sandbox, _ := json.Marshal(in.Sandbox)
		config, _ := json.Marshal(in.Config)
		f.Add(sandbox, config, in.Host.SeccompProfile, "user:group", "/dev/fuse", uint8(0xff))
	}
	f.Add([]byte(`{}`), []byte(`{"mounts":[null],"devices":[null],"envs":[null],"CDI_devices":[null],"linux":{"resources":
		{"hugepage_limits":[null]},"security_context":{"capabilities":{},"namespace_options":{"userns_options":{}}}}}`),
		[]byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[null]}`), ":", "", uint8(0))
	f.Fuzz(func(t *testing.T, sandbox, config, profile []byte, user, path string, bits uint8) {
		in := full()
		in.Sandbox, in.Config = nil, nil
		_ = json.Unmarshal(sandbox, &in.Sandbox)
		_ = json.Unmarshal(config, &in.Config)
		in.Host.SeccompProfile = profile
		in.Host.Sources[path] = path
		in.Image.User, in.Image.StopSignal = user, user
		in.Node.CgroupV2, in.Node.Seccomp, in.Node.AppArmor = bits&1 != 0, bits&2 != 0, bits&4 != 0
		if bits&8 != 0 {
			in.Image = nil
		}
		if _, _, err := Build(in); err != nil && !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("not the client's error: %v", err)
		}
		if _, err := StopSignal(in.Config, user); err != nil && !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("not the client's error: %v", err)
		}
		limits := in.Config.GetLinux().GetResources()
		_ = MergeResources(limits, limits)
		SeccompFile(in.Config)
	})
}

// wantError checks that err is the client's and says each of the words.
func wantError(t *testing.T, err error, words ...string) {
	t.Helper()
	if !errdefs.IsInvalidArgument(err) {
		t.Fatalf("got error %v, want an invalid argument", err)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("error %q does not say %q", err, word)
		}
	}
}
