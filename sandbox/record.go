package sandbox

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The files below <root>/sandboxes. This file is their only writer, but for status.json, which is the keeper's.
//
//	<id>/sandbox.json
//	<id>/hostname, hosts, resolv.conf      mounted into the containers
//	<id>/containers/<cid>/container.json
//	<id>/containers/<cid>/status.json      written by the keeper
const (
	sandboxesDir    = "sandboxes"
	containersDir   = "containers"
	sandboxRecord   = "sandbox.json"
	containerRecord = "container.json"
	recordVersion   = 1
)

// sandboxRecordV1 is what is persisted of a sandbox.
type sandboxRecordV1 struct {
	Version int       `json:"version"`
	BootID  string    `json:"bootID"`
	ID      string    `json:"id"`
	Handler string    `json:"handler,omitempty"`
	Created time.Time `json:"created"`
	// Ready is set when the sandbox is complete; a record without it is a sandbox that was never given to anybody.
	Ready bool `json:"ready,omitempty"`
	// Stopped is set when a stop begins, before anything is undone.
	Stopped      bool            `json:"stopped,omitempty"`
	IPs          []string        `json:"ips,omitempty"`
	NetNS        string          `json:"netns,omitempty"`
	CgroupParent string          `json:"cgroupParent"`
	SELinuxLevel string          `json:"selinuxLevel,omitempty"`
	Config       json.RawMessage `json:"config"`
	// Overhead and Resources are those of the last update, or the configuration's.
	Overhead  json.RawMessage `json:"overhead,omitempty"`
	Resources json.RawMessage `json:"resources,omitempty"`
}

// resources reads the messages of the same names; nil stands for what is not there.
func (rec *sandboxRecordV1) resources() (overhead, resources *runtime.LinuxContainerResources, err error) {
	if overhead, err = decodeResources(rec.Overhead); err != nil {
		return nil, nil, err
	}
	resources, err = decodeResources(rec.Resources)
	return overhead, resources, err
}

// containerRecordV1 is what is persisted of a container, beside what the keeper writes about its process.
type containerRecordV1 struct {
	Version   int       `json:"version"`
	BootID    string    `json:"bootID"`
	ID        string    `json:"id"`
	SandboxID string    `json:"sandboxID"`
	Created   time.Time `json:"created"`
	// Complete is set when the container was created; a record without it is one that was never given to anybody.
	Complete   bool            `json:"complete,omitempty"`
	ImageID    string          `json:"imageID"`
	ImageRef   string          `json:"imageRef"`
	StopSignal runtime.Signal  `json:"stopSignal"`
	CgroupPath string          `json:"cgroupPath"`
	Config     json.RawMessage `json:"config"`
	// VolumeRefs are the images of volumes, as the configuration names them, by digest.
	VolumeRefs map[string]string `json:"volumeRefs,omitempty"`
	// Resources are the limits in force after updates.
	Resources json.RawMessage `json:"resources,omitempty"`
	// StartFailed and StartError tell of a start that failed, also one that the keeper never heard of.
	StartFailed time.Time `json:"startFailed,omitzero"`
	StartError  string    `json:"startError,omitempty"`
}

// writeRecord writes v as <dir>/<name> by way of a temporary file and a rename, so that a reader sees the old or the
// new content whole. Nothing is synced: a record must survive a killed daemon, not a power cut, and recovery takes a
// torn one for an unreadable one.
func writeRecord(dir, name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	tmp := filepath.Join(dir, "."+name+".tmp")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		_ = os.Remove(tmp) // a full disk must not leave half a file
		return fmt.Errorf("write record: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}

// readRecord reads <dir>/<name> into v.
func readRecord(dir, name string, v any) error {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return fmt.Errorf("read record: %w", err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read record %s: %w", filepath.Join(dir, name), err)
	}
	return nil
}

// encodeMessage gives a CRI message as JSON; nil gives null.
func encodeMessage(m proto.Message) (json.RawMessage, error) {
	if !m.ProtoReflect().IsValid() {
		return json.RawMessage("null"), nil
	}
	b, err := protojson.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return b, nil
}

// decodeMessage reads a CRI message from JSON. Fields of a later version are passed over.
func decodeMessage(b json.RawMessage, m proto.Message) error {
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, m); err != nil {
		return fmt.Errorf("decode %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return nil
}

// loadSandboxRecord reads a sandbox's record and the configuration in it.
func loadSandboxRecord(dir string) (*sandboxRecordV1, *runtime.PodSandboxConfig, error) {
	var rec sandboxRecordV1
	if err := readRecord(dir, sandboxRecord, &rec); err != nil {
		return nil, nil, err
	}
	if rec.Version != recordVersion {
		return nil, nil, fmt.Errorf("record %s: version %d, expected %d", filepath.Join(dir, sandboxRecord), rec.Version,
			recordVersion)
	}
	config := &runtime.PodSandboxConfig{}
	if err := decodeMessage(rec.Config, config); err != nil {
		return nil, nil, err
	}
	if config.GetMetadata() == nil {
		return nil, nil, fmt.Errorf("record %s: no metadata", filepath.Join(dir, sandboxRecord))
	}
	if _, _, err := rec.resources(); err != nil {
		return nil, nil, err
	}
	return &rec, config, nil
}

// loadContainerRecord reads a container's record and the messages in it.
func loadContainerRecord(
	dir string,
) (*containerRecordV1, *runtime.ContainerConfig, *runtime.LinuxContainerResources, error) {
	var rec containerRecordV1
	if err := readRecord(dir, containerRecord, &rec); err != nil {
		return nil, nil, nil, err
	}
	if rec.Version != recordVersion {
		return nil, nil, nil, fmt.Errorf("record %s: version %d, expected %d", filepath.Join(dir, containerRecord),
			rec.Version, recordVersion)
	}
	config := &runtime.ContainerConfig{}
	if err := decodeMessage(rec.Config, config); err != nil {
		return nil, nil, nil, err
	}
	if config.GetMetadata() == nil {
		return nil, nil, nil, fmt.Errorf("record %s: no metadata", filepath.Join(dir, containerRecord))
	}
	resources, err := decodeResources(rec.Resources)
	if err != nil {
		return nil, nil, nil, err
	}
	return &rec, config, resources, nil
}

// decodeResources reads resources; nil for those that are not there.
func decodeResources(b json.RawMessage) (*runtime.LinuxContainerResources, error) {
	if len(b) == 0 || string(b) == "null" {
		return nil, nil
	}
	resources := &runtime.LinuxContainerResources{}
	if err := decodeMessage(b, resources); err != nil {
		return nil, err
	}
	return resources, nil
}
