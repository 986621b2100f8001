//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// semantic is a semantic version with or without a v, as the kubelet parses it.
var semantic = regexp.MustCompile(`^v?\d+(\.\d+(\.\d+)?)?(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)

func TestVersionIsWhatTheKubeletParses(t *testing.T) {
	t.Parallel()
	for _, asked := range []string{"", "0.1.0", "v1", "nonsense"} {
		v, err := shared.Runtime.Version(timeout(t), &runtime.VersionRequest{Version: asked})
		if err != nil {
			t.Fatal(err)
		}
		wantEqual(t, "version", v.Version, "0.1.0")
		wantEqual(t, "runtime_api_version", v.RuntimeApiVersion, "v1")
		if v.RuntimeName == "" || !semantic.MatchString(v.RuntimeVersion) {
			t.Errorf("runtime is %q %q, expected a name and a semantic version", v.RuntimeName, v.RuntimeVersion)
		}
	}
}

func TestStatusHasWhatTheKubeletLooksFor(t *testing.T) {
	t.Parallel()
	brief, err := shared.Runtime.Status(timeout(t), &runtime.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	conditions := map[string]bool{}
	for _, c := range brief.Status.Conditions {
		conditions[c.Type] = c.Status
	}
	if !conditions[runtime.RuntimeReady] || !conditions[runtime.NetworkReady] {
		t.Errorf("conditions are %v", brief.Status.Conditions)
	}
	wantEqual(t, "number of infos", len(brief.Info), 0)
	var names []string
	for _, h := range brief.RuntimeHandlers {
		names = append(names, h.Name)
		if h.Features == nil {
			t.Errorf("handler %q has no features", h.Name)
		}
	}
	if !slices.Contains(names, "") || len(slices.Compact(sorted(names))) != len(brief.RuntimeHandlers) {
		t.Errorf("handlers are %q, expected the default one, and none twice", names)
	}
	wantEqual(t, "supplemental_groups_policy", brief.Features.GetSupplementalGroupsPolicy(), true)
	verbose, err := shared.Runtime.Status(timeout(t), &runtime.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var config struct{ StateDir string }
	if err := json.Unmarshal([]byte(verbose.Info["config"]), &config); err != nil || config.StateDir == "" {
		t.Errorf("info is %v, %v; expected JSON with a stateDir", verbose.Info, err)
	}
}

func TestRuntimeConfigIsTheDriverAndStays(t *testing.T) {
	t.Parallel()
	for _, cidr := range []string{"10.99.0.0/16", "", "not a network"} {
		_, err := shared.Runtime.UpdateRuntimeConfig(timeout(t), &runtime.UpdateRuntimeConfigRequest{
			RuntimeConfig: &runtime.RuntimeConfig{NetworkConfig: &runtime.NetworkConfig{PodCidr: cidr}},
		})
		if err != nil {
			t.Errorf("update runtime config to %q: %v", cidr, err)
		}
	}
	if _, err := shared.Runtime.UpdateRuntimeConfig(timeout(t), &runtime.UpdateRuntimeConfigRequest{}); err != nil {
		t.Errorf("update runtime config to nothing: %v", err)
	}
	config, err := shared.Runtime.RuntimeConfig(timeout(t), &runtime.RuntimeConfigRequest{})
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "cgroup driver", config.GetLinux().GetCgroupDriver(), runtime.CgroupDriver_CGROUPFS)
}

// Verbose adds info, which is JSON, and changes nothing else.
func TestVerboseOnlyAddsInfo(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	c := p.start(t, "c", "sleep 1000")
	for _, verbose := range []bool{false, true} {
		pod, err := shared.Runtime.PodSandboxStatus(timeout(t), &runtime.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: verbose})
		if err != nil {
			t.Fatal(err)
		}
		wantSame(t, "containers in the sandbox's status", pod.ContainersStatuses, []*runtime.ContainerStatus{c.status(t)})
		wantEqual(t, "timestamp of the status, which misleads the kubelet,", pod.Timestamp, 0)
		status, err := shared.Runtime.ContainerStatus(timeout(t), &runtime.ContainerStatusRequest{ContainerId: c.id, Verbose: verbose})
		if err != nil {
			t.Fatal(err)
		}
		image, err := shared.Images.ImageStatus(timeout(t), &runtime.ImageStatusRequest{
			Image: &runtime.ImageSpec{Image: status.Status.ImageId}, Verbose: verbose,
		})
		if err != nil {
			t.Fatal(err)
		}
		for what, info := range map[string]map[string]string{"sandbox": pod.Info, "container": status.Info, "image": image.Info} {
			wantEqual(t, "whether there is info about the "+what, len(info) > 0, verbose)
			for key, text := range info {
				if !json.Valid([]byte(text)) {
					t.Errorf("info %s about the %s is not JSON: %s", key, what, text)
				}
			}
		}
	}
}

// Two pods with one host port: the scheduler prevents it, and the end of either must not take the port from the other.
func TestTwoPodsWithOneHostPort(t *testing.T) {
	t.Parallel()
	const port = 23081
	mapped := func(c *runtime.PodSandboxConfig) {
		c.PortMappings = []*runtime.PortMapping{{ContainerPort: 80, HostPort: port}}
	}
	first := runPod(t, mapped)
	first.start(t, "server", "", webServer)
	url := fmt.Sprintf("http://127.0.0.1:%d/", port)
	wantServer := func(when string, p *pod) {
		t.Helper()
		if got := fetch(t, url); !strings.Contains(got, "hello from "+p.config.Hostname) {
			t.Errorf("%s the port answers %q", when, got)
		}
	}
	wantServer("with one pod", first)
	config := podConfig(t, shared, "-second")
	mapped(config)
	response, err := shared.Runtime.RunPodSandbox(timeout(t), &runtime.RunPodSandboxRequest{Config: config})
	if err != nil {
		return // refused, which is as good
	}
	second := &pod{node: shared, id: response.PodSandboxId, config: config}
	t.Cleanup(func() { second.remove(t) })
	second.start(t, "server", "", webServer)
	fetch(t, url)
	first.remove(t)
	wantServer("after the first pod", second)
	second.remove(t)
	if conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second); err == nil {
		conn.Close()
		t.Error("the port is open after both pods")
	}
}

// Every protocol and a host address; what is no port or address is refused.
func TestPortMappings(t *testing.T) {
	t.Parallel()
	p := runPod(t, func(c *runtime.PodSandboxConfig) {
		c.PortMappings = []*runtime.PortMapping{
			{Protocol: runtime.Protocol_TCP, ContainerPort: 80, HostPort: 23082, HostIp: "127.0.0.1"},
			{Protocol: runtime.Protocol_UDP, ContainerPort: 80, HostPort: 23082},
			{Protocol: runtime.Protocol_SCTP, ContainerPort: 80, HostPort: 23082},
		}
	})
	p.start(t, "server", "", webServer)
	if got := fetch(t, "http://127.0.0.1:23082/"); !strings.Contains(got, "hello from") {
		t.Errorf("the port answers %q", got)
	}
	for name, m := range map[string]*runtime.PortMapping{
		"negative": {ContainerPort: 80, HostPort: -1}, "host ip": {ContainerPort: 80, HostPort: 23083, HostIp: "localhost"},
		"container port": {ContainerPort: 70000, HostPort: 23083},
	} {
		config := podConfig(t, shared, "-"+strings.ReplaceAll(name, " ", "-"))
		config.PortMappings = []*runtime.PortMapping{m}
		if err := tryPod(t, config); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

// Events of a whole life come in order, with the statuses of the pod.
func TestEventsOfALife(t *testing.T) {
	t.Parallel()
	stream, err := shared.Runtime.GetContainerEvents(t.Context(), &runtime.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	events := make(chan *runtime.ContainerEventResponse, 10000)
	go func() {
		defer close(events)
		for {
			event, err := stream.Recv()
			if err != nil {
				return
			}
			events <- event
		}
	}()
	// Nothing tells that a stream has begun but its first event.
	eventually(t, "an event comes", func() bool {
		if err := tryPod(t, podConfig(t, shared, "-noise")); err != nil {
			t.Fatal(err)
		}
		return len(events) > 0
	})
	p := runPod(t)
	c := p.start(t, "c", "exit 3")
	c.waitExit(t)
	if _, err := shared.Runtime.RemoveContainer(timeout(t), &runtime.RemoveContainerRequest{ContainerId: c.id}); err != nil {
		t.Fatal(err)
	}
	var types []runtime.ContainerEventType
	for len(types) == 0 || types[len(types)-1] != runtime.ContainerEventType_CONTAINER_DELETED_EVENT {
		event, ok := <-events
		if !ok {
			t.Fatalf("the stream ended after %v", types)
		}
		if event.ContainerId != c.id {
			continue
		}
		types = append(types, event.ContainerEventType)
		wantEqual(t, "sandbox of the event", event.PodSandboxStatus.GetId(), p.id)
	}
	wantEqual(t, "events", fmt.Sprint(types),
		"[CONTAINER_CREATED_EVENT CONTAINER_STARTED_EVENT CONTAINER_STOPPED_EVENT CONTAINER_DELETED_EVENT]")
}

// A plugin is asked to take a network away when no process is left in it and the namespace is still there.
func TestDetachComesAfterTheContainers(t *testing.T) {
	n, plugins := brokenNetwork(t)
	report := filepath.Join(n.Dir, "at-detach")
	program, err := os.ReadFile(filepath.Join(plugins, "last"))
	if err != nil {
		t.Fatal(err)
	}
	script := strings.Replace(string(program), "*) exit 0 ;;", `DEL)
	own="net:[$(stat -Lc %i $CNI_NETNS)]"
	count=0
	for ns in /proc/[0-9]*/ns/net; do [ "$(readlink $ns)" = "$own" ] && count=$((count+1)); done
	echo "$own $count" >> `+report+`
	exit 0 ;;
*) exit 0 ;;`, 1)
	if err := os.WriteFile(filepath.Join(plugins, "last.new"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(plugins, "last.new"), filepath.Join(plugins, "last")); err != nil {
		t.Fatal(err)
	}
	p := runPodOn(t, n, podConfig(t, n, ""))
	netns := p.start(t, "a", stubborn).exec(t, "readlink /proc/self/ns/net")
	p.start(t, "b", stubborn)
	p.stop(t)
	p.stop(t)
	b, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "namespace and its processes at the detaching", string(b), netns+" 0\n")
}
