package main

import (
	"bufio"
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

// belongings are what tells that something is of a cluster: the name of its cgroups and its directory, and the namespaces
// of its processes.
type belongings struct {
	name       string
	namespaces map[string]bool // such as net:[4026532281]
}

var namespaceKinds = []string{"mnt", "net", "pid", "ipc", "uts", "cgroup"}

// belongingsOf looks at the processes in the cluster's cgroups. The namespaces of the machine are not the cluster's.
func belongingsOf(c *cluster) belongings {
	b := belongings{name: filepath.Base(c.Dir), namespaces: make(map[string]bool)}
	for _, pid := range processes() {
		if !b.inCgroup(pid) {
			continue
		}
		for _, kind := range namespaceKinds {
			if ns, err := os.Readlink(filepath.Join("/proc", pid, "ns", kind)); err == nil && ns != ownNamespace(kind) {
				b.namespaces[ns] = true
			}
		}
	}
	return b
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
	return bytes.Contains(text, []byte("/"+b.name))
}

// down ends the cluster and removes its files. The error names what is left.
func (c *cluster) down() error {
	b := belongingsOf(c)
	if len(b.namespaces) == 0 && syscall.Kill(c.PID, 0) == nil {
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
		links, _ := filepath.Glob(filepath.Join("/proc", pid, "ns/*"))
		fds, _ := filepath.Glob(filepath.Join("/proc", pid, "fd/*")) // these keep a namespace, too
		for _, link := range append(links, fds...) {
			if ns, err := os.Readlink(link); err == nil && b.namespaces[ns] {
				left = append(left, "namespace "+ns+" by "+link)
			}
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for scanner := bufio.NewScanner(bytes.NewReader(mounts)); scanner.Scan(); {
		fields := strings.Fields(scanner.Text())
		if strings.Contains(scanner.Text(), b.name) || len(fields) > 3 && b.namespaces[fields[3]] { // nsfs has it as its root
			left = append(left, "mount "+scanner.Text())
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
