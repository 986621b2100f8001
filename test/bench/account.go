package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// account tells the CPU time of a runtime: its daemon, what holds its containers, its plugins and its pods.
type account struct {
	// cgroups are patterns of directories that hold all of these. What is below a directory counts, also when it is gone:
	// so pods are accounted by the directory that they come and go in.
	cgroups []string
	// names are those of processes that are in no cgroup of their own. Their time has a resolution of 10 ms, and that of a
	// process which has ended is lost: it is for runtimes that the program did not start.
	names []string
}

// spent is what an action took.
type spent struct{ wall, cpu, machine time.Duration }

// measure takes the time of an action. The machine's time is all but idleness, of all programs.
func (a *account) measure(action func() error) (spent, error) {
	cpu, err := a.cpu()
	if err != nil {
		return spent{}, err
	}
	machine, err := machineCPU("/proc/stat")
	if err != nil {
		return spent{}, err
	}
	start := time.Now()
	failed := action()
	s := spent{wall: time.Since(start)}
	after, err := a.cpu()
	s.cpu = after - cpu
	machineAfter, machineErr := machineCPU("/proc/stat")
	s.machine = machineAfter - machine
	return s, errors.Join(failed, err, machineErr)
}

func (a *account) cpu() (time.Duration, error) {
	var total time.Duration
	for _, pattern := range a.cgroups {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			return 0, err
		}
		for _, dir := range dirs {
			used, err := cgroupCPU(dir)
			if err != nil {
				return 0, err
			}
			total += used
		}
	}
	own, err := cpuOfProcesses(a.names)
	return total + own, err
}

// cpuOfProcesses is the CPU time of all processes of these names.
func cpuOfProcesses(names []string) (total time.Duration, err error) {
	if len(names) == 0 {
		return 0, nil
	}
	processes, err := processesNamed(names)
	for _, p := range processes {
		total += processCPU(p.pid)
	}
	return total, err
}

// cgroupCPU is the CPU time of all that was ever in a cgroup or below it, by either version of cgroups.
func cgroupCPU(dir string) (time.Duration, error) {
	if b, err := os.ReadFile(filepath.Join(dir, "cpuacct.usage")); err == nil {
		ns, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		return time.Duration(ns), err
	}
	b, err := os.ReadFile(filepath.Join(dir, "cpu.stat"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, "usage_usec "); ok {
			us, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			return time.Duration(us) * time.Microsecond, err
		}
	}
	return 0, fmt.Errorf("%s/cpu.stat has no usage_usec", dir)
}

// clockTick is the unit of times in /proc: USER_HZ, 100 on every architecture that Go runs on.
const clockTick = 10 * time.Millisecond

// machineCPU is the time that the machine's CPUs were not idle (proc_stat(5)): user, nice, system, irq and softirq.
func machineCPU(file string) (time.Duration, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	fields := strings.Fields(line)
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, fmt.Errorf("%s begins with %q", file, line)
	}
	var ticks int64
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick, nil
}

// processCPU is the time of a process and of its children that were waited for (proc_pid_stat(5), fields 14 to 17); 0 for
// one that is gone.
func processCPU(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	var ticks int64
	for _, f := range fields[11:15] {
		t, _ := strconv.ParseInt(f, 10, 64)
		ticks += t
	}
	return time.Duration(ticks) * clockTick
}

// availableMemory is how much of the machine's memory can still be had, in KiB, and which part of all that is.
func availableMemory() (kib, part float64, err error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	values := map[string]float64{}
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); len(fields) > 1 {
			values[fields[0]], _ = strconv.ParseFloat(fields[1], 64)
		}
	}
	if values["MemTotal:"] == 0 {
		return 0, 0, errors.New("/proc/meminfo has no MemTotal")
	}
	return values["MemAvailable:"], values["MemAvailable:"] / values["MemTotal:"], nil
}
