package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// belongings are what tells that something is of a cluster: the name of its cgroups and its directory, and who holds
// the namespaces of its processes. The kernel gives the number of a namespace that is gone to another one, so only
// those count that held them when belongingsOf looked.
type belongings struct {
	name string
	held map[link]string // the namespace, such as net:[4026532281]
	// mounts are lines of mountinfo that are of the namespaces.
	mounts []string
}

// link is a file below /proc of a process that keeps a namespace.
type link struct{ path, started string }

var namespaceKinds = []string{"mnt", "net", "pid", "ipc", "uts", "cgroup"}

// belongingsOf looks at the processes in the cluster's cgroups, and then who else has their namespaces. Those of the
// machine are not the cluster's.
func belongingsOf(c *cluster) belongings {
	b := belongings{name: filepath.Base(c.Dir)}
	namespaces := make(map[string]bool)
	for _, pid := range processes() {
		if !b.inCgroup(pid) {
			continue
		}
		for _, kind := range namespaceKinds {
			if ns, err := os.Readlink(filepath.Join("/proc", pid, "ns", kind)); err == nil && ns != ownNamespace(kind) {
				namespaces[ns] = true
			}
		}
	}
	b.hold(namespaces)
	return b
}

// hold remembers who holds namespaces just now.
func (b *belongings) hold(namespaces map[string]bool) {
	b.held = make(map[link]string)
	for _, pid := range processes() {
		started := startTime(pid)
		links, _ := filepath.Glob(filepath.Join("/proc", pid, "ns/*"))
		fds, _ := filepath.Glob(filepath.Join("/proc", pid, "fd/*")) // these keep a namespace, too
		for _, path := range append(links, fds...) {
			if ns, err := os.Readlink(path); err == nil && namespaces[ns] {
				b.held[link{path, started}] = ns
			}
		}
	}
	for _, line := range mountLines() {
		if fields := strings.Fields(line); len(fields) > 3 && namespaces[fields[3]] { // what nsfs has as its root
			b.mounts = append(b.mounts, line)
		}
	}
}

// startTime is when a process started, in ticks of the kernel: with the pid it names one process.
func startTime(pid string) string {
	stat, _ := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	_, after, _ := strings.Cut(string(stat), ") ")
	if fields := strings.Fields(after); len(fields) > 19 {
		return fields[19]
	}
	return ""
}

func mountLines() []string {
	text, _ := os.ReadFile("/proc/self/mountinfo")
	return strings.Split(string(text), "\n")
}

func ownNamespace(kind string) string {
	ns, _ := os.Readlink("/proc/self/ns/" + kind)
	return ns
}

func processes() []string {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for i, dir := range dirs {
		dirs[i] = filepath.Base(dir)
	}
	return dirs
}

func (b belongings) inCgroup(pid string) bool {
	text, _ := os.ReadFile(filepath.Join("/proc", pid, "cgroup"))
	return b.names(string(text))
}

// names reports whether the name is an element of a path in the text.
func (b belongings) names(text string) bool {
	text = "/" + strings.NewReplacer(" ", "/", "\n", "/").Replace(text) + "/"
	return strings.Contains(text, "/"+b.name+"/")
}

// down ends the cluster and removes its files. The error names what is left.
func (c *cluster) down() error {
	b := belongingsOf(c)
	if len(b.held) == 0 && c.alive() {
		return fmt.Errorf("process %d has nothing of a cluster", c.PID)
	}
	if err := syscall.Kill(c.PID, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	var left []string
	for deadline := time.Now().Add(downTimeout); ; time.Sleep(200 * time.Millisecond) {
		if left = b.left(); len(left) == 0 || time.Now().After(deadline) {
			break
		}
	}
	err := os.RemoveAll(c.work)
	if len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("the cluster left behind:\n  %s", strings.Join(left, "\n  ")))
	}
	return err
}

// left lists processes, namespaces, mounts, cgroups and files that are there of the cluster.
func (b belongings) left() []string {
	var left []string
	for _, pid := range processes() {
		if b.inCgroup(pid) {
			left = append(left, "process "+pid+" "+commandLine(pid))
		}
	}
	for l, namespace := range b.held {
		pid := strings.Split(l.path, "/")[2]
		if now, err := os.Readlink(l.path); err == nil && now == namespace && startTime(pid) == l.started {
			left = append(left, "namespace "+namespace+" by "+l.path+" "+commandLine(pid))
		}
	}
	for _, line := range mountLines() {
		if b.names(line) || slices.Contains(b.mounts, line) {
			left = append(left, "mount "+line)
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*", os.TempDir()} {
		found, _ := filepath.Glob(filepath.Join(pattern, b.name))
		left = append(left, found...)
	}
	slices.Sort(left)
	return slices.Compact(left)
}

func commandLine(pid string) string {
	text, _ := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
	return string(bytes.ReplaceAll(text, []byte{0}, []byte{' '}))
}
