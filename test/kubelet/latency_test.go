//go:build e2e

package kubelet

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestPodStartTime measures twenty pods, one after the other: from the pod's file to Running in the kubelet's list, and
// what of it the runtime takes, from the request for the sandbox to the start of the container. It prints and does not
// judge: times depend on the machine.
func TestPodStartTime(t *testing.T) {
	var seen, runtimes []time.Duration
	for i := range 20 {
		began := time.Now()
		p := startOn(t, shared, Manifest{Name: fmt.Sprintf("timed-%d", i), Spec: `
terminationGracePeriodSeconds: 0
containers:
- {name: main, image: BUSYBOX, command: [sleep, inf]}`})
		seen = append(seen, waitRunning(t, p).Sub(began))
		runtimes = append(runtimes, runtimePart(t, p))
		p.deleteNow(t)
	}
	slices.Sort(seen)
	slices.Sort(runtimes)
	for name, times := range map[string][]time.Duration{
		"file to Running in the kubelet's list": seen, "sandbox's record to the container's start": runtimes,
	} {
		fmt.Printf("pod start, %s: p50 %v, p90 %v, most %v\n", name, times[10].Round(time.Millisecond),
			times[18].Round(time.Millisecond), times[19].Round(time.Millisecond))
	}
}

// waitRunning asks for the list of pods again and again and says when the pod runs.
func waitRunning(t *testing.T, p testPod) time.Time {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		b, err := shared.Get(ctx, "/pods")
		if err != nil {
			t.Fatal(err)
		}
		var list struct{ Items []podItem }
		if err := json.Unmarshal(b, &list); err != nil {
			t.Fatal(err)
		}
		for _, item := range list.Items {
			if item.Metadata.Name == p.Name && item.Status.Phase == "Running" {
				return time.Now()
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// runtimePart is the time between the record of the pod's sandbox and the start of its container.
func runtimePart(t *testing.T, p testPod) time.Duration {
	t.Helper()
	c := containersOf(t, gantry, p)
	if len(c) != 1 {
		t.Fatalf("the pod has %d containers", len(c))
	}
	status, err := gantry.Runtime.ContainerStatus(timeout(t), &runtime.ContainerStatusRequest{ContainerId: c[0].Id})
	if err != nil {
		t.Fatal(err)
	}
	sandbox, err := gantry.Runtime.PodSandboxStatus(timeout(t), &runtime.PodSandboxStatusRequest{PodSandboxId: c[0].PodSandboxId})
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(status.Status.StartedAt - sandbox.Status.CreatedAt)
}
