package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/sandbox/stats"
)

func TestRunPodSandboxPassesConfigAndHandler(t *testing.T) {
	n := newNode(t)
	for _, handler := range []string{"", "special"} {
		resp, err := n.RunPodSandbox(testContext(t), &runtime.RunPodSandboxRequest{
			Config: sandboxConfig("web"), RuntimeHandler: handler,
		})
		if err != nil {
			t.Fatal(err)
		}
		if resp.PodSandboxId != "sandbox-of-web" {
			t.Errorf("got id %q", resp.PodSandboxId)
		}
	}
	if got, want := n.runtime.called(), `run web ""; run web "special"`; got != want {
		t.Errorf("got calls %q, want %q", got, want)
	}
}

func TestRunPodSandboxRejects(t *testing.T) {
	n := newNode(t)
	for _, test := range []struct {
		field  string
		change func(*runtime.RunPodSandboxRequest)
	}{
		{"config", func(r *runtime.RunPodSandboxRequest) { r.Config = nil }},
		{`runtime_handler is "other", expected one of ["" "special"]`, func(r *runtime.RunPodSandboxRequest) {
			r.RuntimeHandler = "other"
		}},
	} {
		req := &runtime.RunPodSandboxRequest{Config: sandboxConfig("web")}
		test.change(req)
		_, err := n.RunPodSandbox(testContext(t), req)
		wantCode(t, err, codes.InvalidArgument)
		if err != nil && !strings.Contains(err.Error(), test.field+" ") && !strings.Contains(err.Error(), test.field+":") {
			t.Errorf("got %v, want it to name %s", err, test.field)
		}
	}
	if got := n.runtime.called(); got != "" {
		t.Errorf("a bad request went through: %s", got)
	}
}

func TestStopAndRemovePodSandbox(t *testing.T) {
	n := newNode(t)
	ctx := testContext(t)
	if _, err := n.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: "s1"}); err != nil {
		t.Error(err)
	}
	if _, err := n.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: "s1"}); err != nil {
		t.Error(err)
	}
	_, err := n.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{})
	wantCode(t, err, codes.InvalidArgument)
	_, err = n.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{})
	wantCode(t, err, codes.InvalidArgument)
	if got, want := n.runtime.called(), "stop s1; remove s1"; got != want {
		t.Errorf("got calls %q, want %q", got, want)
	}
}

func TestPodSandboxStatusHasEveryField(t *testing.T) {
	n := newNode(t)
	config := sandboxConfig("web")
	config.Annotations = map[string]string{"note": "äöü \" {}"}
	options := &runtime.NamespaceOption{
		Pid: runtime.NamespaceMode_CONTAINER, Ipc: runtime.NamespaceMode_NODE,
		UsernsOptions: &runtime.UserNamespace{Mode: runtime.NamespaceMode_NODE},
	}
	config.Linux = &runtime.LinuxPodSandboxConfig{
		SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: options},
	}
	created := time.Unix(1000, 5)
	n.runtime.sandboxes = []*sandbox.SandboxStatus{{
		ID: "s1", Config: config, Handler: "special", State: sandbox.SandboxReady, Created: created,
		IPs: []string{"10.0.0.2", "fd00::2"}, NetNS: "/run/ns/s1", Containers: []string{"c1", "gone", "c2"},
	}}
	n.runtime.containers = []*sandbox.ContainerStatus{
		{ID: "c1", SandboxID: "s1", State: sandbox.ContainerRunning, Config: &runtime.ContainerConfig{}},
		{ID: "c2", SandboxID: "s1", State: sandbox.ContainerCreating, Config: &runtime.ContainerConfig{}},
	}
	got, err := n.PodSandboxStatus(testContext(t), &runtime.PodSandboxStatusRequest{PodSandboxId: "s1"})
	if err != nil {
		t.Fatal(err)
	}
	wantMessage(t, got.Status, &runtime.PodSandboxStatus{
		Id: "s1", Metadata: config.Metadata, State: runtime.PodSandboxState_SANDBOX_READY,
		CreatedAt: created.UnixNano(), Labels: config.Labels, Annotations: config.Annotations,
		Network:        &runtime.PodSandboxNetworkStatus{Ip: "10.0.0.2", AdditionalIps: []*runtime.PodIP{{Ip: "fd00::2"}}},
		Linux:          &runtime.LinuxPodSandboxStatus{Namespaces: &runtime.Namespace{Options: options}},
		RuntimeHandler: "special",
	})
	if got.Timestamp != 0 { // with one the kubelet's EventedPLEG runs init containers for ever
		t.Errorf("got timestamp %d, want none", got.Timestamp)
	}
	if len(got.ContainersStatuses) != 1 || got.ContainersStatuses[0].Id != "c1" {
		t.Errorf("got containers %v, want c1 alone", got.ContainersStatuses)
	}
	if len(got.Info) != 0 {
		t.Errorf("got info %v without being asked", got.Info)
	}
}

func TestVerbosePodSandboxStatusHasInfo(t *testing.T) {
	n := newNode(t)
	n.runtime.sandboxes = []*sandbox.SandboxStatus{{
		ID: "s1", Config: sandboxConfig("web"), State: sandbox.SandboxReady, NetNS: "/run/ns/s1", CgroupParent: "/pods/x",
	}}
	resp, err := n.PodSandboxStatus(testContext(t), &runtime.PodSandboxStatusRequest{PodSandboxId: "s1", Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		NetNS, CgroupParent, State string
		Config                     struct{ Metadata struct{ Name string } }
	}
	if err := json.Unmarshal([]byte(resp.Info["info"]), &got); err != nil {
		t.Fatal(err)
	}
	if got.NetNS != "/run/ns/s1" || got.CgroupParent != "/pods/x" || got.State != "ready" ||
		got.Config.Metadata.Name != "web" {
		t.Errorf("got %s", resp.Info["info"])
	}
}

func TestPodSandboxStatusOfUnknownID(t *testing.T) {
	n := newNode(t)
	_, err := n.PodSandboxStatus(testContext(t), &runtime.PodSandboxStatusRequest{PodSandboxId: "nope"})
	wantCode(t, err, codes.NotFound)
	_, err = n.PodSandboxStatus(testContext(t), &runtime.PodSandboxStatusRequest{})
	wantCode(t, err, codes.InvalidArgument)
}

func TestSandboxNetwork(t *testing.T) {
	onHost := &runtime.PodSandboxConfig{Linux: &runtime.LinuxPodSandboxConfig{
		SecurityContext: &runtime.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE},
		},
	}}
	for _, test := range []struct {
		name   string
		status *sandbox.SandboxStatus
		want   *runtime.PodSandboxNetworkStatus
	}{
		{
			"host network has no address",
			&sandbox.SandboxStatus{Config: onHost, IPs: []string{"192.0.2.1"}}, &runtime.PodSandboxNetworkStatus{},
		},
		{
			"no address yet",
			&sandbox.SandboxStatus{Config: &runtime.PodSandboxConfig{}}, &runtime.PodSandboxNetworkStatus{},
		},
		{
			"additional ones do not repeat the first",
			&sandbox.SandboxStatus{Config: &runtime.PodSandboxConfig{}, IPs: []string{"a", "b", "c"}},
			&runtime.PodSandboxNetworkStatus{Ip: "a", AdditionalIps: []*runtime.PodIP{{Ip: "b"}, {Ip: "c"}}},
		},
	} {
		if got := sandboxNetwork(test.status); got == nil || !proto.Equal(got, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
	}
}

// TestUnreadableRecordsPassTheClient: the kubelet's client drops an answer in which one of these is empty.
func TestUnreadableRecordsPassTheClient(t *testing.T) {
	s := sandboxStatus(&sandbox.SandboxStatus{
		ID: "s1", Config: &runtime.PodSandboxConfig{}, State: sandbox.SandboxUnknown,
	})
	m := s.Metadata
	if s.Id == "" || m.GetName() == "" || m.GetNamespace() == "" || m.GetUid() == "" || s.CreatedAt == 0 {
		t.Errorf("got %v", s)
	}
	if s.Linux.GetNamespaces().GetOptions() == nil || s.State != runtime.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("got %v", s)
	}
	c := containerStatus(&sandbox.ContainerStatus{
		ID: "c1", Config: &runtime.ContainerConfig{}, State: sandbox.ContainerUnknown,
	})
	if c.Id == "" || c.Metadata.GetName() == "" || c.CreatedAt == 0 || c.Image.GetImage() == "" || c.ImageRef == "" {
		t.Errorf("got %v", c)
	}
	if c.State != runtime.ContainerState_CONTAINER_UNKNOWN {
		t.Errorf("got %v", c)
	}
}

func TestUpdatePodSandboxResourcesWantsAReadySandbox(t *testing.T) {
	n := listNode(t)
	for id, want := range map[string]codes.Code{
		"aaa1": codes.OK, "aab2": codes.FailedPrecondition, "zz": codes.NotFound, "": codes.InvalidArgument,
	} {
		_, err := n.UpdatePodSandboxResources(testContext(t), &runtime.UpdatePodSandboxResourcesRequest{PodSandboxId: id})
		wantCode(t, err, want)
	}
}

// A limit is refused where it would have processes of the pod killed, and nowhere else.
func TestUpdatePodSandboxResourcesThatWasGivenUpNotesNothing(t *testing.T) {
	n := newNode(t)
	n.runtime.sandboxes = []*sandbox.SandboxStatus{{
		ID: "s1", Config: sandboxConfig("web"), State: sandbox.SandboxReady, CgroupParent: "/pod",
	}}
	n.stats.samples["s1"] = &stats.Sample{Memory: &stats.Memory{Limit: 64 << 20, WorkingSet: 40 << 20}}
	ctx, cancel := context.WithCancel(testContext(t))
	cancel()
	_, err := n.server.UpdatePodSandboxResources(ctx, &runtime.UpdatePodSandboxResourcesRequest{
		PodSandboxId: "s1", Resources: &runtime.LinuxContainerResources{MemoryLimitInBytes: 30 << 20},
	})
	if !errors.Is(err, context.Canceled) || n.runtime.called() != "" {
		t.Errorf("got %v and calls %q", err, n.runtime.called())
	}
}

func TestUpdatePodSandboxResourcesChecksTheMemoryInUse(t *testing.T) {
	const mi = 1 << 20
	for _, test := range []struct {
		name                              string
		limit, inUse                      uint64
		resources, overhead, noted, wants int64
		want                              codes.Code
	}{
		{"below what is in use", 64 * mi, 40 * mi, 30 * mi, 0, 0, 30 * mi, codes.FailedPrecondition},
		{"with the overhead above what is in use", 64 * mi, 40 * mi, 30 * mi, 11 * mi, 0, 0, codes.OK},
		{"with the overhead of before above what is in use", 64 * mi, 40 * mi, 30 * mi, 0, 11 * mi, 0, codes.OK},
		{"with the overhead below what is in use", 64 * mi, 40 * mi, 30 * mi, 9 * mi, 20 * mi, 39 * mi, codes.FailedPrecondition},
		{"as in force although more is in use", 30 * mi, 40 * mi, 30 * mi, 0, 0, 0, codes.OK},
		{"higher although more is in use", 20 * mi, 40 * mi, 30 * mi, 0, 0, 0, codes.OK},
		{"of containers of which some have no limit", 0, 40 * mi, 30 * mi, 0, 0, 0, codes.OK},
		{"unset", 64 * mi, 40 * mi, 0, 0, 0, 0, codes.OK},
		{"negative", 64 * mi, 40 * mi, -1, -1, 0, 0, codes.OK}, // which the runtime refuses
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNode(t)
			n.runtime.sandboxes = []*sandbox.SandboxStatus{{
				ID: "s1", Config: sandboxConfig("web"), State: sandbox.SandboxReady, CgroupParent: "/pod",
				Overhead: &runtime.LinuxContainerResources{MemoryLimitInBytes: test.noted},
			}}
			n.stats.samples["s1"] = &stats.Sample{Memory: &stats.Memory{Limit: test.limit, WorkingSet: test.inUse}}
			req := &runtime.UpdatePodSandboxResourcesRequest{
				PodSandboxId: "s1",
				Resources:    &runtime.LinuxContainerResources{MemoryLimitInBytes: test.resources},
				Overhead:     &runtime.LinuxContainerResources{MemoryLimitInBytes: test.overhead},
			}
			_, err := n.UpdatePodSandboxResources(testContext(t), req)
			wantCode(t, err, test.want)
			called := fmt.Sprintf("update s1 to %d and %d", test.overhead, test.resources)
			if test.want == codes.OK {
				if n.runtime.called() != called {
					t.Errorf("calls %q, expected %q", n.runtime.called(), called)
				}
				return
			}
			for _, word := range []string{"memory_limit_in_bytes", fmt.Sprint(test.wants), fmt.Sprint(test.inUse)} {
				if err == nil || !strings.Contains(err.Error(), word) {
					t.Errorf("got %v, expected %s in it", err, word)
				}
			}
			if n.runtime.called() != "" {
				t.Errorf("calls %q", n.runtime.called())
			}
			other := *n.runtime.sandboxes[0]
			other.ID = "s2"
			n.runtime.sandboxes = append(n.runtime.sandboxes, &other)
			_, err = n.UpdatePodSandboxResources(testContext(t), req)
			wantCode(t, err, codes.OK) // what is in use is of both
		})
	}
}
