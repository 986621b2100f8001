package standin

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantry-cri/gantry/sandbox"
)

// fakeSource is a set of sandboxes of one container each, whose subscribers can be cut off.
type fakeSource struct {
	mu         sync.Mutex
	sandboxes  map[string]*sandbox.SandboxStatus
	containers map[string]*sandbox.ContainerStatus
	stream     chan sandbox.Event
	subscribed int
}

func newSource() *fakeSource {
	return &fakeSource{sandboxes: map[string]*sandbox.SandboxStatus{}, containers: map[string]*sandbox.ContainerStatus{}}
}

func (f *fakeSource) Sandbox(id string) (*sandbox.SandboxStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.sandboxes[id]; s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("%s: %w", id, errdefs.ErrNotFound)
}

func (f *fakeSource) Container(id string) (*sandbox.ContainerStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.containers[id]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("%s: %w", id, errdefs.ErrNotFound)
}

func (f *fakeSource) Sandboxes() (list []*sandbox.SandboxStatus) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.sandboxes {
		list = append(list, s)
	}
	return list
}

func (f *fakeSource) Subscribe() (<-chan sandbox.Event, func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stream = make(chan sandbox.Event, 16)
	f.subscribed++
	return f.stream, func() {}
}

// set makes a sandbox with a container "c" of the given process, which runs unless it is 0.
func (f *fakeSource) set(id string, pid int, change func(*sandbox.SandboxStatus)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &sandbox.SandboxStatus{ID: id, State: sandbox.SandboxReady, CgroupParent: "/kubepods/pod1", Containers: []string{"gone", id + "-c"}}
	if change != nil {
		change(s)
	}
	f.sandboxes[id] = s
	f.containers[id+"-c"] = &sandbox.ContainerStatus{ID: id + "-c", State: sandbox.ContainerExited}
	if pid != 0 {
		f.containers[id+"-c"] = &sandbox.ContainerStatus{ID: id + "-c", State: sandbox.ContainerRunning, PID: pid}
	}
}

// tell sends an event of the sandbox, if it is heard.
func (f *fakeSource) tell(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.sandboxes[id]
	if s == nil {
		s = &sandbox.SandboxStatus{ID: id}
	}
	f.stream <- sandbox.Event{Type: sandbox.EventStarted, Sandbox: s}
}

// lose ends the stream as the manager does when it is not read fast enough.
func (f *fakeSource) lose() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.stream)
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	var got []string
	for range 6000 {
		if got = names(t, dir); slices.Equal(got, want) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("there are the cgroups %q, expected %q", got, want)
}

// inode tells one directory from another of the same name.
func inode(t *testing.T, path string) os.FileInfo {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func open(t *testing.T, f *fakeSource, dir string) *Standins {
	t.Helper()
	s, err := Open(f, dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	waitSubscribed(f)
	return s
}

// waitSubscribed waits until the source is listened to: Open does not wait for that.
func waitSubscribed(f *fakeSource) {
	for range 6000 {
		f.mu.Lock()
		n := f.subscribed
		f.mu.Unlock()
		if n > 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestSandboxHasACgroupWhileSomethingRuns(t *testing.T) {
	f, dir := newSource(), filepath.Join(t.TempDir(), "sandboxes")
	f.set("one", 10, nil)
	f.set("idle", 0, nil)
	s := open(t, f, dir)
	wantNames(t, dir, "one")
	f.set("two", 20, nil)
	f.tell("two")
	wantNames(t, dir, "one", "two")
	f.set("one", 0, nil)
	f.tell("one")
	wantNames(t, dir, "two")
	f.set("two", 20, func(s *sandbox.SandboxStatus) { s.State = sandbox.SandboxStopping })
	f.tell("two")
	wantNames(t, dir)
	f.set("one", 11, nil)
	f.tell("one")
	wantNames(t, dir, "one")
	s.Close()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("after the end: %v", err)
	}
}

// A daemon that makes none removes the directory when it finds it empty, whose ever it is.
func TestDirectoryThatAnotherDaemonRemovedIsMadeAgain(t *testing.T) {
	f, dir := newSource(), filepath.Join(t.TempDir(), "sandboxes")
	open(t, f, dir)
	wantNames(t, dir)
	Discard(newSource(), dir)
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Fatalf("the directory: %v", err)
	}
	f.set("one", 10, nil)
	f.tell("one")
	for range 6000 {
		if _, err := os.Stat(dir); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	wantNames(t, dir, "one")
}

func TestCgroupIsMadeAnewForAnotherProcess(t *testing.T) {
	f, dir := newSource(), filepath.Join(t.TempDir(), "sandboxes")
	f.set("one", 10, nil)
	open(t, f, dir)
	wantNames(t, dir, "one")
	keep, err := os.Open(filepath.Join(dir, "one")) // so that its inode is not used again
	if err != nil {
		t.Fatal(err)
	}
	defer keep.Close()
	first := inode(t, filepath.Join(dir, "one"))
	f.tell("one")
	f.set("mark", 1, nil)
	f.tell("mark")
	wantNames(t, dir, "mark", "one")
	if !os.SameFile(first, inode(t, filepath.Join(dir, "one"))) {
		t.Error("the cgroup was made anew for the same process")
	}
	f.set("one", 11, nil)
	f.tell("one")
	f.set("mark", 0, nil)
	f.tell("mark")
	wantNames(t, dir, "one")
	if os.SameFile(first, inode(t, filepath.Join(dir, "one"))) {
		t.Error("the cgroup is the same one for another process")
	}
}

func TestWhatHasACgroupNeedsNone(t *testing.T) {
	f, dir := newSource(), filepath.Join(t.TempDir(), "sandboxes")
	f.set("init", 10, func(s *sandbox.SandboxStatus) { s.InitPID = 5 })
	f.set("own", 10, func(s *sandbox.SandboxStatus) { s.CgroupParent = "/gantry/own" })
	f.set("other", 10, nil)
	open(t, f, dir)
	wantNames(t, dir, "other")
	if got := Process(f, f.sandboxes["init"]); got != 5 {
		t.Errorf("the process is %d, expected that of the init", got)
	}
}

func TestLeftoversGo(t *testing.T) {
	f, dir := newSource(), filepath.Join(t.TempDir(), "sandboxes")
	for _, name := range []string{"removed", "one"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	f.set("one", 10, nil)
	open(t, f, dir)
	wantNames(t, dir, "one")
}

func TestDiscardLeavesWhatIsAnothers(t *testing.T) {
	f, dir := newSource(), filepath.Join(t.TempDir(), "sandboxes")
	Discard(f, dir) // which is not there
	for _, name := range []string{"one", "two"} {
		f.set(name, 10, nil)
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	others := filepath.Join(dir, "others")
	if err := os.Mkdir(others, 0o755); err != nil {
		t.Fatal(err)
	}
	Discard(f, dir)
	wantNames(t, dir, "others")
	if err := os.Remove(others); err != nil {
		t.Fatal(err)
	}
	Discard(f, dir)
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory: %v", err)
	}
}

func TestLostEventsAreMadeUpFor(t *testing.T) {
	f, dir := newSource(), filepath.Join(t.TempDir(), "sandboxes")
	f.set("one", 10, nil)
	open(t, f, dir)
	wantNames(t, dir, "one")
	f.set("one", 0, nil)
	f.set("two", 20, nil)
	f.lose()
	wantNames(t, dir, "two")
}

func TestRestartWaitsUntilCadvisorIsBack(t *testing.T) {
	f, dir := newSource(), filepath.Join(t.TempDir(), "sandboxes")
	if err := os.MkdirAll(filepath.Join(dir, "gone"), 0o755); err != nil {
		t.Fatal(err)
	}
	f.set("one", 10, nil)
	s, err := Open(f, dir, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	wantNames(t, dir, "gone")
	s.Close() // at once
	fresh := newSource()
	if s, err = Open(fresh, dir, time.Hour); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	waitSubscribed(fresh)
	fresh.set("one", 10, nil)
	fresh.tell("one")
	wantNames(t, dir, "one")
}

func TestDir(t *testing.T) {
	root := t.TempDir()
	// In which cAdvisor forgets cgroups.
	if err := os.Mkdir(filepath.Join(root, "pids"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Dir(root, "/gantry", false); err == nil || !strings.Contains(err.Error(), "devices, cpu, memory") {
		t.Errorf("without a hierarchy: %v", err)
	}
	for _, hierarchy := range []string{"memory", "cpu", "devices"} { // each is preferred to those before
		if err := os.Mkdir(filepath.Join(root, hierarchy), 0o755); err != nil {
			t.Fatal(err)
		}
		got, err := Dir(root, "/gantry", false)
		if want := filepath.Join(root, hierarchy, "gantry/sandboxes"); err != nil || got != want {
			t.Errorf("got %q, %v, expected %q", got, err, want)
		}
	}
	if got, err := Dir(root, "/gantry", true); err != nil || !strings.HasPrefix(got, filepath.Join(root, "devices")) ||
		filepath.Base(got) != dirName {
		t.Errorf("with systemd: %q, %v", got, err)
	}
}

func TestOwnCgroupIsThatOfTheHierarchy(t *testing.T) {
	text := "12:cpu,cpuacct:/a\n8:pids:/system.slice/gantryd.service\n0::/u:v\n"
	for hierarchy, want := range map[string]string{"pids": "/system.slice/gantryd.service", "cpu": "/a", "": "/u:v"} {
		if got, err := parseCgroup(bufio.NewScanner(strings.NewReader(text)), hierarchy); err != nil || got != want {
			t.Errorf("%q: got %q, %v, expected %q", hierarchy, got, err, want)
		}
	}
	if _, err := parseCgroup(bufio.NewScanner(strings.NewReader(text)), "memory"); err == nil {
		t.Error("a hierarchy that is not there was found")
	}
}
