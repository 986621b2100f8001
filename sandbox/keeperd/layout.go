package keeperd

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// layout is the keeper's directory:
//
//	lock, keeper.sock
//	ends             how processes ended that the keeper, or its reaper after its death, has reaped (see package reaper)
//	cgroup           the directories of the keeper's own cgroup, one a line, for who removes it after the keeper's end
//	lc/<id>/         libcontainer's state
//	c/<id>/          request.json, process.json, config.json (the OCI spec: hooks look for it), stdin, stdout, stderr,
//	                 frozen.json (see intent)
//	rootfs/<id>.<n>/ where an image volume with mapped owners, or the sandbox's /dev/shm, is mounted, likewise; n is 0, 1, ...
//	rootfs/.cgroup/  where a container's /sys/fs/cgroup is put together on cgroup v1, likewise; one name for all
//	rootfs/<id>/     where the root filesystem is mounted, in the creating thread's mount namespace only. rootfs itself
//	                 is the one mount of the keeper on the host: a private mount, so that those below do not propagate
type layout struct {
	root string
}

func (l layout) libcontainer() string { return filepath.Join(l.root, "lc") }
func (l layout) libcontainerState(id string) string {
	return filepath.Join(l.libcontainer(), id, "state.json")
}
func (l layout) bundle(id string) string     { return filepath.Join(l.root, "c", id) }
func (l layout) rootfs(id string) string     { return filepath.Join(l.root, "rootfs", id) }
func (l layout) execFIFO(id string) string   { return filepath.Join(l.root, "lc", id, "exec.fifo") }
func (l layout) cgroupTree() string          { return filepath.Join(l.root, cgroupTreeName) }
func (l layout) cgroupFile() string          { return filepath.Join(l.root, "cgroup") }
func (l layout) fifo(id, name string) string { return filepath.Join(l.bundle(id), name) }

// cgroupTreeName is where a container's tree of cgroup v1 is mounted, of each in a mount namespace of its own.
const cgroupTreeName = "rootfs/.cgroup"

// claimTimeout is how long a keeper waits for one that is about to exit.
const claimTimeout = 3 * time.Second

// claim makes the directory and takes its lock, which the returned file holds.
func (l layout) claim() (*os.File, error) {
	for _, dir := range []string{"", "lc", "c", "rootfs", cgroupTreeName} {
		if err := os.MkdirAll(filepath.Join(l.root, dir), 0o711); err != nil {
			return nil, fmt.Errorf("make state directory: %w", err)
		}
	}
	path := filepath.Join(l.root, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	for end := time.Now().Add(claimTimeout); errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another keeper has %s", l.root)
		}
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	return f, nil
}

// seclude makes rootfs a private mount, unless a keeper of before did.
func (l layout) seclude() error {
	dir := filepath.Join(l.root, "rootfs")
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err == nil {
		return nil // EINVAL: not a mount point yet
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("make %s a mount: %w", dir, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w", dir, err)
	}
	return nil
}

// release undoes what claim and seclude put on the host, at a clean end.
func (l layout) release() error {
	_ = os.Remove(filepath.Join(l.root, "keeper.sock"))
	_ = os.Remove(keeper.EndsFile(filepath.Dir(l.root)))
	if err := unix.Unmount(filepath.Join(l.root, "rootfs"), unix.MNT_DETACH); err != nil && err != unix.EINVAL {
		return fmt.Errorf("unmount %s: %w", filepath.Join(l.root, "rootfs"), err)
	}
	return nil
}

// record is request.json: what the keeper was asked for, on disk before it does anything. Spec is left out of Start,
// it is in config.json.
type record struct {
	Version int                    `json:"version"`
	Start   *keeper.StartRequest   `json:"start,omitempty"`
	PodInit *keeper.PodInitRequest `json:"podInit,omitempty"`
}

const recordVersion = 1

func (r *record) dir() string {
	if r.Start != nil {
		return r.Start.Dir
	}
	return r.PodInit.Dir
}

// writeRecord makes the bundle directory with request.json.
func (l layout) writeRecord(id string, r record) error {
	r.Version = recordVersion
	if err := os.Mkdir(l.bundle(id), 0o711); err != nil {
		return fmt.Errorf("make bundle: %w", err)
	}
	return writeJSON(filepath.Join(l.bundle(id), "request.json"), r)
}

func (l layout) readRecord(id string) (*record, error) {
	var r record
	if err := readJSON(filepath.Join(l.bundle(id), "request.json"), &r); err != nil {
		return nil, err
	}
	if r.Version != recordVersion || (r.Start == nil) == (r.PodInit == nil) {
		return nil, fmt.Errorf("read record of %s: version %d", id, r.Version)
	}
	return &r, nil
}

// writeSpec writes the bundle's config.json and, for exec to read quickly, process.json.
func (l layout) writeSpec(id string, spec *specs.Spec) error {
	if err := writeJSON(filepath.Join(l.bundle(id), "config.json"), spec); err != nil {
		return err
	}
	return writeJSON(filepath.Join(l.bundle(id), "process.json"), spec.Process)
}

// readSpec reads config.json; the error is os.ErrNotExist when the start did not come that far.
func (l layout) readSpec(id string) (*specs.Spec, error) {
	var spec specs.Spec
	err := readJSON(filepath.Join(l.bundle(id), "config.json"), &spec)
	return &spec, err
}

// readProcess reads process.json.
func (l layout) readProcess(id string) (*specs.Process, error) {
	var p specs.Process
	err := readJSON(filepath.Join(l.bundle(id), "process.json"), &p)
	return &p, err
}

// ids lists the bundles.
func (l layout) ids() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(l.root, "c"))
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if checkID(e.Name()) == nil {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

func (l layout) mountPoint(id string, n int) string { return l.rootfs(id) + "." + strconv.Itoa(n) }

// makeMountPoint makes one more directory to mount something at, beside the root filesystem of a container.
func (l layout) makeMountPoint(id string) (string, error) {
	for n := 0; ; n++ {
		dir := l.mountPoint(id, n)
		if err := os.Mkdir(dir, 0o711); !os.IsExist(err) {
			return dir, err
		}
	}
}

// removeMountPoints does not list the directory, which has one or two entries for each container of the node. The last
// goes first, and what cannot be removed ends it: those that are left are then found again.
func (l layout) removeMountPoints(id string) (err error) {
	n := 0
	for exists(l.mountPoint(id, n)) {
		n++
	}
	for n--; n >= 0 && err == nil; n-- {
		err = os.Remove(l.mountPoint(id, n))
	}
	return err
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// removeFiles removes all that the layout has of a container.
func (l layout) removeFiles(id string) error {
	err := os.Remove(l.rootfs(id))
	if os.IsNotExist(err) {
		err = nil
	}
	err = errors.Join(err, l.removeMountPoints(id))
	// request.json goes last: while it is there the rest can be found again.
	dir := l.bundle(id)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.Name() != "request.json" {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	if err != nil {
		return fmt.Errorf("remove bundle: %w", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove bundle: %w", err)
	}
	return nil
}

// checkID accepts what can be a file name of ours; the contract is 64 hexadecimal digits.
func checkID(id string) error {
	ok := id != "" && len(id) <= 128 && id[0] != '.' && strings.IndexFunc(id, func(r rune) bool {
		return !(r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.ContainsRune("._-", r))
	}) < 0
	if !ok {
		return keeper.Errorf(keeper.KindInvalid, "id %q: expected letters, digits, '.', '_', '-'", id)
	}
	return nil
}

func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return nil
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
