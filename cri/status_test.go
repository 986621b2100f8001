package cri

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestVersion(t *testing.T) {
	n := newNode(t)
	got, err := n.Version(testContext(t), &runtime.VersionRequest{Version: "anything"})
	if err != nil {
		t.Fatal(err)
	}
	wantMessage(t, got, &runtime.VersionResponse{
		Version: "0.1.0", RuntimeName: "gantry", RuntimeVersion: "0.9.0", RuntimeApiVersion: "v1",
	})
}

func TestStatusConditions(t *testing.T) {
	for _, test := range []struct {
		name            string
		keeper, network error
		want            []*runtime.RuntimeCondition
	}{
		{"all well", nil, nil, []*runtime.RuntimeCondition{
			{Type: "RuntimeReady", Status: true}, {Type: "NetworkReady", Status: true},
		}},
		{"no network", nil, errors.New("no configuration"), []*runtime.RuntimeCondition{
			{Type: "RuntimeReady", Status: true},
			{Type: "NetworkReady", Reason: "NetworkPluginNotReady", Message: "no configuration"},
		}},
		{"no keeper", errors.New("restarting"), nil, []*runtime.RuntimeCondition{
			{Type: "RuntimeReady", Reason: "KeeperNotReady", Message: "restarting"},
			{Type: "NetworkReady", Status: true},
		}},
	} {
		n := newNode(t)
		n.runtime.keeperErr, n.network.err = test.keeper, test.network
		got, err := n.Status(testContext(t), &runtime.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		wantMessage(t, got.Status, &runtime.RuntimeStatus{Conditions: test.want})
		if len(got.Info) != 0 {
			t.Errorf("got info %v without being asked", got.Info)
		}
	}
}

func TestStatusListsHandlersAndFeatures(t *testing.T) {
	n := newNode(t, func(c *Config) { c.Handlers, c.UserNamespaces = []string{"a", "", "b", "a"}, true })
	got, err := n.Status(testContext(t), &runtime.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	wantMessage(t, got.Features, &runtime.RuntimeFeatures{
		SupplementalGroupsPolicy: true, MountOptions: true, UserNamespacesHostNetwork: true,
	})
	without, err := newNode(t).Status(testContext(t), &runtime.StatusRequest{})
	if err != nil || without.Features.UserNamespacesHostNetwork {
		t.Errorf("features of a node without user namespaces: %v, %v", without.GetFeatures(), err)
	}
	features := &runtime.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: kernelHasMountSetattr(), UserNamespaces: true}
	want := []string{"", "a", "b"}
	if len(got.RuntimeHandlers) != len(want) {
		t.Fatalf("got %v, want %v", got.RuntimeHandlers, want)
	}
	for i, h := range got.RuntimeHandlers {
		if h.Name != want[i] || !proto.Equal(h.Features, features) {
			t.Errorf("got %v, want %q with %v", h, want[i], features)
		}
	}
}

func TestVerboseStatusTellsTheStateDirectory(t *testing.T) {
	n := newNode(t, func(c *Config) { c.Info = map[string]any{"stateDir": "/run/gantry", "snapshotter": "overlay"} })
	got, err := n.Status(testContext(t), &runtime.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var config struct{ StateDir string }
	if err := json.Unmarshal([]byte(got.Info["config"]), &config); err != nil || config.StateDir != "/run/gantry" {
		t.Errorf("got %v (%v)", got.Info, err)
	}
}

func TestRuntimeConfigTellsTheCgroupDriver(t *testing.T) {
	for driver, want := range map[string]runtime.CgroupDriver{
		"cgroupfs": runtime.CgroupDriver_CGROUPFS, "systemd": runtime.CgroupDriver_SYSTEMD,
	} {
		n := newNode(t)
		n.runtime.driver = driver
		got, err := n.RuntimeConfig(testContext(t), &runtime.RuntimeConfigRequest{})
		if err != nil || got.Linux == nil || got.Linux.CgroupDriver != want {
			t.Errorf("%s: got %v, %v, want %v", driver, got, err, want)
		}
	}
}

func TestUpdateRuntimeConfigTellsTheNetworkTheRange(t *testing.T) {
	n := newNode(t)
	told := &runtime.RuntimeConfig{NetworkConfig: &runtime.NetworkConfig{PodCidr: "10.0.0.0/24"}}
	for _, config := range []*runtime.RuntimeConfig{nil, {}, {NetworkConfig: &runtime.NetworkConfig{}}, told} {
		_, err := n.UpdateRuntimeConfig(testContext(t), &runtime.UpdateRuntimeConfigRequest{RuntimeConfig: config})
		wantCode(t, err, codes.OK)
	}
	if len(n.network.cidrs) != 1 || n.network.cidrs[0] != "10.0.0.0/24" {
		t.Errorf("the network was told %q, want the one range", n.network.cidrs)
	}
	n.network.cidrErr = fmt.Errorf("pod_cidr: %w", errdefs.ErrInvalidArgument)
	_, err := n.UpdateRuntimeConfig(testContext(t), &runtime.UpdateRuntimeConfigRequest{RuntimeConfig: told})
	wantCode(t, err, codes.InvalidArgument)
}
