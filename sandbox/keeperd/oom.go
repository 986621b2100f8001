package keeperd

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// oomLedger tells how many processes of a container the kernel killed for memory, also when the cgroup that counted
// them is gone: systemd removes a scope the moment it is empty, which is often before the keeper can read it. On cgroup
// v2 the parent counts for all below it, also for what was removed. What it counted and no sibling did is the
// container's.
type oomLedger struct {
	mu       sync.Mutex
	accounts map[string]*oomAccount // by the directory of the parent
}

// oomAccount is about the containers of one parent cgroup.
type oomAccount struct {
	// settled are the kills that the parent counted for others than live.
	settled uint64
	// live are the directories of the containers that have not ended.
	live map[string]bool
}

// open takes note of a container, before its first process runs or when it is adopted.
func (l *oomLedger) open(dir string) {
	if dir == "" {
		return
	}
	parent := filepath.Dir(dir)
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.accounts[parent]
	if a == nil {
		a = &oomAccount{live: map[string]bool{}}
		if l.accounts == nil {
			l.accounts = map[string]*oomAccount{}
		}
		l.accounts[parent] = a
	}
	counted, complete := a.countLive()
	if complete { // else the end of a sibling is not settled yet, and its kills would be lost
		total, _ := readOOMKills(parent)
		own, _ := readOOMKills(dir)
		a.settled = less(total, counted+own)
	}
	a.live[dir] = true
}

// close returns how many of the container's processes were killed. Only the first call for it counts.
func (l *oomLedger) close(dir string) uint64 {
	parent := filepath.Dir(dir)
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.accounts[parent]
	if a == nil || !a.live[dir] {
		return 0
	}
	own, ok := readOOMKills(dir)
	delete(a.live, dir)
	if !ok {
		total, _ := readOOMKills(parent)
		counted, _ := a.countLive()
		own = less(total, a.settled+counted)
	}
	a.settled += own
	if len(a.live) == 0 {
		delete(l.accounts, parent)
	}
	return own
}

// countLive adds up what the live containers' own cgroups counted; complete says that all could be read.
func (a *oomAccount) countLive() (sum uint64, complete bool) {
	complete = true
	for dir := range a.live {
		n, ok := readOOMKills(dir)
		sum, complete = sum+n, complete && ok
	}
	return sum, complete
}

func less(a, b uint64) uint64 {
	if a < b {
		return 0
	}
	return a - b
}

// readOOMKills reads the count of a cgroup directory: of v2 with all below, of v1 its own.
func readOOMKills(dir string) (n uint64, ok bool) {
	b, err := os.ReadFile(filepath.Join(dir, "memory.events"))
	if err != nil {
		b, err = os.ReadFile(filepath.Join(dir, "memory.oom_control"))
	}
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(b)) {
		if value, found := strings.CutPrefix(line, "oom_kill "); found {
			n, err = strconv.ParseUint(strings.TrimSpace(value), 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}
