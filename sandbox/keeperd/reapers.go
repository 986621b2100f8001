package keeperd

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"

	"github.com/gantry-cri/gantry/sandbox/keeperd/reaper"
)

// moveTo moves the process to a cgroup, and its reaper if that can be.
func moveTo(dir string) error {
	if pid := reaper.PID(); pid > 0 {
		_ = cgroups.WriteCgroupProc(dir, pid)
	}
	return cgroups.WriteCgroupProc(dir, os.Getpid())
}

// vacate moves the process and all reapers in a cgroup to the one above it. A reaper of a keeper before this one lives as
// long as what was started in a container and has left its cgroups.
func vacate(dir string) error {
	pids, _ := cgroups.GetPids(dir) // at least the process itself is to be moved
	for _, pid := range pids {
		if isReaper(pid) {
			_ = cgroups.WriteCgroupProc(filepath.Dir(dir), pid)
		}
	}
	return moveTo(filepath.Dir(dir))
}

func isReaper(pid int) bool {
	name, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	return err == nil && strings.TrimSpace(string(name)) == reaper.Name
}

// gatherReapers moves the reapers of keepers that died, which are the parents of what was adopted, to the keeper's
// cgroup. Else systemd would keep the scope of each dead keeper.
func (k *Keeper) gatherReapers() {
	parents := map[int]bool{}
	for _, c := range k.containers { // before there are requests
		if s, err := readStat(c.pid); err == nil && s.startTime == c.startTime {
			parents[s.ppid] = true
		}
	}
	for pid := range parents {
		if !isReaper(pid) {
			continue
		}
		for _, dir := range k.host.cgroups {
			if err := cgroups.WriteCgroupProc(dir, pid); err != nil {
				k.log.printf("move the reaper of a keeper of before: %v", err)
			}
		}
	}
}

// noteEnd notes how a child ended that is about to be reaped: a keeper that is killed before the status is on disk has
// reaped what could tell.
func (k *Keeper) noteEnd(c *container) {
	s, err := readStat(c.pid)
	if err != nil || s.startTime != c.startTime || s.state != 'Z' {
		return
	}
	if err := k.ends.Note(c.pid, c.startTime, s.exitCode); err != nil {
		k.log.once("%v", err)
	}
}
