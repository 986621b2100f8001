// Package checkpoint is what a checkpoint looks like on disk: the archive of a container that the tools of the field
// read (checkpointctl, and other runtimes), and the directory of a pod. It is not how processes are captured, which the
// keeper does, and knows nothing of those that live.
//
// A container is these files, in the archive or in a directory of the pod's that is named after its id:
//
//	checkpoint/        the images of CRIU, its log, and what was outside of the container (keeper.OutsideFile)
//	spec.dump          the OCI spec that it was started with
//	config.dump        who it is
//	status.dump        its status
//	rootfs-diff.tar    what it changed of its image, as a layer
//
// A pod is those directories and pod.json, which is written last: a directory without it is not a checkpoint.
package checkpoint

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Names of the files.
const (
	SpecFile   = "spec.dump"
	ConfigFile = "config.dump"
	StatusFile = "status.dump"
	LayerFile  = "rootfs-diff.tar"
	PodFile    = "pod.json"
)

// Container is who a container is. It is config.dump, whose fields are those of other runtimes.
type Container struct {
	ID           string    `json:"id"`
	Name         string    `json:"name"`
	ImageName    string    `json:"rootfsImageName,omitempty"`
	ImageID      string    `json:"rootfsImage,omitempty"`
	ImageRef     string    `json:"rootfsImageRef,omitempty"`
	Runtime      string    `json:"runtime,omitempty"`
	Created      time.Time `json:"createdTime"`
	Checkpointed time.Time `json:"checkpointedTime"`
	Restored     bool      `json:"restored"`
}

// Status is what the container was. It is status.dump; times are in Unix nanoseconds.
type Status struct {
	CreatedAt  int64  `json:"CreatedAt"`
	StartedAt  int64  `json:"StartedAt"`
	FinishedAt int64  `json:"FinishedAt"`
	ExitCode   int32  `json:"ExitCode"`
	Pid        uint32 `json:"Pid"`
	Reason     string `json:"Reason"`
	Message    string `json:"Message"`
}

// Sandbox names the pod of a container.
type Sandbox struct {
	ID, Name, Namespace, UID string
}

// Describe completes a directory that the keeper and the image store have written to.
func Describe(dir string, c *Container, status *Status, s Sandbox) error {
	if err := annotate(filepath.Join(dir, SpecFile), c, s); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(dir, ConfigFile), c); err != nil {
		return err
	}
	return writeJSON(filepath.Join(dir, StatusFile), status)
}

// annotate puts into the spec the annotations by which the tools find the names of container and pod.
func annotate(path string, c *Container, s Sandbox) error {
	var spec specs.Spec
	if err := readJSON(path, &spec); err != nil {
		return err
	}
	if spec.Annotations == nil {
		spec.Annotations = map[string]string{}
	}
	for key, value := range map[string]string{
		"container-type": "container", "container-name": c.Name, "image-name": c.ImageName, "sandbox-id": s.ID,
		"sandbox-name": s.Name, "sandbox-namespace": s.Namespace, "sandbox-uid": s.UID,
	} {
		spec.Annotations["io.kubernetes.cri."+key] = value
	}
	return writeJSON(path, &spec)
}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	return os.WriteFile(path, append(b, '\n'), 0o600)
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}
