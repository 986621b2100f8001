package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fakePlugin is a plugin that notes how it was called in $dir/log and $dir/<COMMAND>.stdin, and then does what the
// files beside say: fail.<COMMAND> is printed as its error; hang.<COMMAND> makes it and a child that holds its output
// sleep; slow.<COMMAND> makes it take half a second; daemon.<COMMAND> makes it leave such a child behind.
const fakePlugin = `#!/bin/sh
dir=%s
cat > "$dir/$CNI_COMMAND.stdin"
echo "$CNI_COMMAND|${0##*/}|$CNI_CONTAINERID|$CNI_NETNS|$CNI_IFNAME|$CNI_ARGS" >> "$dir/log"
if [ -e "$dir/hang.$CNI_COMMAND" ]; then sleep 300 & echo $! > "$dir/child"; sleep 300; fi
if [ -e "$dir/slow.$CNI_COMMAND" ]; then sleep 0.5; echo "$CNI_COMMAND ended" >> "$dir/log"; fi
if [ -e "$dir/daemon.$CNI_COMMAND" ]; then sleep 300 & echo $! > "$dir/child"; fi
if [ -e "$dir/fail.$CNI_COMMAND" ]; then cat "$dir/fail.$CNI_COMMAND"; exit 1; fi
if [ "$CNI_COMMAND" = ADD ]; then cat "$dir/result"; fi
`

const fakeResult = `{"cniVersion":"1.0.0","interfaces":[{"name":"br0"},{"name":"eth0","sandbox":"/ns"}],"ips":[
{"interface":1,"address":"10.1.2.3/24"},{"interface":0,"address":"10.1.2.1/24"},
{"interface":1,"address":"fd00::3/64"}]}`

// bench is a directory with a fake plugin and the network that uses it.
type bench struct {
	*Network
	dir    string
	config Config
}

// newBench makes a network of one fake plugin. conf is the configuration; with "" there is none.
func newBench(t *testing.T, conf string) *bench {
	t.Helper()
	dir := t.TempDir()
	b := &bench{dir: dir, config: Config{
		ConfDir: filepath.Join(dir, "net.d"), BinDirs: []string{filepath.Join(dir, "bin")},
		CacheDir: filepath.Join(dir, "cache"), Poll: 10 * time.Millisecond,
	}}
	must(t, os.Mkdir(b.config.ConfDir, 0o700))
	must(t, os.Mkdir(b.config.BinDirs[0], 0o700))
	b.plugin(t, "fake")
	b.write(t, "result", fakeResult)
	if conf != "" {
		b.write(t, "net.d/10-fake.conflist", conf)
	}
	b.open(t)
	return b
}

func (b *bench) open(t *testing.T) {
	t.Helper()
	n, err := Open(b.config)
	must(t, err)
	n.loopback = func(string) error { return nil }
	t.Cleanup(n.Close)
	b.Network = n
}

func (b *bench) plugin(t *testing.T, name string) {
	t.Helper()
	writeScript(t, filepath.Join(b.config.BinDirs[0], name), fmt.Sprintf(fakePlugin, b.dir))
}

// writeScript writes a program while nothing is forked: a child that had the file open for writing until its own exec
// would make this one "text file busy".
func writeScript(t *testing.T, path, text string) {
	t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	must(t, os.WriteFile(path, []byte(text), 0o700))
}

func (b *bench) write(t *testing.T, name, content string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(b.dir, name), []byte(content), 0o600))
}

func (b *bench) remove(t *testing.T, name string) {
	t.Helper()
	must(t, os.Remove(filepath.Join(b.dir, name)))
}

// calls returns the log and empties it.
func (b *bench) calls(t *testing.T) []string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(b.dir, "log"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	must(t, err)
	b.remove(t, "log")
	return strings.Split(strings.TrimSpace(string(content)), "\n")
}

// stdin returns what the last call of a command read.
func (b *bench) stdin(t *testing.T, command string) map[string]any {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(b.dir, command+".stdin"))
	must(t, err)
	var v map[string]any
	must(t, json.Unmarshal(content, &v))
	return v
}

func conflist(name, version, capabilities string) string {
	return fmt.Sprintf(`{"cniVersion":%q,"name":%q,"plugins":[{"type":"fake","tag":%q,"capabilities":{%s}}]}`,
		version, name, name, capabilities)
}

func sandboxConfig() *runtime.PodSandboxConfig {
	return &runtime.PodSandboxConfig{
		Metadata: &runtime.PodSandboxMetadata{Name: "web-0", Namespace: "shop", Uid: "0f3a", Attempt: 1},
	}
}

// fakeArgs is CNI_ARGS of sandbox s1 with sandboxConfig.
const fakeArgs = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=s1;" +
	"K8S_POD_UID=0f3a"

func TestAttachReturnsAddressesOfEth0InOrder(t *testing.T) {
	b := newBench(t, conflist("net", "1.0.0", ""))
	ips, err := b.Attach(t.Context(), "s1", "/ns", sandboxConfig())
	must(t, err)
	if want := []string{"10.1.2.3", "fd00::3"}; !reflect.DeepEqual(ips, want) {
		t.Errorf("addresses are %v, want %v", ips, want)
	}
	if got, want := b.calls(t), []string{"ADD|fake|s1|/ns|eth0|" + fakeArgs}; !reflect.DeepEqual(got, want) {
		t.Errorf("calls\n%q, want\n%q", got, want)
	}
}

func TestAttachPassesDeclaredCapabilities(t *testing.T) {
	b := newBench(t, conflist("net", "1.0.0",
		`"portMappings":true,"bandwidth":true,"dns":true,"cgroupPath":true`))
	config := sandboxConfig()
	config.PortMappings = []*runtime.PortMapping{
		{HostPort: 8080, ContainerPort: 80},
		{HostPort: 0, ContainerPort: 81},
		{HostPort: 53, ContainerPort: 5353, Protocol: runtime.Protocol_UDP, HostIp: "127.0.0.1"},
		{HostPort: 9, ContainerPort: 9, Protocol: runtime.Protocol_SCTP},
	}
	config.Annotations = map[string]string{ingressBandwidth: "10M", egressBandwidth: "1.5Ki"}
	config.DnsConfig = &runtime.DNSConfig{
		Servers: []string{"1.2.3.4"}, Searches: []string{"a.b"}, Options: []string{"ndots:5"},
	}
	config.Linux = &runtime.LinuxPodSandboxConfig{CgroupParent: "/kubepods/pod1"}
	_, err := b.Attach(t.Context(), "s1", "/ns", config)
	must(t, err)
	var want any
	must(t, json.Unmarshal([]byte(`{"portMappings":[
		{"hostPort":8080,"containerPort":80,"protocol":"tcp"},
		{"hostPort":53,"containerPort":5353,"protocol":"udp","hostIP":"127.0.0.1"},
		{"hostPort":9,"containerPort":9,"protocol":"sctp"}],
		"bandwidth":{"ingressRate":10000000,"ingressBurst":2147483647,"egressRate":1536,"egressBurst":2147483647},
		"dns":{"servers":["1.2.3.4"],"searches":["a.b"],"options":["ndots:5"]},
		"cgroupPath":"/kubepods/pod1"}`), &want))
	if got := b.stdin(t, "ADD")["runtimeConfig"]; !reflect.DeepEqual(got, want) {
		t.Errorf("ADD got runtimeConfig\n%v, want\n%v", got, want)
	}
	must(t, b.Detach(t.Context(), "s1", "/ns", nil))
	if got := b.stdin(t, "DEL")["runtimeConfig"]; !reflect.DeepEqual(got, want) {
		t.Errorf("DEL got runtimeConfig\n%v, want what ADD got", got)
	}
}

func TestAttachPassesNothingUndeclared(t *testing.T) {
	b := newBench(t, conflist("net", "1.0.0", `"portMappings":false`))
	config := sandboxConfig()
	config.PortMappings = []*runtime.PortMapping{{HostPort: 8080, ContainerPort: 80}}
	config.Annotations = map[string]string{ingressBandwidth: "nonsense"}
	config.DnsConfig = &runtime.DNSConfig{Servers: []string{"1.2.3.4"}}
	_, err := b.Attach(t.Context(), "s1", "/ns", config)
	must(t, err)
	if got, there := b.stdin(t, "ADD")["runtimeConfig"]; there {
		t.Errorf("runtimeConfig is %v, want none", got)
	}
}

func TestAttachRefusesBadRequests(t *testing.T) {
	b := newBench(t, conflist("net", "1.0.0", `"portMappings":true,"bandwidth":true`))
	port := func(p *runtime.PortMapping) func(*runtime.PodSandboxConfig) {
		return func(c *runtime.PodSandboxConfig) {
			c.PortMappings = []*runtime.PortMapping{{HostPort: 1, ContainerPort: 1}, p}
		}
	}
	for name, test := range map[string]struct {
		change func(*runtime.PodSandboxConfig)
		want   string
	}{
		"negative host port": {port(&runtime.PortMapping{HostPort: -1, ContainerPort: 80}),
			"port_mappings[1].host_port is -1"},
		"large host port": {port(&runtime.PortMapping{HostPort: 65536, ContainerPort: 80}),
			"port_mappings[1].host_port is 65536"},
		"no container port": {port(&runtime.PortMapping{HostPort: 80}), "port_mappings[1].container_port is 0"},
		"unknown protocol": {port(&runtime.PortMapping{HostPort: 80, ContainerPort: 80, Protocol: 7}),
			"port_mappings[1].protocol is 7"},
		"host ip": {port(&runtime.PortMapping{HostPort: 80, ContainerPort: 80, HostIp: "localhost"}),
			`port_mappings[1].host_ip is "localhost"`},
		"bandwidth": {func(c *runtime.PodSandboxConfig) { c.Annotations = map[string]string{ingressBandwidth: "10X"} },
			`annotations["kubernetes.io/ingress-bandwidth"] is "10X"`},
		"little bandwidth": {func(c *runtime.PodSandboxConfig) { c.Annotations = map[string]string{egressBandwidth: "999"} },
			`annotations["kubernetes.io/egress-bandwidth"] is "999"`},
		"smuggled argument": {func(c *runtime.PodSandboxConfig) { c.Metadata.Name = "a;IP=10.0.0.1" }, "K8S_POD_NAME"},
	} {
		t.Run(name, func(t *testing.T) {
			config := sandboxConfig()
			test.change(config)
			_, err := b.Attach(t.Context(), "s1", "/ns", config)
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want InvalidArgument with %q", err, test.want)
			}
		})
	}
	if _, err := b.Attach(t.Context(), "../s1", "/ns", sandboxConfig()); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a sandbox id with a slash gives %v, want InvalidArgument", err)
	}
	if calls, records := b.calls(t), b.recorded(t); calls != nil || records != nil {
		t.Errorf("after refused requests there are calls %v and records %v", calls, records)
	}
}

func TestAttachTellsThePluginsMessage(t *testing.T) {
	b := newBench(t, conflist("net", "1.0.0", ""))
	for said, want := range map[string]string{
		`{"code":100,"msg":"no more addresses","details":"in 10.1.2.0/24"}`: "no more addresses; in 10.1.2.0/24",
		"panic: oh dear": "panic: oh dear",
		"":               "exit status 1: no message",
	} {
		b.write(t, "fail.ADD", said)
		_, err := b.Attach(t.Context(), "s1", "/ns", sandboxConfig())
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `"fake"`) {
			t.Errorf("plugin said %q: error is %v", said, err)
		}
		if got := b.calls(t); len(got) != 1 {
			t.Errorf("calls are %q, want ADD alone", got)
		}
		must(t, b.Detach(t.Context(), "s1", "/ns", nil))
		if got := b.calls(t); len(got) != 1 || !strings.HasPrefix(got[0], "DEL|fake|s1|") {
			t.Errorf("Detach after a failed Attach called %q, want DEL", got)
		}
	}
	b.write(t, "fail.ADD", `{"code":11,"msg":"still starting"}`)
	if _, err := b.Attach(t.Context(), "s1", "/ns", sandboxConfig()); !errdefs.IsUnavailable(err) {
		t.Errorf("'try again later' gives %v, want Unavailable", err)
	}
}

func TestHungPluginIsKilledWithItsChildren(t *testing.T) {
	b := newBench(t, conflist("net", "1.0.0", ""))
	b.write(t, "hang.ADD", "")
	b.write(t, "hang.DEL", "")
	noted := func() bool {
		content, err := os.ReadFile(filepath.Join(b.dir, "child"))
		return err == nil && strings.HasSuffix(string(content), "\n")
	}
	// The plugin needs the time to come to its child, and how long that is the machine decides.
	hang := func(call func() error) (err error) {
		for patience := 2 * time.Second; patience < 2*time.Minute && !noted(); patience *= 2 {
			b.Close()
			b.config.AddTimeout, b.config.DelTimeout = patience, patience
			b.open(t)
			err = call()
		}
		return err
	}
	check := func(err error) {
		t.Helper()
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "plugin fake was killed") ||
			!strings.Contains(err.Error(), "timed out") {
			t.Errorf("error is %v, want one that says that plugin fake timed out", err)
		}
		child := b.child(t)
		eventually(t, "the plugin's child is dead", func() bool { return !alive(child) })
		b.remove(t, "child")
	}
	attempt := 0
	check(hang(func() error {
		attempt++
		_, err := b.Attach(t.Context(), fmt.Sprint("s", attempt), "/ns", sandboxConfig())
		return err
	}))
	sandbox := fmt.Sprint("s", attempt)
	check(hang(func() error { return b.Detach(t.Context(), sandbox, "/ns", nil) }))
	if got := b.recorded(t); len(got) != attempt {
		t.Errorf("records are %v: a DEL that timed out must stay recorded", got)
	}
	// The caller's context counts as well.
	b.Close()
	b.config.DelTimeout = time.Minute
	b.open(t)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	if err := b.Detach(ctx, sandbox, "/ns", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled Detach = %v", err)
	}
	b.remove(t, "hang.DEL")
	must(t, b.Detach(t.Context(), sandbox, "/ns", nil))
}

func TestPluginThatLeavesAProcessBehindSucceeds(t *testing.T) {
	b := newBench(t, conflist("net", "1.0.0", ""))
	b.write(t, "daemon.ADD", "")
	ips, err := b.Attach(t.Context(), "s1", "/ns", sandboxConfig())
	if err != nil || len(ips) != 2 {
		t.Errorf("Attach = %v, %v", ips, err)
	}
	child := b.child(t)
	if !alive(child) {
		t.Error("Attach waited for a process that the plugin left behind, or killed it")
	}
	_ = unix.Kill(child, unix.SIGKILL)
}

// child is the process that a plugin left behind, or that hangs with it.
func (b *bench) child(t *testing.T) (pid int) {
	t.Helper()
	content, _ := os.ReadFile(filepath.Join(b.dir, "child"))
	if _, err := fmt.Sscan(string(content), &pid); err != nil {
		t.Fatalf("the plugin noted no child: %v", err)
	}
	return pid
}

func TestDetachUsesWhatAttachRecorded(t *testing.T) {
	b := newBench(t, conflist("first", "1.0.0", ""))
	_, err := b.Attach(t.Context(), "s1", "/ns", sandboxConfig())
	must(t, err)
	_, err = b.Attach(t.Context(), "s2", "/ns", sandboxConfig())
	must(t, err)
	b.Close()
	b.calls(t)

	b.write(t, "net.d/10-fake.conflist", conflist("second", "1.0.0", ""))
	b.open(t)
	must(t, b.Detach(t.Context(), "s1", "/does/not/exist", nil))
	if got, want := b.calls(t), []string{"DEL|fake|s1||eth0|" + fakeArgs}; !reflect.DeepEqual(got, want) {
		t.Errorf("calls\n%q, want\n%q", got, want)
	}
	if got := b.stdin(t, "DEL"); got["name"] != "first" || got["tag"] != "first" || got["prevResult"] == nil {
		t.Errorf("DEL got %v, want the configuration and result of ADD", got)
	}

	b.remove(t, "net.d/10-fake.conflist")
	must(t, b.Detach(t.Context(), "s2", "", nil))
	if got := b.stdin(t, "DEL"); got["name"] != "first" {
		t.Errorf("without a configuration DEL got %v, want that of ADD", got)
	}
	if got := b.recorded(t); got != nil {
		t.Errorf("records are left: %v", got)
	}
	if left, _ := os.ReadDir(filepath.Join(b.config.CacheDir, "results")); len(left) != 0 {
		t.Errorf("results are left: %v", left)
	}
}

func TestDetachIsIdempotentAndSafeWithoutAttach(t *testing.T) {
	b := newBench(t, conflist("net", "1.0.0", ""))
	must(t, b.Detach(t.Context(), "s1", "", sandboxConfig()))
	if got := b.calls(t); got != nil {
		t.Errorf("Detach without Attach called %q", got)
	}
	_, err := b.Attach(t.Context(), "s1", "/ns", sandboxConfig())
	must(t, err)
	for range 2 {
		must(t, b.Detach(t.Context(), "s1", "/ns", sandboxConfig()))
	}
	if got := b.calls(t); len(got) != 2 {
		t.Errorf("calls are %q, want one ADD and one DEL", got)
	}
}

func TestDetachThatFailsCanBeTriedAgain(t *testing.T) {
	b := newBench(t, conflist("net", "1.0.0", ""))
	_, err := b.Attach(t.Context(), "s1", "/ns", sandboxConfig())
	must(t, err)
	b.write(t, "fail.DEL", `{"code":100,"msg":"cannot reach the controller"}`)
	err = b.Detach(t.Context(), "s1", "/ns", nil)
	if err == nil || !strings.Contains(err.Error(), "cannot reach the controller") {
		t.Errorf("error is %v", err)
	}
	if _, err := b.Attach(t.Context(), "s1", "/ns", sandboxConfig()); !errdefs.IsAlreadyExists(err) {
		t.Errorf("Attach over an attachment that is not undone = %v, want AlreadyExists", err)
	}
	b.remove(t, "fail.DEL")
	must(t, b.Detach(t.Context(), "s1", "/ns", nil))
	if got := b.recorded(t); got != nil {
		t.Errorf("records are left: %v", got)
	}
}

func TestRecordIsWrittenBeforeThePluginRuns(t *testing.T) {
	b := newBench(t, conflist("net", "1.0.0", ""))
	b.loopback = func(string) error { return errors.New("no loopback") }
	if _, err := b.Attach(t.Context(), "s1", "/ns", sandboxConfig()); err == nil {
		t.Fatal("Attach succeeded without loopback")
	}
	if got := b.calls(t); got != nil {
		t.Errorf("calls are %q", got)
	}
	if got := b.recorded(t); len(got) != 1 {
		t.Errorf("records are %v, want that of s1", got)
	}
}

func TestUnreadableRecordIsToldAndRemoved(t *testing.T) {
	for name, content := range map[string]string{
		"torn": `{"version":1,"sandbo`, "empty": "", "version": `{"version":99}`,
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, conflist("net", "1.0.0", ""))
			_, err := b.Attach(t.Context(), "s1", "/ns", sandboxConfig())
			must(t, err)
			b.calls(t)
			b.write(t, "cache/attachments/s1.json", content)
			b.write(t, "cache/attachments/s2.json", content)
			if err := b.Detach(t.Context(), "s1", "/ns", nil); err == nil || !strings.Contains(err.Error(), "s1.json") {
				t.Errorf("Detach = %v, want an error that names the file", err)
			}
			if got, want := b.calls(t), []string{"DEL|fake|s1||eth0|" + fakeArgs}; !reflect.DeepEqual(got, want) {
				t.Errorf("calls\n%q, want by what libcni cached\n%q", got, want)
			}
			must(t, b.Detach(t.Context(), "s1", "/ns", nil))
			if err := b.Retain(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "s2.json") {
				t.Errorf("Retain = %v, want an error that names the file", err)
			}
			if got := b.calls(t); len(got) != 1 || !strings.HasPrefix(got[0], "DEL|fake|s2||") {
				t.Errorf("calls are %q, want DEL by the present configuration", got)
			}
			must(t, b.Retain(t.Context(), nil))
		})
	}
}

func TestRetainDetachesTheOthers(t *testing.T) {
	b := newBench(t, conflist("net", "1.1.0", ""))
	b.write(t, "result", strings.Replace(fakeResult, "1.0.0", "1.1.0", 1))
	for _, id := range []string{"s1", "s2", "s3"} {
		_, err := b.Attach(t.Context(), id, "/ns", sandboxConfig())
		must(t, err)
	}
	b.calls(t)
	must(t, b.Retain(t.Context(), []string{"s2", "s9"}))
	if got := b.recorded(t); !reflect.DeepEqual(got, []string{"s2"}) {
		t.Errorf("records are %v, want s2", got)
	}
	var deleted int
	for _, call := range b.calls(t) {
		if strings.HasPrefix(call, "DEL|") {
			deleted++
		}
	}
	if deleted != 2 {
		t.Errorf("DEL ran %d times, want 2", deleted)
	}
	want := []any{
		map[string]any{"containerID": "s2", "ifname": "eth0"}, map[string]any{"containerID": "s9", "ifname": "eth0"},
	}
	if got := b.stdin(t, "GC")["cni.dev/valid-attachments"]; !reflect.DeepEqual(got, want) {
		t.Errorf("GC got valid attachments %v, want %v", got, want)
	}
}

func TestRetainJoinsErrorsAndGoesOn(t *testing.T) {
	b := newBench(t, conflist("net", "1.1.0", ""))
	b.write(t, "result", strings.Replace(fakeResult, "1.0.0", "1.1.0", 1))
	for _, id := range []string{"s1", "s2"} {
		_, err := b.Attach(t.Context(), id, "/ns", sandboxConfig())
		must(t, err)
	}
	b.write(t, "fail.DEL", `{"code":100,"msg":"no DEL"}`)
	b.write(t, "fail.GC", `{"code":100,"msg":"no GC"}`)
	err := b.Retain(t.Context(), nil)
	for _, want := range []string{"sandbox s1", "sandbox s2", "no DEL", "no GC"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want it to have %q", err, want)
		}
	}
	if got := b.recorded(t); len(got) != 2 {
		t.Errorf("records are %v, want both", got)
	}
}

func TestDetachWaitsForThePluginsOfAnAttach(t *testing.T) {
	b := newBench(t, conflist("net", "1.0.0", ""))
	b.write(t, "slow.ADD", "")
	var group sync.WaitGroup
	group.Go(func() {
		if _, err := b.Attach(t.Context(), "s1", "/ns", sandboxConfig()); err != nil {
			t.Error(err)
		}
	})
	eventually(t, "ADD runs", func() bool {
		_, err := os.Stat(filepath.Join(b.dir, "ADD.stdin"))
		return err == nil
	})
	must(t, b.Detach(t.Context(), "s1", "/ns", nil))
	group.Wait()
	var order []string
	for _, call := range b.calls(t) {
		order = append(order, strings.Split(call, "|")[0])
	}
	if want := []string{"ADD", "ADD ended", "DEL"}; !reflect.DeepEqual(order, want) {
		t.Errorf("order is %q, want %q", order, want)
	}
}

func TestDetachWaitsForThePluginsOfAKilledDaemon(t *testing.T) {
	b := newBench(t, conflist("net", "1.0.0", ""))
	list, err := b.usable()
	must(t, err)
	rec, err := newRecord("s1", "/ns", list, sandboxConfig())
	must(t, err)
	held, err := b.records.create(rec)
	must(t, err)
	// A daemon that is killed leaves the plugin running and nothing else: the lock is the plugin's alone.
	plugin := exec.CommandContext(t.Context(), "sh", "-c", `sleep 1; echo "plugin ended" >> "$0"`, filepath.Join(b.dir, "log"))
	plugin.ExtraFiles = []*os.File{held}
	must(t, plugin.Start())
	must(t, held.Close())
	must(t, b.Detach(t.Context(), "s1", "/ns", nil))
	must(t, plugin.Wait())
	if got := b.calls(t); len(got) != 2 || got[0] != "plugin ended" {
		t.Errorf("calls are %q, want DEL after the end of the plugin", got)
	}
}

func TestConcurrentDetachesRunOneDel(t *testing.T) {
	b := newBench(t, conflist("net", "1.0.0", ""))
	_, err := b.Attach(t.Context(), "s1", "/ns", sandboxConfig())
	must(t, err)
	b.calls(t)
	b.write(t, "slow.DEL", "")
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			if err := b.Detach(t.Context(), "s1", "/ns", nil); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if got := b.calls(t); len(got) != 2 { // one call, two lines
		t.Errorf("calls are %q, want one DEL", got)
	}
}

func TestSandboxesDoNotWaitForEachOther(t *testing.T) {
	b := newBench(t, conflist("net", "1.0.0", ""))
	b.write(t, "slow.ADD", "")
	// One after the other, each would end before the next begins. So it may be by chance on a loaded machine, too.
	most := 0
	for round := 0; most < 2 && round < 10; round++ {
		var group sync.WaitGroup
		for i := range 8 {
			group.Go(func() {
				if _, err := b.Attach(t.Context(), fmt.Sprint("s", round, "-", i), "/ns", sandboxConfig()); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		running := 0
		for _, call := range b.calls(t) {
			if running++; call == "ADD ended" {
				running -= 2
			}
			most = max(most, running)
		}
	}
	if most < 2 {
		t.Errorf("of 8 at once %d ran at a time", most)
	}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// alive tells whether a process runs; a zombie does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}
