// Package standin keeps an empty cgroup for each sandbox that has a running process, named after the sandbox, in a
// directory of its own. It is for cAdvisor, which hangs a pod's network on the cgroup of the pause container: Gantry
// has no such container, and this directory entry is what stands in for it. Nothing runs in these cgroups, they limit
// nothing and no controller is on in them.
//
// It does not tell cAdvisor anything (package cri/cadvisor does) and is not needed for the CRI's own statistics.
package standin

import (
	"context"
	"os"
	"path"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/sandbox"
)

// Reader tells of sandboxes and containers by their id. *sandbox.Manager is one. Both are reads of memory.
type Reader interface {
	Sandbox(id string) (*sandbox.SandboxStatus, error)
	Container(id string) (*sandbox.ContainerStatus, error)
}

// Source is what the stand-ins need of the sandboxes. *sandbox.Manager is one.
type Source interface {
	Reader
	Sandboxes() []*sandbox.SandboxStatus
	Subscribe() (events <-chan sandbox.Event, cancel func())
}

// Process is a process in the sandbox's network namespace: the init of its shared PID namespace, else the oldest
// running container's, since the order of the containers is that in which they were made. It is 0 when nothing runs.
func Process(r Reader, s *sandbox.SandboxStatus) int {
	if s.State != sandbox.SandboxReady {
		return 0
	}
	if s.InitPID != 0 {
		return s.InitPID
	}
	for _, id := range s.Containers {
		if c, err := r.Container(id); err == nil && c.State == sandbox.ContainerRunning {
			return c.PID
		}
	}
	return 0
}

// hasCgroup reports whether there is a cgroup of the sandbox's name without a stand-in: that of its init, or the one
// that was made up for a sandbox whose configuration names no parent.
func hasCgroup(s *sandbox.SandboxStatus) bool {
	return s.InitPID != 0 || path.Base(s.CgroupParent) == s.ID
}

// Standins are the cgroups in one directory, which is theirs alone. What is in it is the state: they are made anew when
// they are opened, so nothing that a killed daemon left is believed.
type Standins struct {
	source Source
	dir    string
	stop   func()
	done   sync.WaitGroup

	// made holds the process that each cgroup was made for, by the sandbox's id. Only the goroutine of hear uses it.
	made map[string]int
}

// Open makes the directory and keeps the cgroups in it true until Close. dir is where a hierarchy of cgroups is mounted
// and a path below it; see Dir. Where there are sandboxes already it begins after settle: cAdvisor, whose connection to
// the daemon of before is broken, tries for a new one every 3 s, and what it cannot ask about it looks at again a
// minute later.
func Open(source Source, dir string, settle time.Duration) (*Standins, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Standins{source: source, dir: dir, stop: cancel, made: map[string]int{}}
	if len(source.Sandboxes()) == 0 {
		settle = 0
	}
	s.done.Go(func() {
		select {
		case <-time.After(settle):
			s.hear(ctx)
		case <-ctx.Done():
		}
	})
	return s, nil
}

// Close removes the cgroups and their directory.
func (s *Standins) Close() {
	s.stop()
	s.done.Wait()
	s.clear()
	_ = os.Remove(s.dir)
}

// Discard removes what a killed daemon left in the directory of stand-ins for the sandboxes there are, and the
// directory if nothing else is in it. It is for a daemon that makes none.
func Discard(source Source, dir string) {
	s := &Standins{source: source, dir: dir, made: map[string]int{}}
	for _, sandbox := range source.Sandboxes() {
		s.remove(sandbox.ID)
	}
	_ = os.Remove(dir) // another daemon may have the same cgroup_parent
}

// hear follows the events. They only say where to look: what is made is what the lists say.
func (s *Standins) hear(ctx context.Context) {
	for ctx.Err() == nil {
		events, cancel := s.source.Subscribe()
		s.clear()
		for _, sandbox := range s.source.Sandboxes() {
			s.sync(sandbox.ID)
		}
		s.follow(ctx, events)
		cancel()
	}
}

// follow returns when ctx ends, or when events were lost and the lists have to be read again.
func (s *Standins) follow(ctx context.Context, events <-chan sandbox.Event) {
	for {
		select {
		case event, ok := <-events:
			if !ok {
				return
			}
			s.sync(event.Sandbox.ID)
		case <-ctx.Done():
			return
		}
	}
}

// sync makes the cgroup of a sandbox what it has to be. cAdvisor asks for the process once, when it sees the cgroup:
// one that was made for another process is made anew. The loop is for what changes meanwhile.
func (s *Standins) sync(id string) {
	for {
		want := s.want(id)
		if want == s.made[id] {
			return
		}
		if s.made[id] != 0 && !s.remove(id) {
			return
		}
		if want != 0 && !s.make(id, want) {
			return
		}
	}
}

func (s *Standins) want(id string) int {
	status, err := s.source.Sandbox(id)
	if err != nil || hasCgroup(status) {
		return 0
	}
	return Process(s.source, status)
}

func (s *Standins) make(id string, pid int) bool {
	// All: another daemon may have removed the directory.
	if err := os.MkdirAll(filepath.Join(s.dir, id), 0o755); err != nil {
		klog.ErrorS(err, "Making the cgroup by which cAdvisor finds a pod's network failed", "sandbox", id)
		return false
	}
	s.made[id] = pid
	return true
}

// remove removes a cgroup. One that cannot be removed is tried again with the sandbox's next event.
func (s *Standins) remove(id string) bool {
	// Not os.Remove, which would try unlink first.
	if err := unix.Rmdir(filepath.Join(s.dir, id)); err != nil && err != unix.ENOENT {
		klog.ErrorS(err, "Removing the cgroup by which cAdvisor finds a pod's network failed", "sandbox", id)
		return false
	}
	delete(s.made, id)
	return true
}

// clear removes every cgroup there is.
func (s *Standins) clear() {
	entries, _ := os.ReadDir(s.dir)
	for _, e := range entries {
		if e.IsDir() {
			s.remove(e.Name())
		}
	}
}
