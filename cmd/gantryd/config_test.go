package main

import (
	"bytes"
	"maps"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/pflag"

	"github.com/gantry-cri/gantry/sandbox"
)

// write makes a file with its directories.
func write(t *testing.T, name, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// load resolves the configuration of a file and flags.
func load(t *testing.T, file string, args ...string) (*Config, error) {
	t.Helper()
	fromFlags := defaultConfig()
	flags := pflag.NewFlagSet("gantryd", pflag.ContinueOnError)
	addConfigFlags(flags, fromFlags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return loadConfig(file, true, flags, fromFlags)
}

func TestWrongFileStopsTheStartAndSaysWhere(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"unknown key":          {"root = '/a'\n\nrot = '/b'", ":3: rot: unknown key"},
		"unknown key in table": {"[image]\n\n\nregistry = 'x'", ":4: image.registry: unknown key"},
		"unknown table":        {"[imagge]\nregistry_config_dir = '/x'", ":1: imagge"},
		"two unknown keys":     {"a = 1\nb = 2", ":2: b: unknown key"},
		"number for a string":  {"\nroot = 5", ":2: root: "},
		"string for a number":  {"[image]\nmax_concurrent_downloads = '3'", ":2: image.max_concurrent_downloads: "},
		"string for a bool":    {"[seccomp]\nnative_only = 'yes'", ":2: seccomp.native_only: "},
		"number for duration":  {"[cni]\nattach_timeout = 5", ":2: cni.attach_timeout: "},
		"duration, no unit":    {"[cni]\n#\nattach_timeout = '5'", `:3: cni.attach_timeout: value "5", expected`},
		"no TOML":              {"root = '/a'\nstate", ":2: "},
		"not absolute":         {"\nroot = 'a'", `:2: root: value "a", expected an absolute path`},
		"no such driver":       {"cgroup_driver = 'cgroup'", `:1: cgroup_driver: value "cgroup", expected auto, cgroupfs`},
		"inline table":         {"#\nstream = {address = 'x'}", `:2: stream.address: value "x", expected an IP address`},
		"TLS without key":      {"[stream]\ntls = 'files'\ncert_file = '/c'", `:1: stream.key_file: value "", expected an abs`},
		"key without TLS":      {"[stream]\nkey_file = '/k'", `:2: stream.key_file: value "/k", expected nothing`},
		"unknown TLS":          {"[stream]\ntls = 'on'", `:2: stream.tls: value "on", expected off, self-signed, files`},
		"dotted key":           {"#\nstream.address = 'x'", `:2: stream.address: value "x"`},
		"zero downloads":       {"[image]\nmax_concurrent_downloads = 0", `:2: image.max_concurrent_downloads: value "0"`},
		"negative timeout":     {"[cni]\ndetach_timeout = '-1s'", `:2: cni.detach_timeout: value "-1s", expected`},
		"tcp address":          {"address = 'tcp://1.2.3.4:5'", `:1: address: value "tcp:`},
		"host bits in subnet":  {"[embedded_network]\nsubnet = '10.0.0.1/16'", `:2: embedded_network.subnet: value`},
		"number for subnet":    {"[embedded_network]\nsubnet = 5", ":2: embedded_network.subnet: "},
		"bool for duration":    {"[cni]\nattach_timeout = true", ":2: cni.attach_timeout: "},
		"no subnet":            {"[embedded_network]\nsubnet = 'x'", `:2: embedded_network.subnet: `},
		"range of a host":      {"[embedded_network]\ncluster_ranges = ['10.1.2.3/16']", `:2: embedded_network.cluster_ranges: value`},
		"IPv4 for IPv6":        {"[embedded_network]\nsubnet6 = '10.0.0.0/16'", `:2: embedded_network.subnet6: value`},
		"long bridge":          {"[embedded_network]\nbridge = '0123456789abcdef'", `:2: embedded_network.bridge: value`},
		"relative CDI dir":     {"[cdi]\nspec_dirs = ['/a', 'b']", `:2: cdi.spec_dirs: value "b", expected absolute`},
		"unknown ulimit":       {"default_ulimits = ['files=1']", `:1: default_ulimits: value "files=1", expected`},
		"ulimit twice":         {"default_ulimits = ['core=1', 'core=2']", `:1: default_ulimits: value "core=2"`},
		"soft above hard":      {"default_ulimits = ['core=2:1']", `:1: default_ulimits: value "core=2:1"`},
		"pattern in a name":    {"[image]\npinned_images = ['a*b']", `:2: image.pinned_images: value "a*b"`},
		"name of a handler":    {"#\n[runtime_handlers.A_b]", `:2: runtime_handlers.A_b: value "A_b"`},
		"option of a handler":  {"[runtime_handlers.a]\nx = 1", `:2: runtime_handlers.a.x: unknown key`},
		"path in a collector":  {"[tracing]\nendpoint = 'http://a:4317/v1'", `:2: tracing.endpoint: value "http://a:4317/v1"`},
		"collector's port":     {"[tracing]\nendpoint = 'https://a'", `:2: tracing.endpoint: value "https://a", expected`},
		"collector's protocol": {"[tracing]\nendpoint = 'grpc://a:4317'", `:2: tracing.endpoint: value "grpc://a:4317"`},
		"sampling above all":   {"[tracing]\nsampling = 1.5", `:2: tracing.sampling: value "1.5", expected 0.0 to 1.0`},
		"state is root":        {"root = '/a'\nstate = '/a/'", `:2: state: value "/a/"`},
	} {
		t.Run(name, func(t *testing.T) {
			file := write(t, filepath.Join(t.TempDir(), "config.toml"), c.text)
			config, err := load(t, file)
			if err == nil {
				t.Fatalf("accepted: %+v", config)
			}
			if !strings.Contains(err.Error(), file+c.want) {
				t.Errorf("error %q, expected %q in it", err, file+c.want)
			}
		})
	}
}

func TestLaterFilesAndThenFlagsWin(t *testing.T) {
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "config.toml"),
		"root = '/1'\nstate = '/s1'\ncgroup_parent = '/p1'\n[cni]\nconf_dir = '/c1'\nbin_dir = '/b1'")
	write(t, filepath.Join(dir, "conf.d", "20.toml"), "root = '/3'\n[cni]\nattach_timeout = '3s'")
	write(t, filepath.Join(dir, "conf.d", "10.toml"), "root = '/2'\nstate = '/s2'\n[cni]\nconf_dir = '/c2'")
	write(t, filepath.Join(dir, "conf.d", "30.toml.bak"), "nonsense")
	write(t, filepath.Join(dir, "conf.d", ".40.toml"), "nonsense")

	config, err := load(t, file, "--state=/s4", "--embedded-network", "-v=4", "--log-format", "json")
	if err != nil {
		t.Fatal(err)
	}
	want := defaultConfig()
	want.Root, want.State, want.CgroupParent = "/3", "/s4", "/p1"
	want.CNI.ConfDir, want.CNI.BinDir, want.CNI.AttachTimeout = "/c2", "/b1", "3s"
	want.EmbeddedNetwork.Enabled, want.Verbosity, want.LogFormat = true, 4, "json"
	if !reflect.DeepEqual(config, want) {
		t.Errorf("got  %+v\nwant %+v", config, want)
	}
}

func TestErrorInDropInNamesTheDropIn(t *testing.T) {
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "config.toml"), "root = '/1'")
	dropIn := write(t, filepath.Join(dir, "conf.d", "10.toml"), "\nstate = '/1'")
	if _, err := load(t, file); err == nil || !strings.HasPrefix(err.Error(), dropIn+":2: state: ") {
		t.Errorf("error %v", err)
	}
}

func TestWrongFlagNamesTheKey(t *testing.T) {
	file := write(t, filepath.Join(t.TempDir(), "config.toml"), "")
	_, err := load(t, file, "--cgroup-driver=v2")
	if err == nil || !strings.Contains(err.Error(), `cgroup_driver: value "v2", expected auto, cgroupfs, systemd`) {
		t.Errorf("error %v", err)
	}
}

func TestMissingFileIsAnErrorOnlyIfNamed(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "config.toml")
	if _, err := load(t, missing); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("named file is missing: error %v", err)
	}
	config, err := loadConfig(missing, false, pflag.NewFlagSet("", pflag.ContinueOnError), defaultConfig())
	if err != nil || !reflect.DeepEqual(config, defaultConfig()) {
		t.Errorf("default file is missing: %+v, error %v", config, err)
	}
}

// leaves calls visit for every key below a table.
func leaves(prefix string, table reflect.Value, visit func(key string, value reflect.Value)) {
	for i := range table.NumField() {
		key := prefix + table.Type().Field(i).Tag.Get("toml")
		if isTable(table.Field(i)) {
			leaves(key+".", table.Field(i), visit)
			continue
		}
		visit(key, table.Field(i))
	}
}

func TestPrintedDefaultsDocumentEveryKeyAndReadBack(t *testing.T) {
	var out bytes.Buffer
	if err := printConfig(&out, defaultConfig()); err != nil {
		t.Fatal(err)
	}
	config, err := load(t, write(t, filepath.Join(t.TempDir(), "config.toml"), out.String()))
	if err != nil || !reflect.DeepEqual(config, defaultConfig()) {
		t.Errorf("read back: %+v, error %v", config, err)
	}

	keys := map[string]bool{}
	leaves("", reflect.ValueOf(*defaultConfig()), func(key string, _ reflect.Value) {
		keys[key] = true
		if strings.Count(keyDocs[key], ". ") < 1 || !strings.HasSuffix(keyDocs[key], ".") {
			t.Errorf("%s: documentation %q, expected what it is and what it may be, in sentences", key, keyDocs[key])
		}
	})
	for key := range keyDocs {
		if !keys[key] {
			t.Errorf("keyDocs has %s, which is no key", key)
		}
	}
	for _, f := range configFlags {
		if !keys[f.key] {
			t.Errorf("flag %s is for %s, which is no key", f.name, f.key)
		}
	}
	lines := strings.Split(out.String(), "\n")
	for i, line := range lines {
		if key, _, ok := strings.Cut(line, " = "); ok && !strings.HasPrefix(line, "#") {
			if !strings.HasPrefix(lines[i-1], "# ") || !strings.HasSuffix(lines[i-1], ".") {
				t.Errorf("%s has no comment above it", key)
			}
		}
		if len(line) > 120 {
			t.Errorf("line of %d characters: %s", len(line), line)
		}
	}
}

func TestFlagsSetTheKeyThatTheyName(t *testing.T) {
	for _, f := range configFlags {
		config := defaultConfig()
		switch field := f.field(config).(type) {
		case *string:
			*field = "changed"
		case *bool:
			*field = !*field
		case *int:
			*field = 77
		default:
			t.Errorf("%s: fields of type %T cannot be set by flags", f.name, field)
		}
		changed := ""
		defaults := map[string]any{}
		leaves("", reflect.ValueOf(*defaultConfig()), func(key string, v reflect.Value) { defaults[key] = v.Interface() })
		leaves("", reflect.ValueOf(*config), func(key string, v reflect.Value) {
			if !reflect.DeepEqual(v.Interface(), defaults[key]) {
				changed += key
			}
		})
		if changed != f.key {
			t.Errorf("flag %s changes %q, but names %q", f.name, changed, f.key)
		}
	}
}

func TestConfigCommands(t *testing.T) {
	run := func(args ...string) (string, error) {
		var out bytes.Buffer
		cmd := newCommand()
		cmd.SetArgs(args)
		cmd.SetOut(&out)
		err := cmd.Execute()
		return out.String(), err
	}
	good := write(t, filepath.Join(t.TempDir(), "config.toml"), "verbosity = 3")
	if out, err := run("config", "check", "--config", good); err != nil || !strings.Contains(out, "valid") {
		t.Errorf("check of a good file: %q, %v", out, err)
	}
	bad := write(t, filepath.Join(t.TempDir(), "config.toml"), "verbosity = 33")
	if _, err := run("config", "check", "--config", bad); err == nil {
		t.Error("check of a bad file: no error")
	}
	if out, err := run("config", "default"); err != nil || !strings.Contains(out, "[embedded_network]") {
		t.Errorf("default: %q, %v", out, err)
	}
	if out, err := run("version"); err != nil || !strings.HasPrefix(out, "gantryd ") {
		t.Errorf("version: %q, %v", out, err)
	}
	if _, err := run("serve"); err == nil {
		t.Error("an argument that is no command: no error")
	}
}

func TestHandlersAreAsTheDefaultButForWhatTheySay(t *testing.T) {
	file := write(t, filepath.Join(t.TempDir(), "config.toml"), `seccomp.native_only = true
[runtime_handlers.test-handler]
[runtime_handlers.other]
seccomp_native_only = false
privileged_without_host_devices = true
`)
	config, err := load(t, file)
	if err != nil {
		t.Fatal(err)
	}
	if names := config.handlerNames(); !slices.Equal(names, []string{"other", "test-handler"}) {
		t.Errorf("names %q", names)
	}
	want := map[string]sandbox.Handler{
		"": {SeccompNativeOnly: true}, "test-handler": {SeccompNativeOnly: true},
		"other": {PrivilegedWithoutHostDevices: true},
	}
	if got := config.handlers(); !maps.Equal(got, want) {
		t.Errorf("handlers %+v, expected %+v", got, want)
	}
}

func TestUlimitsAreParsed(t *testing.T) {
	config := defaultConfig()
	config.DefaultUlimits = []string{"nofile=1024:4096", "core=unlimited", "stack=8388608"}
	want := []specs.POSIXRlimit{
		{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 4096},
		{Type: "RLIMIT_CORE", Soft: math.MaxUint64, Hard: math.MaxUint64},
		{Type: "RLIMIT_STACK", Soft: 8388608, Hard: 8388608},
	}
	if got := config.rlimits(); config.validate() != nil || !slices.Equal(got, want) {
		t.Errorf("limits %+v, %v", got, config.validate())
	}
}
