package peers

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// crioConfig is CRI-O's configuration: crun, no pause containers, and its defaults else. AppArmor is not there.
const crioConfig = `[crio]
root = %[1]q
runroot = %[2]q
storage_driver = "overlay"
log_dir = %[3]q
version_file = %[4]q
version_file_persist = %[5]q
clean_shutdown_file = %[6]q
[crio.api]
listen = %[7]q
stream_address = "127.0.0.1"
stream_port = "0"
[crio.runtime]
default_runtime = "crun"
cgroup_manager = "cgroupfs"
drop_infra_ctr = true
pinns_path = %[8]q
namespaces_dir = %[9]q
container_exits_dir = %[10]q
container_attach_socket_dir = %[11]q
hooks_dir = []
apparmor_profile = "unconfined"
[crio.runtime.runtimes.crun]
runtime_path = %[12]q
runtime_root = %[13]q
runtime_type = "oci"
monitor_path = %[14]q
monitor_cgroup = "pod"
[crio.image]
pause_image = %[18]q
signature_policy = %[15]q
[crio.network]
network_dir = %[16]q
plugin_dirs = [%[17]q]
[crio.nri]
enable_nri = false
`

// CRIO prepares CRI-O with crun and conmon. It is started by Start. The names of images must be below host, a registry
// that the mirror stands for.
func CRIO(o Options, host string) (*Daemon, error) {
	in := func(name string) string { return filepath.Join(o.Dir, name) }
	for _, dir := range []string{in("crio.conf.d"), o.inState("")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if o.Address == "" {
		o.Address = in("runtime.sock")
	}
	files := map[string]string{
		"crio.conf": fmt.Sprintf(crioConfig, in("root"), o.inState("run"), in("log"), o.inState("version"),
			in("version-persist"), in("clean"),
			o.Address, filepath.Join(o.Peers, "pinns"), o.inState("namespaces"), o.inState("exits"), o.inState("attach"),
			filepath.Join(o.Peers, "crun"), o.inState("crun"), filepath.Join(o.Peers, "conmon"), in("policy.json"), o.CNIConf, o.CNIBin,
			o.SandboxImage),
		"policy.json":     `{"default": [{"type": "insecureAcceptAnything"}]}`,
		"registries.conf": fmt.Sprintf("[[registry]]\nprefix = %q\nlocation = %q\ninsecure = true\n", host, o.Mirror),
		"storage.conf":    fmt.Sprintf("[storage]\ndriver = \"overlay\"\ngraphroot = %q\nrunroot = %q\n", in("root"), o.inState("run")),
	}
	for name, text := range files {
		if err := os.WriteFile(in(name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	return &Daemon{
		Endpoint: "unix://" + o.Address, LogFile: in("crio.log"),
		command: append(slices.Clone(o.Wrap), filepath.Join(o.Peers, "crio"), "--config", in("crio.conf"),
			"--config-dir", in("crio.conf.d"), "--registries-conf", in("registries.conf"), "--log-level", "warn"),
		env: []string{"CONTAINERS_STORAGE_CONF=" + in("storage.conf")},
	}, nil
}
