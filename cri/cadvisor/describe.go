package cadvisor

import (
	"encoding/json"
	"maps"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/distribution/reference"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
)

const (
	// kindLabel tells sandboxes from containers: cAdvisor reads the network of what has the value "sandbox" only.
	kindLabel = "io.cri-containerd.kind"
	// sandboxImage stands in the place of a pause container's image, which Gantry does not have. It is not empty since
	// queries of the metrics leave out what has no image, to leave out cgroups that are not containers.
	sandboxImage = "gantry-sandbox"
	// specType is what containerd calls an OCI spec in JSON.
	specType = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
)

func describeContainer(c *sandbox.ContainerStatus) *containers.Container {
	d := &containers.Container{
		ID:     c.ID,
		Labels: labels(c.Config.GetLabels(), "container"),
		Image:  imageName(c),
		Spec:   specOf(c.Config.GetEnvs()),
	}
	if !c.Created.IsZero() {
		d.CreatedAt = timestamppb.New(c.Created)
	}
	return d
}

func describeSandbox(s *sandbox.SandboxStatus) *containers.Container {
	d := &containers.Container{
		ID:     s.ID,
		Labels: labels(s.Config.GetLabels(), "sandbox"),
		Image:  sandboxImage,
		Spec:   specOf(nil),
	}
	if !s.Created.IsZero() {
		d.CreatedAt = timestamppb.New(s.Created)
	}
	return d
}

// labels are the kubelet's, which name the pod, and the kind.
func labels(given map[string]string, kind string) map[string]string {
	all := make(map[string]string, len(given)+1)
	maps.Copy(all, given)
	all[kindLabel] = kind
	return all
}

// imageName is the image as the pod names it, in full. The kubelet gives the id in the image's place and the name
// beside it; of a client that gives neither name nor tag the reference is all there is.
func imageName(c *sandbox.ContainerStatus) string {
	if named, err := reference.ParseDockerRef(c.Config.GetImage().GetUserSpecifiedImage()); err == nil {
		return named.String()
	}
	return c.ImageRef
}

// specOf is as much of an OCI spec as cAdvisor reads: the environment. It must be there, and process in it: cAdvisor
// does not check.
func specOf(envs []*runtime.KeyValue) *anypb.Any {
	process := &specs.Process{}
	for _, e := range envs {
		process.Env = append(process.Env, e.GetKey()+"="+string(e.GetValue()))
	}
	value, err := json.Marshal(&specs.Spec{Version: specs.Version, Process: process})
	if err != nil {
		value = []byte(`{"process":{}}`) // strings always marshal
	}
	return &anypb.Any{TypeUrl: specType, Value: value}
}

// containerProcess is nil for a container whose process has not been started.
func containerProcess(c *sandbox.ContainerStatus) *task.Process {
	switch c.State {
	case sandbox.ContainerRunning:
		return runningProcess(c.ID, c.PID)
	case sandbox.ContainerExited, sandbox.ContainerRemoving:
		p := &task.Process{ContainerID: c.ID, ID: c.ID, Status: task.Status_STOPPED, ExitStatus: uint32(c.ExitCode)}
		if !c.Finished.IsZero() {
			p.ExitedAt = timestamppb.New(c.Finished)
		}
		return p
	}
	return nil
}

func runningProcess(id string, pid int) *task.Process {
	return &task.Process{ContainerID: id, ID: id, Pid: uint32(pid), Status: task.Status_RUNNING}
}
