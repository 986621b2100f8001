package keeperd

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"
)

func TestPokeMovesToTheOwnCgroupAndEnds(t *testing.T) {
	cgroups.TestMode = true // else it writes below a cgroup file system only
	defer func() { cgroups.TestMode = false }()
	dir := t.TempDir()
	file := filepath.Join(dir, "cgroup.procs")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	h := host{cgroups: []string{dir}}
	for range 3 {
		h.poke()
	}
	end := time.Now().Add(60 * pokeFor)
	for h.pokeUntil.Load() != 0 && time.Now().Before(end) {
		time.Sleep(pokeInterval)
	}
	if h.pokeUntil.Load() != 0 {
		t.Error("poking does not end")
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != strconv.Itoa(os.Getpid()) {
		t.Errorf("wrote %q, %v", b, err)
	}
	(&host{}).poke() // without a cgroup of its own
}

func TestPokeDoesNotBringTheKeeperBack(t *testing.T) {
	cgroups.TestMode = true
	defer func() { cgroups.TestMode = false }()
	parent := t.TempDir()
	dir := filepath.Join(parent, "own")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	h := host{cgroups: []string{dir}}
	h.leave()
	if h.stayIn(dir) {
		t.Error("the keeper moved back")
	}
	if entries, err := os.ReadDir(parent); err != nil || len(entries) > 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
}
