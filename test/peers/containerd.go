package peers

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// containerdConfig is containerd's configuration with what the machine of the tests needs, and its defaults else:
// AppArmor is not there, OOM scores cannot be lowered.
const containerdConfig = `version = 3
root = %[1]q
state = %[2]q
[grpc]
  address = %[3]q
[ttrpc]
  address = %[10]q
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = %[4]q
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = %[5]q
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    conf_dir = %[6]q
    bin_dirs = [%[7]q]
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = 'runc'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = 'io.containerd.runc.v2'
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        BinaryName = %[8]q
        SystemdCgroup = false
[plugins.'io.containerd.nri.v1.nri']
  disable = true
[plugins.'io.containerd.internal.v1.opt']
  path = %[9]q
`

// Containerd prepares containerd with runc. It is started by Start.
func Containerd(o Options) (*Daemon, error) {
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, err
	}
	if o.Address == "" {
		o.Address = filepath.Join(o.Dir, "runtime.sock")
	}
	hosts, err := writeHosts(o)
	if err != nil {
		return nil, err
	}
	in := func(name string) string { return filepath.Join(o.Dir, name) }
	config := fmt.Sprintf(containerdConfig, in("root"), o.inState("state"), o.Address, o.SandboxImage, hosts, o.CNIConf, o.CNIBin,
		filepath.Join(o.Peers, "runc"), in("opt"), o.Address+".ttrpc")
	if err := os.WriteFile(in("containerd.toml"), []byte(config), 0o644); err != nil {
		return nil, err
	}
	return &Daemon{
		Endpoint: "unix://" + o.Address, LogFile: in("containerd.log"),
		command: append(slices.Clone(o.Wrap),
			filepath.Join(o.Peers, "containerd"), "--config", in("containerd.toml"), "--log-level", "warn"),
		env: []string{"PATH=" + o.Peers + ":" + os.Getenv("PATH")}, // for the shim
	}, nil
}

// writeHosts makes every registry be the mirror, in containerd's form, and returns the directory.
func writeHosts(o Options) (string, error) {
	dir := filepath.Join(o.Dir, "hosts.d")
	if err := os.MkdirAll(filepath.Join(dir, "_default"), 0o755); err != nil {
		return "", err
	}
	hosts := fmt.Sprintf("server = \"http://%[1]s\"\n[host.\"http://%[1]s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", o.Mirror)
	return dir, os.WriteFile(filepath.Join(dir, "_default", "hosts.toml"), []byte(hosts), 0o644)
}
