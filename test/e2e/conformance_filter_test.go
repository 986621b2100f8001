//go:build e2e

package e2e

import (
	"context"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The parts of a filter are joined by AND; what does not exist is an empty list and no error.
func TestFiltersOfContainers(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	other := runPodOn(t, shared, podConfig(t, shared, "-other"))
	labels := func(labels map[string]string) func(*runtime.ContainerConfig) {
		return func(c *runtime.ContainerConfig) { c.Labels = labels }
	}
	suite := p.config.Labels["test"]
	runs := p.start(t, "runs", "sleep 1000", labels(map[string]string{"suite": suite, "kind": "a", "empty": ""}))
	created := p.create(t, "created", "sleep 1000", labels(map[string]string{"suite": suite, "kind": "b"}))
	elsewhere := other.create(t, "elsewhere", "sleep 1000", labels(map[string]string{"suite": suite, "kind": "a"}))
	state := func(s runtime.ContainerState) *runtime.ContainerStateValue {
		return &runtime.ContainerStateValue{State: s}
	}
	all := map[string]string{"suite": suite}
	for name, test := range map[string]struct {
		filter *runtime.ContainerFilter
		want   []*container
	}{
		"label":                {&runtime.ContainerFilter{LabelSelector: all}, []*container{runs, created, elsewhere}},
		"two labels":           {&runtime.ContainerFilter{LabelSelector: map[string]string{"suite": suite, "kind": "a"}}, []*container{runs, elsewhere}},
		"empty value":          {&runtime.ContainerFilter{LabelSelector: map[string]string{"suite": suite, "empty": ""}}, []*container{runs}},
		"label and state":      {&runtime.ContainerFilter{LabelSelector: all, State: state(runtime.ContainerState_CONTAINER_CREATED)}, []*container{created, elsewhere}},
		"label, state and pod": {&runtime.ContainerFilter{LabelSelector: all, State: state(runtime.ContainerState_CONTAINER_CREATED), PodSandboxId: p.id}, []*container{created}},
		"pod by prefix":        {&runtime.ContainerFilter{PodSandboxId: other.id[:13]}, []*container{elsewhere}},
		"id by prefix":         {&runtime.ContainerFilter{Id: runs.id[:13]}, []*container{runs}},
		"id of another pod":    {&runtime.ContainerFilter{Id: runs.id, PodSandboxId: other.id}, nil},
		"id in another state":  {&runtime.ContainerFilter{Id: runs.id, State: state(runtime.ContainerState_CONTAINER_EXITED)}, nil},
		"unknown id":           {&runtime.ContainerFilter{Id: strings.Repeat("0", 64)}, nil},
		"unknown pod":          {&runtime.ContainerFilter{PodSandboxId: strings.Repeat("0", 64)}, nil},
		"unknown state":        {&runtime.ContainerFilter{LabelSelector: all, State: state(77)}, nil},
		"value that differs":   {&runtime.ContainerFilter{LabelSelector: map[string]string{"suite": suite, "kind": "A"}}, nil},
	} {
		list, err := shared.Runtime.ListContainers(timeout(t), &runtime.ListContainersRequest{Filter: test.filter})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var got, want []string
		for _, c := range list.GetContainers() {
			got = append(got, c.Id)
		}
		for _, c := range test.want {
			want = append(want, c.id)
		}
		if slices.Sort(got); !slices.Equal(got, sorted(want)) {
			t.Errorf("%s: listed %v, expected %v", name, got, want)
		}
	}
}

func sorted(list []string) []string {
	slices.Sort(list)
	return list
}

func TestFiltersOfSandboxes(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	stopped := runPodOn(t, shared, podConfig(t, shared, "-stopped"), func(c *runtime.PodSandboxConfig) {
		c.Labels = map[string]string{"test": p.config.Labels["test"], "kind": "b"}
	})
	stopped.stop(t)
	state := func(s runtime.PodSandboxState) *runtime.PodSandboxStateValue {
		return &runtime.PodSandboxStateValue{State: s}
	}
	all := p.config.Labels
	for name, test := range map[string]struct {
		filter *runtime.PodSandboxFilter
		want   []string
	}{
		"label":               {&runtime.PodSandboxFilter{LabelSelector: all}, []string{p.id, stopped.id}},
		"two labels":          {&runtime.PodSandboxFilter{LabelSelector: stopped.config.Labels}, []string{stopped.id}},
		"label and ready":     {&runtime.PodSandboxFilter{LabelSelector: all, State: state(runtime.PodSandboxState_SANDBOX_READY)}, []string{p.id}},
		"label and not ready": {&runtime.PodSandboxFilter{LabelSelector: all, State: state(runtime.PodSandboxState_SANDBOX_NOTREADY)}, []string{stopped.id}},
		"id by prefix":        {&runtime.PodSandboxFilter{Id: p.id[:13]}, []string{p.id}},
		"id in another state": {&runtime.PodSandboxFilter{Id: p.id, State: state(runtime.PodSandboxState_SANDBOX_NOTREADY)}, nil},
		"id without a label":  {&runtime.PodSandboxFilter{Id: p.id, LabelSelector: map[string]string{"kind": "b"}}, nil},
		"unknown id":          {&runtime.PodSandboxFilter{Id: strings.Repeat("0", 64)}, nil},
		"unknown state":       {&runtime.PodSandboxFilter{LabelSelector: all, State: state(77)}, nil},
	} {
		list, err := shared.Runtime.ListPodSandbox(timeout(t), &runtime.ListPodSandboxRequest{Filter: test.filter})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var got []string
		for _, s := range list.GetItems() {
			got = append(got, s.Id)
		}
		if slices.Sort(got); !slices.Equal(got, sorted(test.want)) {
			t.Errorf("%s: listed %v, expected %v", name, got, test.want)
		}
	}
}

// Every call takes the 13 characters of an id that crictl prints.
func TestEveryCallTakesAShortID(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	pod := p.id[:13]
	full, err := shared.Runtime.CreateContainer(timeout(t), &runtime.CreateContainerRequest{
		PodSandboxId: pod, Config: shellConfig(t, "c", "sleep 1000"), SandboxConfig: p.config,
	})
	if err != nil {
		t.Fatal(err)
	}
	id, r := full.ContainerId[:13], shared.Runtime
	for _, call := range []struct {
		name string
		call func(ctx context.Context) error
	}{
		{"StartContainer", func(ctx context.Context) error {
			_, err := r.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: id})
			return err
		}},
		{"ContainerStatus", func(ctx context.Context) error {
			response, err := r.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: id})
			wantEqual(t, "id in status", response.GetStatus().GetId(), full.ContainerId)
			return err
		}},
		{"PodSandboxStatus", func(ctx context.Context) error {
			response, err := r.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: pod})
			wantEqual(t, "id in status", response.GetStatus().GetId(), p.id)
			return err
		}},
		{"ExecSync", func(ctx context.Context) error {
			_, err := r.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
			return err
		}},
		{"Exec", func(ctx context.Context) error {
			_, err := r.Exec(ctx, &runtime.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true})
			return err
		}},
		{"PortForward", func(ctx context.Context) error {
			_, err := r.PortForward(ctx, &runtime.PortForwardRequest{PodSandboxId: pod})
			return err
		}},
		{"UpdateContainerResources", func(ctx context.Context) error {
			_, err := r.UpdateContainerResources(ctx, &runtime.UpdateContainerResourcesRequest{
				ContainerId: id, Linux: &runtime.LinuxContainerResources{CpuShares: 100},
			})
			return err
		}},
		{"UpdatePodSandboxResources", func(ctx context.Context) error {
			_, err := r.UpdatePodSandboxResources(ctx, &runtime.UpdatePodSandboxResourcesRequest{PodSandboxId: pod})
			return err
		}},
		{"ReopenContainerLog", func(ctx context.Context) error {
			_, err := r.ReopenContainerLog(ctx, &runtime.ReopenContainerLogRequest{ContainerId: id})
			return err
		}},
		{"ContainerStats", func(ctx context.Context) error {
			_, err := r.ContainerStats(ctx, &runtime.ContainerStatsRequest{ContainerId: id})
			return err
		}},
		{"ListContainerStats", func(ctx context.Context) error {
			response, err := r.ListContainerStats(ctx, &runtime.ListContainerStatsRequest{
				Filter: &runtime.ContainerStatsFilter{Id: id, PodSandboxId: pod},
			})
			wantEqual(t, "number of stats", len(response.GetStats()), 1)
			return err
		}},
		{"PodSandboxStats", func(ctx context.Context) error {
			_, err := r.PodSandboxStats(ctx, &runtime.PodSandboxStatsRequest{PodSandboxId: pod})
			return err
		}},
		{"ListPodSandboxStats", func(ctx context.Context) error {
			response, err := r.ListPodSandboxStats(ctx, &runtime.ListPodSandboxStatsRequest{
				Filter: &runtime.PodSandboxStatsFilter{Id: pod},
			})
			wantEqual(t, "number of sandbox stats", len(response.GetStats()), 1)
			return err
		}},
		{"StopContainer", func(ctx context.Context) error {
			_, err := r.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: id})
			return err
		}},
		{"RemoveContainer", func(ctx context.Context) error {
			_, err := r.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: id})
			wantEqual(t, "number of containers left", len(p.containers(t)), 0)
			return err
		}},
		{"StopPodSandbox", func(ctx context.Context) error {
			_, err := r.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: pod})
			return err
		}},
		{"RemovePodSandbox", func(ctx context.Context) error {
			_, err := r.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: pod})
			wantEqual(t, "number of sandboxes left", len(podsOf(t, p.config)), 0)
			return err
		}},
	} {
		if err := call.call(timeout(t)); err != nil {
			t.Errorf("%s: %v", call.name, err)
		}
	}
}

// A prefix of several ids is refused by every call, also by those to which an unknown id is no error.
func TestAnAmbiguousIDIsRefused(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	count := map[string]int{}
	var prefix string
	for i := 0; prefix == ""; i++ { // ids are random: after 17 two begin alike
		c := p.create(t, strings.Repeat("x", i+1), "sleep 1000")
		if count[c.id[:1]]++; count[c.id[:1]] > 1 {
			prefix = c.id[:1]
		}
	}
	r := shared.Runtime
	for name, call := range map[string]func(ctx context.Context) error{
		"ContainerStatus": func(ctx context.Context) error {
			_, err := r.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: prefix})
			return err
		},
		"StartContainer": func(ctx context.Context) error {
			_, err := r.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: prefix})
			return err
		},
		"StopContainer": func(ctx context.Context) error {
			_, err := r.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: prefix})
			return err
		},
		"RemoveContainer": func(ctx context.Context) error {
			_, err := r.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: prefix})
			return err
		},
		"ListContainers": func(ctx context.Context) error {
			_, err := r.ListContainers(ctx, &runtime.ListContainersRequest{Filter: &runtime.ContainerFilter{Id: prefix}})
			return err
		},
		"ListContainerStats": func(ctx context.Context) error {
			_, err := r.ListContainerStats(ctx, &runtime.ListContainerStatsRequest{
				Filter: &runtime.ContainerStatsFilter{Id: prefix},
			})
			return err
		},
	} {
		if err := call(timeout(t)); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s by an ambiguous id: %v", name, err)
		}
	}
	if n := len(p.containers(t)); n < 2 {
		t.Errorf("%d containers are left", n)
	}
}
