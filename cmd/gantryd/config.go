package main

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"time"
)

// Where the configuration is looked for when --config does not say.
const defaultConfigFile = "/etc/gantry/config.toml"

// Values of Config.CgroupDriver.
const (
	cgroupDriverAuto     = "auto"
	cgroupDriverCgroupfs = "cgroupfs"
	cgroupDriverSystemd  = "systemd"
)

// Values of Config.LogFormat.
const (
	logFormatText = "text"
	logFormatJSON = "json"
)

// Values of CadvisorConfig.Serve.
const (
	cadvisorAuto = "auto"
	cadvisorOn   = "on"
	cadvisorOff  = "off"
)

// Values of StreamConfig.TLS.
const (
	streamTLSOff        = "off"
	streamTLSSelfSigned = "self-signed"
	streamTLSFiles      = "files"
)

// Config is the daemon's configuration: defaults, over them the configuration files, over them the flags. It is
// resolved once, before anything starts, and does not change after.
//
// To add an option: a field here with its TOML key, its default in defaultConfig, its documentation in keyDocs, and,
// if there are wrong values, a line in Config.checks. If it has a flag too, a line in flags. Tests hold the four
// together.
type Config struct {
	Address      string `toml:"address"`
	Root         string `toml:"root"`
	State        string `toml:"state"`
	Keeper       string `toml:"keeper"`
	Verbosity    int    `toml:"verbosity"`
	LogFormat    string `toml:"log_format"`
	CgroupDriver string `toml:"cgroup_driver"`
	CgroupParent string `toml:"cgroup_parent"`

	DefaultUlimits       []string `toml:"default_ulimits"`
	MakeMissingHostPaths bool     `toml:"make_missing_host_paths"`

	Image           ImageConfig           `toml:"image"`
	CNI             CNIConfig             `toml:"cni"`
	EmbeddedNetwork EmbeddedNetworkConfig `toml:"embedded_network"`
	Seccomp         SeccompConfig         `toml:"seccomp"`
	CDI             CDIConfig             `toml:"cdi"`
	Stream          StreamConfig          `toml:"stream"`
	Stats           StatsConfig           `toml:"stats"`
	Cadvisor        CadvisorConfig        `toml:"cadvisor"`
	Tracing         TracingConfig         `toml:"tracing"`

	RuntimeHandlers map[string]HandlerConfig `toml:"runtime_handlers"`
}

// ImageConfig is about pulling images.
type ImageConfig struct {
	RegistryConfigDir      string   `toml:"registry_config_dir"`
	MaxConcurrentDownloads int      `toml:"max_concurrent_downloads"`
	PullProgressTimeout    Duration `toml:"pull_progress_timeout"`
	PinnedImages           []string `toml:"pinned_images"`
}

// CNIConfig is about the network that CNI plugins make.
type CNIConfig struct {
	ConfDir       string   `toml:"conf_dir"`
	BinDir        string   `toml:"bin_dir"`
	AttachTimeout Duration `toml:"attach_timeout"`
	DetachTimeout Duration `toml:"detach_timeout"`
}

// EmbeddedNetworkConfig is about the network that gantryd makes itself, without CNI configuration.
type EmbeddedNetworkConfig struct {
	Enabled bool   `toml:"enabled"`
	Subnet  string `toml:"subnet"`
	Subnet6 string `toml:"subnet6"`
	Bridge  string `toml:"bridge"`

	ClusterRanges []string `toml:"cluster_ranges"`
}

// SeccompConfig is about the default seccomp profile.
type SeccompConfig struct {
	NativeOnly bool `toml:"native_only"`
}

// CDIConfig is about devices by the Container Device Interface.
type CDIConfig struct {
	SpecDirs []string `toml:"spec_dirs"`
}

// StreamConfig is about the HTTP server for exec, attach and port-forward.
type StreamConfig struct {
	Address     string   `toml:"address"`
	TLS         string   `toml:"tls"`
	CertFile    string   `toml:"cert_file"`
	KeyFile     string   `toml:"key_file"`
	IdleTimeout Duration `toml:"idle_timeout"`
}

// StatsConfig is about the statistics of pods and containers.
type StatsConfig struct {
	Period Duration `toml:"period"`
}

// CadvisorConfig is about the kubelet's cAdvisor, which knows containerd's socket and no other.
type CadvisorConfig struct {
	Serve   string `toml:"serve"`
	Address string `toml:"address"`
}

// TracingConfig is about spans for OpenTelemetry.
type TracingConfig struct {
	Endpoint string  `toml:"endpoint"`
	Sampling float64 `toml:"sampling"`
}

// Duration is a duration as it is written in TOML, such as "30s" or "1m30s". It is a string so that the decoder, which
// does not say where a type's own decoding failed, leaves the judgement to Config.checks.
type Duration string

// Value returns the duration; 0 for one that Config.checks refuses.
func (d Duration) Value() time.Duration {
	value, err := time.ParseDuration(string(d))
	if err != nil {
		return 0
	}
	return value
}

// defaultConfig returns the configuration of a daemon that has neither files nor flags.
func defaultConfig() *Config {
	return &Config{
		Address:      "unix:///run/gantry/gantry.sock",
		Root:         "/var/lib/gantry",
		State:        "/run/gantry",
		LogFormat:    logFormatText,
		CgroupDriver: cgroupDriverAuto,
		CgroupParent: "/gantry",
		// What containers had where systemd starts runtimes without a limit, but for its billion.
		DefaultUlimits: []string{"nofile=1048576"},
		Image: ImageConfig{
			RegistryConfigDir:      "/etc/gantry/certs.d",
			MaxConcurrentDownloads: 3,
			PullProgressTimeout:    "1m",
			PinnedImages:           []string{},
		},
		CNI: CNIConfig{
			ConfDir:       "/etc/cni/net.d",
			BinDir:        "/opt/cni/bin",
			AttachTimeout: "1m",
			DetachTimeout: "1m",
		},
		EmbeddedNetwork: EmbeddedNetworkConfig{
			Subnet:  "10.85.0.0/16",
			Subnet6: "auto",
			Bridge:  "gantry0",

			ClusterRanges: []string{},
		},
		CDI:      CDIConfig{SpecDirs: []string{"/etc/cdi", "/var/run/cdi"}},
		Stream:   StreamConfig{Address: "127.0.0.1:0", TLS: streamTLSOff, IdleTimeout: "4h"},
		Stats:    StatsConfig{Period: "10s"},
		Cadvisor: CadvisorConfig{Serve: cadvisorAuto, Address: "unix:///run/containerd/containerd.sock"},
		Tracing:  TracingConfig{Sampling: 1},
	}
}

// valueError says that the value of a key is not one of those that are possible.
type valueError struct {
	Key      string
	Value    any
	Expected string
}

// Error names key, value and what was expected.
func (e *valueError) Error() string {
	return fmt.Sprintf("%s: value %q, expected %s", e.Key, fmt.Sprint(e.Value), e.Expected)
}

// validate returns the first wrong value as a *valueError.
func (c *Config) validate() error {
	for _, check := range c.checks() {
		if !check.ok {
			return &check.valueError
		}
	}
	return nil
}

// check is a condition on the value of a key.
type check struct {
	valueError
	ok bool
}

// checks lists what must hold.
func (c *Config) checks() []check {
	_, addressErr := socketPath(c.Address)
	_, cadvisorErr := socketPath(c.Cadvisor.Address)
	path := func(key, value string) check {
		return check{valueError{key, value, "an absolute path"}, filepath.IsAbs(value)}
	}
	timeout := func(key string, value Duration) check {
		return check{
			valueError{key, value, "a duration of 1s or more with its unit, such as \"30s\""}, value.Value() >= time.Second,
		}
	}
	return append([]check{
		{valueError{"address", c.Address, "unix:// and an absolute path of at most 100 bytes"}, addressErr == nil},
		path("root", c.Root),
		path("state", c.State),
		{valueError{"state", c.State, "a directory other than root"}, filepath.Clean(c.State) != filepath.Clean(c.Root)},
		{valueError{"keeper", c.Keeper, "an absolute path, or nothing"}, c.Keeper == "" || filepath.IsAbs(c.Keeper)},
		{valueError{"verbosity", c.Verbosity, "0 to 10"}, c.Verbosity >= 0 && c.Verbosity <= 10},
		oneOf("log_format", c.LogFormat, logFormatText, logFormatJSON),
		oneOf("cgroup_driver", c.CgroupDriver, cgroupDriverAuto, cgroupDriverCgroupfs, cgroupDriverSystemd),
		path("cgroup_parent", c.CgroupParent),
		path("image.registry_config_dir", c.Image.RegistryConfigDir),
		{valueError{"image.max_concurrent_downloads", c.Image.MaxConcurrentDownloads, "1 to 100"},
			c.Image.MaxConcurrentDownloads >= 1 && c.Image.MaxConcurrentDownloads <= 100},
		timeout("image.pull_progress_timeout", c.Image.PullProgressTimeout),
		path("cni.conf_dir", c.CNI.ConfDir),
		path("cni.bin_dir", c.CNI.BinDir),
		timeout("cni.attach_timeout", c.CNI.AttachTimeout),
		timeout("cni.detach_timeout", c.CNI.DetachTimeout),
		{valueError{"embedded_network.subnet", c.EmbeddedNetwork.Subnet,
			"an IPv4 subnet of at most 30 bits, such as 10.85.0.0/16"}, subnetFits(c.EmbeddedNetwork.Subnet)},
		{valueError{"embedded_network.subnet6", c.EmbeddedNetwork.Subnet6,
			"auto, none, or an IPv6 subnet of at most 126 bits, such as fd00:85::/64"},
			subnet6Fits(c.EmbeddedNetwork.Subnet6)},
		{valueError{"embedded_network.bridge", c.EmbeddedNetwork.Bridge, "an interface name of 1 to 15 characters"},
			interfaceName(c.EmbeddedNetwork.Bridge)},
		allRanges("embedded_network.cluster_ranges", c.EmbeddedNetwork.ClusterRanges),
		{valueError{"stream.address", c.Stream.Address, "an IP address and a port, such as 127.0.0.1:0"},
			hostPort(c.Stream.Address)},
		oneOf("stream.tls", c.Stream.TLS, streamTLSOff, streamTLSSelfSigned, streamTLSFiles),
		c.streamFile("stream.cert_file", c.Stream.CertFile),
		c.streamFile("stream.key_file", c.Stream.KeyFile),
		timeout("stream.idle_timeout", c.Stream.IdleTimeout),
		timeout("stats.period", c.Stats.Period),
		oneOf("cadvisor.serve", c.Cadvisor.Serve, cadvisorAuto, cadvisorOn, cadvisorOff),
		{valueError{"cadvisor.address", c.Cadvisor.Address, "unix:// and an absolute path of at most 100 bytes"},
			cadvisorErr == nil},
		{valueError{"tracing.endpoint", c.Tracing.Endpoint, "nothing, or http:// or https:// with host and port and no path"},
			c.Tracing.Endpoint == "" || collectorURL(c.Tracing.Endpoint)},
		{valueError{"tracing.sampling", c.Tracing.Sampling, "0.0 to 1.0"},
			c.Tracing.Sampling >= 0 && c.Tracing.Sampling <= 1},
		c.ulimitCheck(),
		allPaths("cdi.spec_dirs", c.CDI.SpecDirs),
		pinned("image.pinned_images", c.Image.PinnedImages),
	}, c.handlerChecks()...)
}

// streamFile asks for a path where one is used. A file that is named without being used is a mistake too.
func (c *Config) streamFile(key, path string) check {
	if c.Stream.TLS == streamTLSFiles {
		return check{valueError{key, path, "an absolute path, as stream.tls is \"files\""}, filepath.IsAbs(path)}
	}
	return check{valueError{key, path, "nothing, unless stream.tls is \"files\""}, path == ""}
}

// pinned refuses what could not be a pattern of a name. Whether it is a name the image store knows.
func pinned(key string, patterns []string) check {
	for _, p := range patterns {
		if p == "" || strings.ContainsAny(p, " \t\n") || strings.Contains(strings.TrimSuffix(p, "*"), "*") {
			return check{valueError{key, p, "names of images, or beginnings of full names followed by *"}, false}
		}
	}
	return check{ok: true}
}

func allPaths(key string, paths []string) check {
	for _, p := range paths {
		if !filepath.IsAbs(p) {
			return check{valueError{key, p, "absolute paths"}, false}
		}
	}
	return check{ok: true}
}

func allRanges(key string, ranges []string) check {
	for _, r := range ranges {
		if p, err := netip.ParsePrefix(r); err != nil || p.Masked() != p || p.Addr().Is4In6() || p.Bits() == 0 {
			return check{valueError{key, r, "ranges such as 10.244.0.0/16"}, false}
		}
	}
	return check{ok: true}
}

func oneOf(key, value string, values ...string) check {
	c := check{valueError: valueError{key, value, strings.Join(values, ", ")}}
	for _, v := range values {
		c.ok = c.ok || v == value
	}
	return c
}

// subnet6Fits is subnetFits for IPv6, where there are also words.
func subnet6Fits(subnet string) bool {
	p, err := netip.ParsePrefix(subnet)
	return subnet == "auto" || subnet == "none" ||
		err == nil && p.Addr().Is6() && !p.Addr().Is4In6() && p.Masked() == p && p.Bits() <= 126
}

// subnetFits reports whether a subnet has room for a gateway and at least one pod.
func subnetFits(subnet string) bool {
	p, err := netip.ParsePrefix(subnet)
	return err == nil && p.Addr().Is4() && p.Masked() == p && p.Bits() <= 30
}

func interfaceName(s string) bool {
	return s != "" && len(s) <= 15 && s != "." && s != ".." && !strings.ContainsAny(s, "/: \t\n")
}

func collectorURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "" && u.Port() != "" &&
		strings.TrimSuffix(s, "/") == u.Scheme+"://"+u.Host
}

func hostPort(s string) bool {
	host, _, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	_, err = netip.ParseAddrPort(s)
	return err == nil && host != ""
}

// socketPath returns the path of a unix:// address. The limit is that of the kernel (108 bytes) less the suffix that
// listen adds for a moment.
func socketPath(address string) (string, error) {
	path, ok := strings.CutPrefix(address, "unix://")
	if !ok || !filepath.IsAbs(path) || len(path) > 100 {
		return "", fmt.Errorf("address %q, expected unix:// and an absolute path of at most 100 bytes", address)
	}
	return filepath.Clean(path), nil
}
