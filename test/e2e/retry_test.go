//go:build e2e

package e2e

import (
	"context"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestTheSameRequestTwiceAtOnce(t *testing.T) {
	config := podConfig(t, shared, "")
	type answer struct {
		id  string
		err error
	}
	answers := make(chan answer, 4)
	for range cap(answers) {
		go func() {
			response, err := shared.Runtime.RunPodSandbox(t.Context(), &runtime.RunPodSandboxRequest{Config: config})
			answers <- answer{response.GetPodSandboxId(), err}
		}()
	}
	p := runPodOn(t, shared, config)
	for range cap(answers) {
		if a := <-answers; a.err != nil || a.id != p.id {
			t.Errorf("answer is %q, %v; expected %s", a.id, a.err, p.id)
		}
	}
	first, second := p.create(t, "c", "sleep 1000"), p.create(t, "c", "sleep 1000")
	wantEqual(t, "id of the container asked for twice", second.id, first.id)
}

func TestRequestAfterTheClientGaveUp(t *testing.T) {
	config := podConfig(t, shared, "")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	shared.Runtime.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: config})
	p := runPodOn(t, shared, config)
	list, err := shared.Runtime.ListPodSandbox(timeout(t), &runtime.ListPodSandboxRequest{
		Filter: &runtime.PodSandboxFilter{LabelSelector: config.Labels},
	})
	if err != nil || len(list.Items) != 1 || list.Items[0].Id != p.id {
		t.Errorf("sandboxes of the request are %v, %v; expected %s only", list.GetItems(), err, p.id)
	}
}

func TestANewAttemptIsANewSandbox(t *testing.T) {
	first := runPod(t)
	config := podConfig(t, shared, "")
	config.Metadata.Attempt = 1
	second := runPodOn(t, shared, config)
	if first.id == second.id {
		t.Error("attempt 1 has the id of attempt 0")
	}
}
