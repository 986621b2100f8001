package kubelet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pod is a static pod of a kubelet.
type Pod struct {
	// Name is the pod's name as the kubelet knows it, with the node's name at its end.
	Name    string
	kubelet *Kubelet
	file    string
}

// Namespace is the namespace of all static pods here.
const Namespace = "default"

// Manifest is what Create writes.
type Manifest struct {
	// Name is the pod's name without that of the node.
	Name string
	// Spec is the pod's spec in YAML, starting at the left margin.
	Spec string
	// Annotations and Labels of the pod.
	Annotations, Labels map[string]string
}

// Create writes the file of a static pod. The kubelet sees it at once.
func (k *Kubelet) Create(m Manifest) (*Pod, error) {
	metadata, err := json.Marshal(map[string]any{
		"name": m.Name, "namespace": Namespace, "annotations": m.Annotations, "labels": m.Labels,
	})
	if err != nil {
		return nil, err
	}
	spec := strings.ReplaceAll("\n"+strings.TrimSpace(m.Spec), "\n", "\n  ")
	text := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: %s\nspec:%s\n", metadata, spec)
	p := &Pod{Name: m.Name + "-node", kubelet: k, file: filepath.Join(k.pods(), m.Name+".yaml")}
	temp := filepath.Join(k.Dir, m.Name+".yaml") // not seen half written
	if err := os.WriteFile(temp, []byte(text), 0o644); err != nil {
		return nil, err
	}
	return p, os.Rename(temp, p.file)
}

// Status is a pod's status as /pods has it; what the tests do not look at is left out.
type Status struct {
	Phase, Reason, Message, PodIP string
	StartTime                     time.Time
	Conditions                    []Condition
	InitContainerStatuses         []ContainerStatus
	ContainerStatuses             []ContainerStatus
}

// Condition is one of a pod's conditions.
type Condition struct {
	Type, Status, Reason, Message string
	LastTransitionTime            time.Time
}

// ContainerStatus is the status of one of its containers.
type ContainerStatus struct {
	Name, ContainerID, Image, ImageID string
	Ready                             bool
	Started                           *bool
	RestartCount                      int
	State, LastState                  ContainerState
	Resources                         struct{ Limits, Requests map[string]string }
	VolumeMounts                      []VolumeMountStatus
	User                              struct {
		Linux struct {
			UID, GID           int64
			SupplementalGroups []int64
		}
	}
}

// VolumeMountStatus is the status of a mounted volume.
type VolumeMountStatus struct {
	Name, MountPath, RecursiveReadOnly string
	ReadOnly                           bool
}

// ContainerState has one field set, or none while nothing is known.
type ContainerState struct {
	Waiting    *struct{ Reason, Message string }
	Running    *struct{ StartedAt time.Time }
	Terminated *Terminated
}

// Terminated is the state of a container that has ended.
type Terminated struct {
	ExitCode, Signal      int
	Reason, Message       string
	StartedAt, FinishedAt time.Time
	ContainerID           string
}

// Container is the status of a container or init container, the zero one if there is none yet.
func (s *Status) Container(name string) ContainerStatus {
	for _, c := range append(s.ContainerStatuses, s.InitContainerStatuses...) {
		if c.Name == name {
			return c
		}
	}
	return ContainerStatus{}
}

// Ready reports whether the pod's Ready condition is true.
func (s *Status) Ready() bool { return s.Condition("Ready").Status == "True" }

// Condition is the condition of a type, the zero one if there is none.
func (s *Status) Condition(kind string) Condition {
	for _, c := range s.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return Condition{}
}

// podItem is an element of /pods.
type podItem struct {
	Metadata struct{ Name, Namespace, UID string }
	Status   Status
}

// listAge is how old a list of pods may be that is used again: the tests that wait at the same time ask together.
const listAge = 100 * time.Millisecond

func (k *Kubelet) podList(ctx context.Context) ([]podItem, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Since(k.when) < listAge {
		return k.list, nil
	}
	b, err := k.Get(ctx, "/pods")
	if err != nil {
		return nil, err
	}
	var list struct{ Items []podItem }
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("read list of pods: %w", err)
	}
	k.list, k.when = list.Items, time.Now()
	return k.list, nil
}

// errNoPod is returned while the kubelet does not know the pod.
var errNoPod = errors.New("the kubelet has no such pod")

// Status is the pod's status.
func (p *Pod) Status(ctx context.Context) (*Status, error) {
	item, err := p.item(ctx)
	if err != nil {
		return nil, err
	}
	return &item.Status, nil
}

// UID is the pod's UID, "" if the kubelet does not know the pod.
func (p *Pod) UID(ctx context.Context) string {
	item, err := p.item(ctx)
	if err != nil {
		return ""
	}
	return item.Metadata.UID
}

func (p *Pod) item(ctx context.Context) (*podItem, error) {
	list, err := p.kubelet.podList(ctx)
	if err != nil {
		return nil, err
	}
	for i := range list {
		if list[i].Metadata.Name == p.Name {
			return &list[i], nil
		}
	}
	return nil, errNoPod
}

// Wait waits until the pod's status is as wanted and returns it. The error says what was waited for and the last status.
func (p *Pod) Wait(ctx context.Context, what string, wanted func(*Status) bool) (*Status, error) {
	for {
		status, err := p.Status(ctx)
		if err == nil && wanted(status) {
			return status, nil
		}
		select {
		case <-ctx.Done():
			last, _ := json.Marshal(status)
			return status, fmt.Errorf("pod %s: wait for %s: %w (%v); last status %s", p.Name, what, ctx.Err(), err, last)
		case <-time.After(listAge):
		}
	}
}

// Delete removes the pod's file and waits until the pod has ended: it leaves the kubelet's list of pods at once, but no
// container of it runs and no sandbox is ready only when all is done.
func (p *Pod) Delete(ctx context.Context) error {
	if err := os.Remove(p.file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for {
		there, err := p.runs(ctx)
		if err == nil && !there {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("pod %s: wait for its end: %w (%v)", p.Name, ctx.Err(), err)
		case <-time.After(listAge):
		}
	}
}

// runs reports whether the kubelet lists the pod or the runtime has a container that runs or a sandbox that is ready.
func (p *Pod) runs(ctx context.Context) (bool, error) {
	if _, err := p.Status(ctx); !errors.Is(err, errNoPod) {
		return true, err
	}
	labels := map[string]string{"io.kubernetes.pod.name": p.Name, "io.kubernetes.pod.namespace": Namespace}
	containers, err := p.kubelet.Runtime.ListContainers(ctx, &runtime.ListContainersRequest{
		Filter: &runtime.ContainerFilter{
			LabelSelector: labels, State: &runtime.ContainerStateValue{State: runtime.ContainerState_CONTAINER_RUNNING},
		},
	})
	if err != nil || len(containers.Containers) > 0 {
		return true, err
	}
	sandboxes, err := p.kubelet.Runtime.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{
		Filter: &runtime.PodSandboxFilter{
			LabelSelector: labels, State: &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_READY},
		},
	})
	return err != nil || len(sandboxes.Items) > 0, err
}
