package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/cni/embedded"
)

// recordVersion is what this program writes. A record of another version is treated like one that cannot be read.
const recordVersion = 1

// holdWait bounds the wait for the plugins of a daemon that was killed in the middle of an Attach.
const holdWait = 10 * time.Second

const (
	recordSuffix = ".json"
	tempSuffix   = ".tmp"
)

// record is everything that the undoing of an attachment needs. The exported fields are persisted as the first line of
// its file; each further line is a result of a plugin.
type record struct {
	Version   int       `json:"version"`
	SandboxID string    `json:"sandboxID"`
	Created   time.Time `json:"created"`
	// BootID is the boot in which NetNS was a namespace.
	BootID  string `json:"bootID"`
	Network string `json:"network"`
	IfName  string `json:"ifName"`
	NetNS   string `json:"netns"`
	// Config is the configuration list as it was used, with every plugin inlined.
	Config         json.RawMessage `json:"config,omitempty"`
	Args           [][2]string     `json:"args,omitempty"`
	CapabilityArgs map[string]any  `json:"capabilityArgs,omitempty"`

	// Embedded is what the sandbox holds of the embedded network; then there is no Config and there are no results.
	Embedded *embedded.Attachment `json:"embedded,omitempty"`

	// result is that of the last plugin whose ADD ended well, nil when there is none. It is persisted too, see resultLog.
	result types.Result
}

// newRecord describes the attachment of a sandbox to a network.
func newRecord(
	sandboxID, netns string, list *libcni.NetworkConfigList, config *runtime.PodSandboxConfig,
) (*record, error) {
	args, err := pluginArgs(sandboxID, config)
	if err != nil {
		return nil, err
	}
	capabilityArgs, err := capabilityArgs(list, config)
	if err != nil {
		return nil, err
	}
	return &record{
		Version: recordVersion, SandboxID: sandboxID, Created: time.Now(), BootID: bootID(), Network: list.Name,
		IfName: ifName, NetNS: netns, Config: list.Bytes, Args: args, CapabilityArgs: capabilityArgs,
	}, nil
}

// newEmbeddedRecord describes the attachment of a sandbox to the embedded network.
func newEmbeddedRecord(a *embedded.Attachment, network, netns string) *record {
	return &record{
		Version: recordVersion, SandboxID: a.SandboxID, Created: time.Now(), BootID: bootID(), Network: network,
		IfName: ifName, NetNS: netns, Embedded: a,
	}
}

// runtimeConf is the record in libcni's words.
func (r *record) runtimeConf(netns string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: r.SandboxID, NetNS: netns, IfName: r.IfName, Args: r.Args, CapabilityArgs: r.CapabilityArgs,
	}
}

// lastNetNS is the namespace of the attachment as far as it can still exist.
func (r *record) lastNetNS() string {
	if r.BootID != bootID() {
		return ""
	}
	return r.NetNS
}

// recordDir is the directory of the records, one file per attachment. A record is never changed: it is there or not.
// Only results are appended to it, by the Attach that made it and holds its lock; so they go when the record goes.
type recordDir struct{ path string }

func openRecordDir(path string) (recordDir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return recordDir{}, err
	}
	d := recordDir{path}
	entries, err := os.ReadDir(path)
	if err != nil {
		return recordDir{}, err
	}
	for _, entry := range entries {
		if strings.HasSuffix(entry.Name(), tempSuffix) { // a write that a kill cut short
			_ = os.Remove(filepath.Join(path, entry.Name()))
		}
	}
	return d, nil
}

func (d recordDir) file(sandboxID string) string {
	return filepath.Join(d.path, sandboxID+recordSuffix)
}

// create writes the record of a new attachment and returns the file, locked. The lock is handed to every plugin that
// runs for the attachment, so that it lasts as long as any of them lives, also when the daemon does not.
//
// Errors: errdefs.ErrAlreadyExists when the sandbox has a record.
func (d recordDir) create(rec *record) (held *os.File, err error) {
	b, err := json.Marshal(rec)
	if err != nil {
		return nil, err
	}
	name := d.file(rec.SandboxID)
	f, err := os.OpenFile(name+tempSuffix, os.O_CREATE|os.O_EXCL|os.O_RDWR|os.O_APPEND, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("attachment of sandbox %s is in the making: %w", rec.SandboxID, errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	if _, err = f.Write(b); err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		// A link, unlike a rename, does not replace the record of an attachment that is still to be undone.
		err = os.Link(f.Name(), name)
	}
	if err == nil {
		return f, nil
	}
	_ = f.Close()
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("sandbox %s was not detached: %w", rec.SandboxID, errdefs.ErrAlreadyExists)
	}
	return nil, err
}

// hold reads and locks the record of a sandbox. It waits while plugins of another call, or of a daemon that was killed,
// still work on the attachment; but only so long, since a plugin may have left a process behind that never ends.
//
// held is nil when there is no record, then err is nil too, or when ctx ended. A record that cannot be read is held and
// told by err.
func (d recordDir) hold(ctx context.Context, sandboxID string) (held *os.File, rec *record, err error) {
	f, err := os.OpenFile(d.file(sandboxID), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open attachment record: %w", err)
	}
	if err := waitLock(ctx, f); err != nil {
		_ = f.Close()
		return nil, nil, fmt.Errorf("wait for plugins of sandbox %s: %w", sandboxID, err)
	}
	var info unix.Stat_t
	if unix.Fstat(int(f.Fd()), &info) == nil && info.Nlink == 0 {
		_ = f.Close() // whom we waited for was another Detach, and it is done
		return nil, nil, nil
	}
	b, err := io.ReadAll(f)
	if err == nil {
		rec, err = parseRecord(b, sandboxID)
	}
	if err != nil {
		return f, nil, fmt.Errorf("read attachment record %s: %w", f.Name(), err)
	}
	return f, rec, nil
}

// waitLock polls, because a blocking flock cannot be interrupted by a context.
func waitLock(ctx context.Context, f *os.File) error {
	deadline := time.Now().Add(holdWait)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || time.Now().After(deadline) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func parseRecord(b []byte, sandboxID string) (*record, error) {
	first, rest, _ := bytes.Cut(b, []byte{'\n'})
	var rec record
	if err := json.Unmarshal(first, &rec); err != nil {
		return nil, err
	}
	if rec.Version != recordVersion {
		return nil, fmt.Errorf("version is %d, expected %d", rec.Version, recordVersion)
	}
	if rec.SandboxID != sandboxID {
		return nil, fmt.Errorf("sandbox is %q, expected %q", rec.SandboxID, sandboxID)
	}
	if rec.Embedded != nil {
		if rec.Embedded.SandboxID != sandboxID {
			return nil, fmt.Errorf("attachment is of sandbox %q, expected %q", rec.Embedded.SandboxID, sandboxID)
		}
		return &rec, nil
	}
	if _, err := libcni.NetworkConfFromBytes(rec.Config); err != nil {
		return nil, err
	}
	rec.result = lastResult(rest)
	return &rec, nil
}

// remove deletes the record; no record is no error.
func (d recordDir) remove(sandboxID string) error {
	err := os.Remove(d.file(sandboxID))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// list returns the ids of all sandboxes that have a record, readable or not.
func (d recordDir) list() ([]string, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, entry := range entries {
		if id, ok := strings.CutSuffix(entry.Name(), recordSuffix); ok && validateID(id) == nil {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// embedded returns the records of the embedded network that can be read. The others are told when they are detached.
func (d recordDir) embedded() ([]*record, error) {
	ids, err := d.list()
	if err != nil {
		return nil, err
	}
	var records []*record
	for _, id := range ids {
		b, err := os.ReadFile(d.file(id))
		if err != nil {
			continue
		}
		if rec, err := parseRecord(b, id); err == nil && rec.Embedded != nil {
			records = append(records, rec)
		}
	}
	return records, nil
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "" // equal to that of any other record written without /proc
	}
	return strings.TrimSpace(string(b))
}
