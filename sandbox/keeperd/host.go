package keeperd

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeperd/stage"
)

// oomScore is as low as root may go without being exempt: the kernel must kill every container before the keeper.
const oomScore = -999

// host is what the keeper is to the node: its cgroup, and what it may give to containers.
type host struct {
	// cgroups are the directories of the keeper's own cgroup.
	cgroups []string
	// minOOMScore is the lowest oom_score_adj that a child can be given.
	minOOMScore int
	// caps are the capabilities that the keeper itself has: nobody can get another.
	caps map[string]bool
	// raise says that hard limits can be raised.
	raise bool
	// memlock is RLIMIT_MEMLOCK as the keeper was started with it. The library for device rules of version 2 removes that
	// limit from the whole process at the first container, and every later child would inherit that.
	memlock unix.Rlimit
	// pokeUntil is how long poke goes on, in Unix nanoseconds; 0 when it does not.
	pokeUntil atomic.Int64
	// moving is held while the keeper moves itself; left says that it is out of its own cgroup for good.
	moving sync.Mutex
	left   bool
	// children are the pids that somebody of the keeper waits for.
	children sync.Map
}

// settleIn makes the process what it is to be: subreaper, in a cgroup of its own, last to be killed for memory.
func (k *Keeper) settleIn() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	unix.Umask(0o022)
	// What libcontainer re-executes inherits this one setting: its Go part is single-minded, and a P per CPU costs.
	_ = os.Setenv("GOMAXPROCS", "2")
	if err := k.layout.seclude(); err != nil {
		return err
	}
	k.host.minOOMScore = lowerOOMScore(oomScore)
	if k.host.minOOMScore > oomScore {
		k.log.printf("oom_score_adj cannot be lowered below %d: containers are clamped to that", k.host.minOOMScore)
	}
	k.host.caps = ownCapabilities()
	k.host.raise = k.host.caps["CAP_SYS_RESOURCE"]
	if err := k.enterScope(); err != nil {
		k.log.printf("stays in the cgroup of who started it: %v", err)
	}
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &k.host.memlock); err != nil {
		return fmt.Errorf("read RLIMIT_MEMLOCK: %w", err)
	}
	k.host.cgroups = k.moveToOwnCgroup()
	return os.WriteFile(k.layout.cgroupFile(), []byte(strings.Join(k.host.cgroups, "\n")+"\n"), 0o644)
}

// lowerOOMScore sets oom_score_adj and returns the lowest value that is to be had.
func lowerOOMScore(want int) int {
	const file = "/proc/self/oom_score_adj"
	if err := os.WriteFile(file, []byte(strconv.Itoa(want)), 0o644); err == nil {
		return -1000
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}

func ownCapabilities() map[string]bool {
	have := map[string]bool{}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return have
	}
	permitted := uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted)
	for _, c := range capability.ListKnown() {
		if permitted&(1<<uint(c)) != 0 {
			have[capabilityName(c)] = true
		}
	}
	return have
}

// capabilityName returns the name as the OCI spec has it.
func capabilityName(c capability.Cap) string { return "CAP_" + strings.ToUpper(c.String()) }

// moveToOwnCgroup moves the process to a cgroup of its own below the one it was started in, in every hierarchy, so
// that neither a pod's nor the daemon's limits and kills hit it. Best effort: a read-only hierarchy is left alone.
func (k *Keeper) moveToOwnCgroup() (dirs []string) {
	sum := sha256.Sum256([]byte(k.config.StateDir))
	name := "gantry-keeper-" + hex.EncodeToString(sum[:6])
	for _, parent := range ownCgroups() {
		dir := parent
		if filepath.Base(parent) != name {
			dir = filepath.Join(parent, name)
		}
		if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
			k.log.printf("make own cgroup: %v", err)
			continue
		}
		// A new cpuset of v1 is empty and takes no task.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if b, err := os.ReadFile(filepath.Join(dir, file)); err == nil && len(strings.TrimSpace(string(b))) == 0 {
				if b, err = os.ReadFile(filepath.Join(parent, file)); err == nil {
					_ = os.WriteFile(filepath.Join(dir, file), b, 0o644)
				}
			}
		}
		if err := moveTo(dir); err != nil {
			k.log.printf("enter own cgroup: %v", err)
			_ = os.Remove(dir)
			continue
		}
		dirs = append(dirs, dir)
	}
	return dirs
}

// ownCgroups returns the directory of the process's cgroup in each hierarchy that is mounted.
func ownCgroups() (dirs []string) {
	paths, err := cgroups.ParseCgroupFile("/proc/self/cgroup")
	if err != nil {
		return nil
	}
	if cgroups.IsCgroup2UnifiedMode() {
		return []string{filepath.Join("/sys/fs/cgroup", paths[""])}
	}
	mounts, err := cgroups.GetCgroupMounts(true)
	if err != nil {
		return nil
	}
	for _, m := range mounts {
		for _, subsystem := range m.Subsystems {
			path, ok := paths[subsystem]
			if !ok {
				continue
			}
			rel, err := filepath.Rel(m.Root, path)
			if err == nil && !strings.HasPrefix(rel, "..") {
				dirs = append(dirs, filepath.Join(m.Mountpoint, rel))
			}
			break
		}
	}
	return dirs
}

// leavePatience is how long the end of the process waits for children that are dying in its cgroup: the init of a start
// that was given up.
const leavePatience = 2 * time.Second

// leave moves the process back to where it came from and removes its cgroup, at a clean end.
func (h *host) leave() error {
	h.moving.Lock()
	defer h.moving.Unlock()
	h.left = true
	for _, dir := range h.cgroups {
		_ = vacate(dir) // if it fails so does the removal
	}
	var errs []error
	end := time.Now().Add(leavePatience)
	for _, dir := range h.cgroups {
		err := os.Remove(dir)
		for errors.Is(err, unix.EBUSY) && time.Now().Before(end) {
			time.Sleep(5 * time.Millisecond)
			err = os.Remove(dir)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// What a move to a cgroup costs: the first after some quiet waits about 12 ms for an RCU grace period, in which the
// kernel makes forks and exits of all processes heed moves; those within 10 ms of another do not wait.
const (
	// pokeInterval keeps moves from waiting.
	pokeInterval = 7 * time.Millisecond
	// pokeFor is how long after a request another one is likely: a pod's containers follow each other.
	pokeFor = time.Second
)

// poke makes the moves to cgroups that the request needs cheap, while it is still being prepared, and those of requests
// that follow soon: it moves the keeper to the cgroup that it is in.
func (h *host) poke() {
	if len(h.cgroups) == 0 || h.pokeUntil.Swap(time.Now().Add(pokeFor).UnixNano()) != 0 {
		return
	}
	dir := h.cgroups[len(h.cgroups)-1]
	go func() {
		for h.stayIn(dir) {
			time.Sleep(pokeInterval)
			until := h.pokeUntil.Load()
			if time.Now().UnixNano() > until && h.pokeUntil.CompareAndSwap(until, 0) {
				return
			}
		}
	}()
}

// stayIn moves the keeper to the cgroup that it is in, until it has left.
func (h *host) stayIn(dir string) bool {
	h.moving.Lock()
	defer h.moving.Unlock()
	if !h.left {
		_ = cgroups.WriteCgroupProc(dir, os.Getpid())
	}
	return !h.left
}

// clamp takes from the process what the keeper cannot give: it is better to run with what the node has than not at all,
// and a rootless node is no other.
func (k *Keeper) clamp(p *specs.Process) {
	score := 0
	if p.OOMScoreAdj != nil {
		score = *p.OOMScoreAdj
	}
	if score < k.host.minOOMScore {
		k.log.once("oom_score_adj %d cannot be had, %d is the least", score, k.host.minOOMScore)
		score = k.host.minOOMScore
	}
	// Always set: else the container would inherit the keeper's.
	p.OOMScoreAdj = &score
	if c := p.Capabilities; c != nil {
		for _, set := range []*[]string{&c.Bounding, &c.Effective, &c.Inheritable, &c.Permitted, &c.Ambient} {
			*set = k.clampCapabilities(*set)
		}
	}
	const memlock = "RLIMIT_MEMLOCK"
	if !slices.ContainsFunc(p.Rlimits, func(r specs.POSIXRlimit) bool { return r.Type == memlock }) {
		p.Rlimits = append(p.Rlimits, specs.POSIXRlimit{Type: memlock, Soft: k.host.memlock.Cur, Hard: k.host.memlock.Max})
	}
	if k.host.raise {
		return
	}
	for i := range p.Rlimits {
		k.clampRlimit(&p.Rlimits[i])
	}
}

func (k *Keeper) clampCapabilities(set []string) []string {
	kept := make([]string, 0, len(set))
	for _, name := range set {
		if !k.host.caps[name] {
			k.log.once("capability %s cannot be given: the keeper does not have it", name)
			continue
		}
		kept = append(kept, name)
	}
	return kept
}

func (k *Keeper) clampRlimit(r *specs.POSIXRlimit) {
	resource, ok := stage.Rlimits[r.Type]
	if !ok {
		return
	}
	var own unix.Rlimit
	if err := unix.Getrlimit(resource, &own); err != nil || r.Hard <= own.Max {
		return
	}
	k.log.once("%s %d cannot be had, %d is the most", r.Type, r.Hard, own.Max)
	r.Hard, r.Soft = own.Max, min(r.Soft, own.Max)
}
