package main

import (
	"fmt"
	"io"
	"reflect"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// keyDocs documents every key of the configuration: what it is, and its unit or what it may be. The first sentence is
// the usage of the key's flag.
var keyDocs = map[string]string{
	"address": "Socket that the CRI and the operator's service are served on. A unix:// URL of an absolute path.",
	"root":    "Directory of images and of the records of pods; it survives a reboot. Absolute path.",
	"state":   "Directory of sockets, pinned namespaces and locks; it is empty after a reboot. Absolute path.",
	"keeper": "Binary of the keeper. Absolute path; if empty, gantry-keeper beside the gantryd binary, else the one " +
		"in PATH.",
	"verbosity":  "How much is logged. A number from 0 (what an operator wants to know) to 10.",
	"log_format": "Format of the log on standard error. \"text\" or \"json\" (one object per line).",
	"cgroup_driver": "Who makes the cgroups of pods. \"cgroupfs\", \"systemd\", or \"auto\": systemd where it runs. " +
		"The kubelet asks for it and does the same.",
	"cgroup_parent": "Cgroup for pods that name no parent (the kubelet always names one). Absolute path below the " +
		"cgroup root; with systemd, /gantry means gantry.slice.",

	"default_ulimits": "Limits of resources for the processes of containers; what is not named is inherited. A list " +
		"of name=soft:hard or name=both, such as \"nofile=1024:4096\"; a limit above the keeper's own becomes that.",
	"make_missing_host_paths": "Make a directory where the host path of a mount does not exist. true or false; false " +
		"refuses the container, as the CRI asks for.",

	"image.registry_config_dir": "Directory with a hosts.toml (mirrors, certificates) in a directory per registry. " +
		"Absolute path; it need not exist.",
	"image.max_concurrent_downloads": "How many layers of one image are downloaded at once. A number from 1 to 100.",
	"image.pull_progress_timeout": "A pull that gets no byte for so long is given up. A duration of " +
		"1s or more such as \"1m\".",

	"image.pinned_images": "Images that the kubelet must not remove to free space. A list of names, or beginnings of " +
		"full names followed by *, such as \"registry.k8s.io/pause*\".",

	"cni.conf_dir": "Directory of the CNI network configuration; the first file in lexical order counts. " +
		"Absolute path.",
	"cni.bin_dir": "Directory of the CNI plugins. Absolute path; what is not there is looked for in ../lib/gantry/cni of " +
		"gantryd's own directory, where a package has its plugins.",
	"cni.attach_timeout": "How long attaching a pod to its networks may take. A duration of 1s or more such as \"1m\".",
	"cni.detach_timeout": "How long detaching a pod from its networks may take. A duration of 1s or more such as \"1m\".",

	"embedded_network.enabled": "Make the pods' network in the daemon, without CNI configuration or plugins. true or " +
		"false; pods of other nodes are reached only where somebody else routes to them.",
	"embedded_network.subnet": "IPv4 addresses of pods on the embedded network, until the kubelet tells the node's range. " +
		"A subnet such as 10.85.0.0/16.",
	"embedded_network.subnet6": "IPv6 addresses of pods on the embedded network, until the kubelet tells the node's range. " +
		"A subnet; \"none\"; or \"auto\": a random one below fd00::/8 that stays, if the kernel has IPv6 enabled.",
	"embedded_network.cluster_ranges": "Addresses of the pods of all nodes, where somebody routes between the nodes: a pod " +
		"reaches them with its own address, and everything else that is no pod of this node with the node's. The network " +
		"is ready once the node's range is in one of them. A list of ranges such as 10.244.0.0/16.",
	"embedded_network.bridge": "Interface with the gateway's addresses, a bridge without ports, and name of the nftables " +
		"table. An interface name of 1 to 15 characters; two daemons need two.",

	"seccomp.native_only": "Let the default seccomp profile know the machine's own architecture only. true or " +
		"false; with true, programs of its 32-bit relatives are killed.",

	"cdi.spec_dirs": "Directories of CDI specs, which say what a device is made of. A list of absolute paths; of a " +
		"device that is in several the last counts.",

	"stream.address": "Where exec, attach and port-forward are served to the kubelet over HTTP. An IP address and a " +
		"port; port 0 is any free one.",
	"stream.tls": "Whether that is HTTPS. \"off\"; \"self-signed\": a certificate made at every start, for clients that " +
		"do not check it; \"files\": that of cert_file and key_file.",
	"stream.cert_file": "Certificate of the stream server and those between it and the root, PEM. Absolute path, if tls " +
		"is \"files\"; read again for every connection.",
	"stream.key_file":     "Private key of that certificate, PEM. Absolute path, if tls is \"files\".",
	"stream.idle_timeout": "A stream without any traffic for so long is closed. A duration of 1s or more such as \"4h\".",

	"stats.period": "Time between two samples of what pods and containers use. A duration of 1s or more such as \"10s\"; " +
		"the kubelet asks every 10 s. Six times that while nobody has asked for three of them. " +
		"Writable layers and open files are measured at most once a minute.",

	"cadvisor.serve": "Whether the kubelet's cAdvisor is told which cgroup is whose, on the socket where it looks for " +
		"containerd. \"auto\": if nothing else listens there; \"on\": else the daemon does not start; \"off\": no, as has to " +
		"be where Docker runs a containerd of its own, which it starts only if that socket is missing. Without it, " +
		"and without the kubelet's gate PodAndContainerStatsFromCRI, the kubelet's summary lacks pods' network and " +
		"process counts, and /metrics/cadvisor the names of pods and containers.",
	"cadvisor.address": "Where cAdvisor looks: its flag -containerd. A unix:// URL of an absolute path; it may " +
		"be that of address.",

	"tracing.endpoint": "Collector of OpenTelemetry spans that speaks OTLP over gRPC. A URL such as " +
		"\"http://127.0.0.1:4317\", with https:// over TLS; if empty, none are sent. gantry trace pod needs no " +
		"collector.",
	"tracing.sampling": "Which part of the calls gets spans that the kubelet has not decided about. A number from 0.0 " +
		"to 1.0.",

	"runtime_handlers": "Runtime handlers besides the default one, for RuntimeClass. A table for each: " +
		"seccomp_native_only (left out: as seccomp.native_only) and privileged_without_host_devices (a privileged " +
		"container has only the devices that it asks for), both true or false.",
}

// summary returns the first sentence of a key's documentation, without its full stop.
func summary(key string) string {
	first, _, _ := strings.Cut(keyDocs[key], ". ")
	return strings.TrimSuffix(first, ".")
}

// printConfig writes config as TOML in which every key is documented.
func printConfig(w io.Writer, config *Config) error {
	fmt.Fprintln(w, "# Configuration of gantryd. Every value below is the default; a key that is left out has it too.")
	fmt.Fprintln(w, "# Files of the directory conf.d beside this one are read after it, in lexical order: the later wins.")
	fmt.Fprintln(w, "# Flags win over files.")
	return printTable(w, "", reflect.ValueOf(*config))
}

// printTable writes the keys of a struct; its tables come after them, as TOML wants it.
func printTable(w io.Writer, prefix string, table reflect.Value) error {
	for i := range table.NumField() {
		key := table.Type().Field(i).Tag.Get("toml")
		if isTable(table.Field(i)) {
			fmt.Fprintf(w, "\n[%s]\n", key)
			if err := printTable(w, key+".", table.Field(i)); err != nil {
				return err
			}
			continue
		}
		if table.Field(i).Kind() == reflect.Map {
			printMap(w, prefix+key, table.Field(i))
			continue
		}
		line, err := toml.Marshal(map[string]any{key: table.Field(i).Interface()})
		if err != nil {
			return fmt.Errorf("write %s: %w", prefix+key, err)
		}
		fmt.Fprintln(w)
		doc := keyDocs[prefix+key]
		if flag := flagOf(prefix + key); flag != "" {
			doc += " Flag: " + flag + "."
		}
		_, value, _ := strings.Cut(strings.TrimSpace(string(line)), " = ")
		for _, l := range wrap(doc+" Default: "+value+".", 100) {
			fmt.Fprintln(w, "# "+l)
		}
		if _, err := w.Write(line); err != nil {
			return err
		}
	}
	return nil
}

// isTable reports whether a field is a table of keys and not a value that happens to be a struct.
func isTable(v reflect.Value) bool {
	return v.Kind() == reflect.Struct && v.Type().PkgPath() == reflect.TypeFor[Config]().PkgPath() &&
		strings.HasSuffix(v.Type().Name(), "Config")
}

// wrap breaks text into lines of at most width characters, where it can.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
