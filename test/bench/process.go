package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// process is one of the runtime's.
type process struct {
	pid  int
	name string
}

// processesNamed finds the processes whose comm (at most 15 characters) is one of names.
func processesNamed(names []string) ([]process, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var found []process
	for _, dir := range dirs {
		comm, err := os.ReadFile(dir + "/comm")
		if err != nil {
			continue
		}
		if _, err := os.Readlink(dir + "/exe"); err != nil {
			continue // a zombie
		}
		name := strings.TrimSpace(string(comm))
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil && slices.Contains(names, name) {
			found = append(found, process{pid, name})
		}
	}
	return found, nil
}

// weigh is the proportional set size of all processes of each name, in KiB. Of n equal processes it counts what they share
// once.
func weigh(names []string) (map[string]float64, error) {
	processes, err := processesNamed(names)
	if err != nil {
		return nil, err
	}
	sizes := map[string]float64{}
	for _, p := range processes {
		size, err := pss(p.pid)
		if errors.Is(err, os.ErrNotExist) {
			continue // it has ended
		}
		if err != nil {
			return nil, err
		}
		sizes[p.name] += size
	}
	return sizes, nil
}

// pss reads proc_pid_smaps(5).
func pss(pid int) (float64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); len(fields) > 1 && fields[0] == "Pss:" {
			return strconv.ParseFloat(fields[1], 64)
		}
	}
	return 0, nil // a process that is just ending has no memory
}
