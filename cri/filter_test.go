package cri

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
)

func sandboxConfig(name string) *runtime.PodSandboxConfig {
	return &runtime.PodSandboxConfig{
		Metadata: &runtime.PodSandboxMetadata{Name: name, Namespace: "shop", Uid: "uid-" + name, Attempt: 2},
		Labels:   map[string]string{"app": name, "tier": "web"},
	}
}

func listNode(t *testing.T) *node {
	n := newNode(t)
	n.runtime.sandboxes = []*sandbox.SandboxStatus{
		{ID: "aaa1", Config: sandboxConfig("one"), State: sandbox.SandboxReady, Created: time.Unix(1, 0)},
		{ID: "aab2", Config: sandboxConfig("two"), State: sandbox.SandboxStopped},
		{ID: "aab3", Config: sandboxConfig("three"), State: sandbox.SandboxCreating},
		{ID: "ab", Config: sandboxConfig("four"), State: sandbox.SandboxUnknown},
		{ID: "abc", Config: sandboxConfig("five"), State: sandbox.SandboxRemoving},
	}
	container := func(id, sandboxID string, state sandbox.ContainerState) *sandbox.ContainerStatus {
		return &sandbox.ContainerStatus{ID: id, SandboxID: sandboxID, State: state, Config: &runtime.ContainerConfig{
			Metadata: &runtime.ContainerMetadata{Name: "main"}, Labels: map[string]string{"in": sandboxID, "c": "main"},
		}}
	}
	n.runtime.containers = []*sandbox.ContainerStatus{
		container("ca1", "aaa1", sandbox.ContainerRunning),
		container("ca2", "aaa1", sandbox.ContainerExited),
		container("cb1", "aab2", sandbox.ContainerCreated),
		container("cb2", "aab2", sandbox.ContainerCreating),
		container("cc1", "ab", sandbox.ContainerUnknown),
	}
	return n
}

func TestListPodSandboxFilters(t *testing.T) {
	n := listNode(t)
	ready := &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_READY}
	notReady := &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_NOTREADY}
	for _, test := range []struct {
		name   string
		filter *runtime.PodSandboxFilter
		want   []string
		code   codes.Code
	}{
		{"nil is all but those being made", nil, []string{"aaa1", "aab2", "ab", "abc"}, codes.OK},
		{"empty", &runtime.PodSandboxFilter{}, []string{"aaa1", "aab2", "ab", "abc"}, codes.OK},
		{"id", &runtime.PodSandboxFilter{Id: "aaa1"}, []string{"aaa1"}, codes.OK},
		{"prefix", &runtime.PodSandboxFilter{Id: "aaa"}, []string{"aaa1"}, codes.OK},
		{"prefix of one being made too", &runtime.PodSandboxFilter{Id: "aab"}, []string{"aab2"}, codes.OK},
		{"id that begins another", &runtime.PodSandboxFilter{Id: "ab"}, []string{"ab"}, codes.OK},
		{"ambiguous", &runtime.PodSandboxFilter{Id: "a"}, nil, codes.InvalidArgument},
		{"unknown", &runtime.PodSandboxFilter{Id: "zzz"}, nil, codes.OK},
		{"longer than an id", &runtime.PodSandboxFilter{Id: "aaa12"}, nil, codes.OK},
		{"ready", &runtime.PodSandboxFilter{State: ready}, []string{"aaa1"}, codes.OK},
		{"not ready", &runtime.PodSandboxFilter{State: notReady}, []string{"aab2", "ab", "abc"}, codes.OK},
		{"label", &runtime.PodSandboxFilter{LabelSelector: map[string]string{"app": "two"}}, []string{"aab2"}, codes.OK},
		{
			"both labels must fit",
			&runtime.PodSandboxFilter{LabelSelector: map[string]string{"app": "two", "tier": "db"}}, nil, codes.OK,
		},
		{"label that nobody has", &runtime.PodSandboxFilter{LabelSelector: map[string]string{"x": ""}}, nil, codes.OK},
		{"id and state must fit", &runtime.PodSandboxFilter{Id: "aaa1", State: notReady}, nil, codes.OK},
	} {
		resp, err := n.ListPodSandbox(testContext(t), &runtime.ListPodSandboxRequest{Filter: test.filter})
		wantCode(t, err, test.code)
		var got []string
		for _, item := range resp.GetItems() {
			got = append(got, item.Id)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
	}
}

func TestListContainersFilters(t *testing.T) {
	n := listNode(t)
	running := &runtime.ContainerStateValue{State: runtime.ContainerState_CONTAINER_RUNNING}
	created := &runtime.ContainerStateValue{State: runtime.ContainerState_CONTAINER_CREATED}
	for _, test := range []struct {
		name   string
		filter *runtime.ContainerFilter
		want   []string
		code   codes.Code
	}{
		{"nil is all but those being made", nil, []string{"ca1", "ca2", "cb1", "cc1"}, codes.OK},
		{"prefix", &runtime.ContainerFilter{Id: "cb"}, []string{"cb1"}, codes.OK},
		{"ambiguous", &runtime.ContainerFilter{Id: "ca"}, nil, codes.InvalidArgument},
		{"unknown", &runtime.ContainerFilter{Id: "zz"}, nil, codes.OK},
		{"sandbox", &runtime.ContainerFilter{PodSandboxId: "aaa1"}, []string{"ca1", "ca2"}, codes.OK},
		{"prefix of sandbox", &runtime.ContainerFilter{PodSandboxId: "aab"}, []string{"cb1"}, codes.OK},
		{"sandbox whose id begins another", &runtime.ContainerFilter{PodSandboxId: "ab"}, []string{"cc1"}, codes.OK},
		{"ambiguous sandbox", &runtime.ContainerFilter{PodSandboxId: "aa"}, nil, codes.InvalidArgument},
		{"unknown sandbox", &runtime.ContainerFilter{PodSandboxId: "zz"}, nil, codes.OK},
		{"state", &runtime.ContainerFilter{State: created}, []string{"cb1"}, codes.OK},
		{"sandbox and state", &runtime.ContainerFilter{PodSandboxId: "aaa1", State: running}, []string{"ca1"}, codes.OK},
		{"id in another sandbox", &runtime.ContainerFilter{Id: "ca1", PodSandboxId: "aab2"}, nil, codes.OK},
		{"label", &runtime.ContainerFilter{LabelSelector: map[string]string{"in": "ab"}}, []string{"cc1"}, codes.OK},
	} {
		resp, err := n.ListContainers(testContext(t), &runtime.ListContainersRequest{Filter: test.filter})
		wantCode(t, err, test.code)
		var got []string
		for _, item := range resp.GetContainers() {
			got = append(got, item.Id)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
	}
}
