package keeper

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// StatusFile is the name of the file, in a container's record directory, that tells of its process. Its only writer
// is the keeper.
const StatusFile = "status.json"

// statusVersion is the version of the file's format.
const statusVersion = 1

// Status tells of a container's process. It is in status.json before the keeper tells anybody of an exit.
type Status struct {
	Version int `json:"version"`
	// PID is the process id on the host; 0 when the start failed.
	PID int `json:"pid"`
	// StartTime is field 22 of /proc/<pid>/stat (clock ticks since boot): with PID and BootID it names one process.
	StartTime uint64    `json:"startTime,omitempty"`
	Started   time.Time `json:"started,omitzero"`
	// Finished is zero while the process lives.
	Finished time.Time `json:"finished,omitzero"`
	// ExitCode is the code, 128+n for signal n, 128 for a start that failed, 255 when nobody could learn it.
	ExitCode int32 `json:"exitCode"`
	// OOMKilled says that the kernel killed a process of the container because its cgroup was out of memory.
	OOMKilled bool `json:"oomKilled,omitempty"`
	// Error is why a start failed.
	Error string       `json:"error,omitempty"`
	User  ResolvedUser `json:"user"`
	// BootID is /proc/sys/kernel/random/boot_id at the time of writing. A status of another boot without Finished
	// means exited, 255.
	BootID string `json:"bootID"`
}

// Exited reports whether the process is gone.
func (s *Status) Exited() bool { return !s.Finished.IsZero() }

// ReadStatus reads status.json in dir. The error satisfies os.IsNotExist when there was never a start.
func ReadStatus(dir string) (*Status, error) {
	b, err := os.ReadFile(filepath.Join(dir, StatusFile))
	if err != nil {
		return nil, err
	}
	var s Status
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, StatusFile), err)
	}
	if s.Version != statusVersion {
		return nil, fmt.Errorf("read %s: version %d, expected %d", filepath.Join(dir, StatusFile), s.Version, statusVersion)
	}
	return &s, nil
}

// WriteStatus writes status.json in dir by way of a temporary file and a rename. It does not sync: the record must
// survive killed programs, not a power cut (pods die with the node).
func WriteStatus(dir string, s *Status) error {
	s.Version = statusVersion
	if s.BootID == "" {
		s.BootID = BootID()
	}
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode status: %w", err)
	}
	tmp := filepath.Join(dir, "."+StatusFile+".tmp")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, StatusFile)); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	return nil
}

// BootID returns the id of this boot of the kernel, or "" where /proc does not tell.
func BootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
