package keeperd_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeper"
	"github.com/gantry-cri/gantry/sandbox/keeperd/reaper"
	machine "github.com/gantry-cri/gantry/test/e2e/node"
)

// The tests run the real binary against the real kernel.
var (
	binary string // gantry-keeper, built as it is shipped
	image  string // a root filesystem with busybox
	parent string // the cgroup of all containers of this run
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Println("skipping: containers need root")
		os.Exit(0)
	}
	// What is killed, by a timeout of go test or by hand, leaves no process; the next run removes its cgroups and files.
	if inner, code := machine.Isolate(); !inner {
		os.Exit(code)
	}
	os.Setenv("TMPDIR", machine.Dir())
	// The keeper's processes for one task do not wait a second at their end for goroutines with a race.
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	dir, err := os.MkdirTemp("", "keeperd-test-")
	if err != nil {
		panic(err)
	}
	parent = fmt.Sprintf("/gantry-test-%d", os.Getpid())
	binary, image = filepath.Join(dir, "gantry-keeper"), filepath.Join(dir, "image")
	code := 1
	if err := prepare(); err != nil {
		fmt.Println(err)
	} else {
		code = m.Run()
	}
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + parent)
	dirs = append(dirs, "/sys/fs/cgroup"+parent)
	for _, d := range dirs {
		if err := unix.Rmdir(d); err != nil && err != unix.ENOENT {
			fmt.Printf("cgroup %s is left: %v\n", d, err)
			code = 1
		}
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// keeperVariable names a keeper whose version is "test", for machines that have no Go to build it with.
const keeperVariable = "GANTRY_TEST_KEEPER"

func prepare() error {
	if built := os.Getenv(keeperVariable); built != "" {
		binary = built
		return makeImage(image)
	}
	build := exec.Command("go", "build", "-tags", "seccomp netgo osusergo",
		"-ldflags", `-s -w -linkmode external -extldflags "-static" -X main.version=test`,
		"-o", binary, "../../cmd/gantry-keeper")
	if os.Getenv("GANTRY_RACE") != "" {
		build = exec.Command("go", "build", "-race", "-tags", "seccomp", "-ldflags", "-X main.version=test",
			"-o", binary, "../../cmd/gantry-keeper")
	}
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w: %s", err, out)
	}
	return makeImage(image)
}

// makeImage copies busybox and the libraries it needs.
func makeImage(root string) error {
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "home/app"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	files := map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\napp:x:1000:2000:app:/home/app:/bin/sh\n",
		"etc/group":  "root:x:0:\napp:x:2000:\nextra:x:3000:app\nother:x:4000:nobody\n",
		"noexec":     "not a program",
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	libs, _ := exec.Command("ldd", busybox).Output()
	for _, lib := range append(regexp.MustCompile(`/\S+`).FindAllString(string(libs), -1), busybox) {
		b, err := os.ReadFile(lib)
		if err != nil {
			return err
		}
		to := filepath.Join(root, lib)
		if lib == busybox {
			to = filepath.Join(root, "bin/busybox")
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, b, 0o755); err != nil {
			return err
		}
	}
	for _, applet := range strings.Fields("sh cat echo sleep dd id true kill ps mkdir head yes stty tty touch tr") {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", applet)); err != nil {
			return err
		}
	}
	return nil
}

// node is a keeper in a state directory of its own.
type node struct {
	t      testing.TB
	dir    string
	client *keeper.Client
	// program is the keeper's, binary unless set.
	program string
	// reapers are the parents of the keepers that there were.
	reapers []int
}

// lookAtSources looks at what the keeper is built of. By what a test opens or looks at go test knows whether its cached
// result still holds; what go build reads is nothing to it.
var lookAtSources = sync.OnceValue(func() error {
	if os.Getenv(keeperVariable) != "" {
		return nil
	}
	for _, sources := range []string{"../../sandbox", "../../cmd/gantry-keeper", "../../trace", "../../go.mod"} {
		if err := filepath.WalkDir(sources, func(path string, _ fs.DirEntry, err error) error {
			_, _ = os.Stat(path)
			return err
		}); err != nil {
			return err
		}
	}
	return nil
})

func newNode(t testing.TB) *node {
	t.Helper()
	if err := lookAtSources(); err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: t.TempDir()}
	n.spawn()
	t.Cleanup(n.shutdown)
	return n
}

// waitLimit bounds one wait or call of the tests. On the emulated machine of hack/vm a minute is not enough for a flood.
const waitLimit = 5 * time.Minute

func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	t.Cleanup(cancel)
	return ctx
}

func (n *node) log() string {
	b, _ := os.ReadFile(filepath.Join(n.dir, "keeper.log"))
	return string(b)
}

func (n *node) spawn() {
	n.t.Helper()
	ctx := deadline(n.t)
	if err := keeper.Spawn(ctx, cmp.Or(n.program, binary), n.dir, filepath.Join(n.dir, "keeper.log")); err != nil {
		n.t.Fatal(err)
	}
	c, hello, err := keeper.Connect(ctx, n.dir, "test")
	if err != nil {
		n.t.Fatal(err)
	}
	if hello.Build != "test" || hello.PID == 0 {
		n.t.Fatalf("hello: %+v", hello)
	}
	n.client = c
	n.reapers = append(n.reapers, parentOf(n.t, hello.PID))
}

// parentOf returns the pid of a process's parent.
func parentOf(t testing.TB, pid int) (parent int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(string(b[bytes.LastIndexByte(b, ')')+1:]), " %c %d", new(rune), &parent); err != nil {
		t.Fatal(err)
	}
	return parent
}

// pid returns the keeper's process id.
func (n *node) pid() int {
	n.t.Helper()
	hello, err := n.client.Hello(deadline(n.t), "test")
	if err != nil {
		n.t.Fatal(err)
	}
	return hello.PID
}

// crash kills the keeper and waits for its end.
func (n *node) crash() {
	n.t.Helper()
	pid := n.pid()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		n.t.Fatal(err)
	}
	n.eventually("the keeper is dead", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		// The first thread is a zombie before the last has given back what the process had.
		threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		return err != nil || bytes.Contains(b, []byte(") Z ")) && len(threads) <= 1
	})
}

// shutdown ends the keeper and checks that it leaves nothing.
func (n *node) shutdown() {
	if log := n.log(); strings.Contains(log, "DATA RACE") || strings.Contains(log, "panic:") {
		n.t.Errorf("the keeper is wrong in itself:\n%s", log)
	} else if n.t.Failed() {
		n.t.Logf("the keeper's log:\n%s", log)
	}
	entries, _ := os.ReadDir(filepath.Join(n.dir, "keeper/c"))
	for _, e := range entries {
		if err := n.client.Delete(deadline(n.t), keeper.DeleteRequest{ID: e.Name()}); err != nil {
			n.t.Errorf("delete %s: %v", e.Name(), err)
		}
	}
	cgroups, _ := os.ReadFile(filepath.Join(n.dir, "keeper/cgroup"))
	pid := n.pid()
	if err := n.client.Shutdown(deadline(n.t)); err != nil {
		n.t.Errorf("shutdown: %v", err)
	}
	n.eventually("the keeper has exited", func() bool { return unix.Kill(pid, 0) != nil })
	for _, pid := range n.reapers {
		n.eventually("the reapers have ended", func() bool { return nameOf(pid) != reaper.Name })
	}
	for _, dir := range strings.Fields(string(cgroups)) {
		if _, err := os.Stat(dir); err == nil {
			n.t.Errorf("cgroup %s is left", dir)
		}
	}
	if m := mountsBelow(n.dir); m != "" {
		n.t.Errorf("mounts are left: %s", m)
	}
}

// nameOf returns the name of a process, or nothing if there is none.
func nameOf(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSpace(string(b))
}

func mountsBelow(dir string) string {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	var found []string
	for _, line := range strings.Split(string(b), "\n") {
		if strings.Contains(line, " "+dir+"/") {
			found = append(found, line)
		}
	}
	return strings.Join(found, "\n")
}

func (n *node) eventually(what string, ok func() bool) {
	n.t.Helper()
	for end := time.Now().Add(waitLimit); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	n.t.Fatalf("not in time: %s", what)
}

// container is one container of a test.
type container struct {
	*node
	keeper.StartRequest
	pid   int
	start keeper.StartReply
	proc  *keeper.Process
}

// container returns a request that runs a command; change changes it.
func (n *node) container(change func(*keeper.StartRequest), args ...string) *container {
	n.t.Helper()
	raw := make([]byte, 32)
	_, _ = rand.Read(raw)
	id := hex.EncodeToString(raw)
	dir := filepath.Join(n.dir, "records", id)
	layers := filepath.Join(n.dir, "layers", id)
	for _, d := range []string{dir, layers + "/upper", layers + "/work"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
	c := &container{node: n, StartRequest: keeper.StartRequest{
		ID: id, Dir: dir, Spec: newSpec(id, args), LogPath: filepath.Join(dir, "0.log"),
		Rootfs: []specs.Mount{{Type: "overlay", Source: "overlay", Options: []string{
			"lowerdir=" + image, "upperdir=" + layers + "/upper", "workdir=" + layers + "/work",
		}}},
	}}
	if change != nil {
		change(&c.StartRequest)
	}
	return c
}

func newSpec(id string, args []string) *specs.Spec {
	caps := []string{"CAP_CHOWN", "CAP_KILL", "CAP_SETGID", "CAP_SETUID"}
	return &specs.Spec{
		Version: "1.2.0",
		Root:    &specs.Root{},
		Process: &specs.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/bin", "TERM=xterm"}, NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Hostname: "test",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=64k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{
				"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620",
			}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "mode=1777", "size=64m"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: parent + "/" + id,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace},
			},
			Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}}},
		},
	}
}

func (n *node) run(change func(*keeper.StartRequest), args ...string) *container {
	n.t.Helper()
	c := n.container(change, args...)
	c.begin()
	return c
}

func (c *container) begin() {
	c.t.Helper()
	reply, proc, err := c.client.Start(deadline(c.t), c.StartRequest)
	if err != nil {
		c.t.Fatal(err)
	}
	c.start, c.pid, c.proc = reply, reply.PID, proc
	c.t.Cleanup(proc.Close)
	if want := 3; !reply.Terminal && len(proc.Output)+1 != want {
		c.t.Fatalf("%d read ends", len(proc.Output))
	}
}

// wait returns the status once the container has exited.
func (c *container) wait() keeper.Status {
	c.t.Helper()
	var s *keeper.Status
	c.eventually("the container has exited", func() bool {
		var err error
		if s, err = keeper.ReadStatus(c.Dir); err != nil {
			c.t.Fatal(err)
		}
		return s.Exited()
	})
	return *s
}

// records reads the container's log. A write that goes over the end of a page can be seen half done: who reads while the
// container writes waits for the rest of the record, and is given a record that stays cut as it is.
func (c *container) records() []byte {
	c.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(c.LogPath)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			c.t.Fatal(err)
		}
		if len(b) == 0 || b[len(b)-1] == '\n' || time.Now().After(end) {
			return b
		}
	}
}

// output puts the log of a stream together again. Each record has to be a whole one.
func (c *container) output(stream string) string {
	c.t.Helper()
	b := c.records()
	var out strings.Builder
	for line := range bytes.Lines(b) {
		stamp, rest, _ := bytes.Cut(line, []byte(" "))
		name, rest, _ := bytes.Cut(rest, []byte(" "))
		tag, content, ok := bytes.Cut(rest, []byte(" "))
		if !ok || len(stamp) == 0 || content[len(content)-1] != '\n' {
			return out.String() + "\nnot a record: " + string(line)
		}
		switch {
		case string(name) != stream:
		case string(tag) == "P":
			out.Write(content[:len(content)-1])
		default:
			out.Write(content)
		}
	}
	return out.String()
}

func (c *container) delete() {
	c.t.Helper()
	// A disk that is busy may hold up what an exit writes for longer than a removal waits for the exit: it is asked for
	// again, as a daemon does.
	for end := time.Now().Add(waitLimit); ; {
		err := c.client.Delete(deadline(c.t), keeper.DeleteRequest{ID: c.ID, CgroupsPath: c.Spec.Linux.CgroupsPath})
		if err == nil {
			break
		}
		if !strings.Contains(err.Error(), "timed out") || time.Now().After(end) {
			c.t.Fatal(err)
		}
		c.t.Log(err)
	}
	c.checkGone()
}

// checkGone checks that nothing of the container is left.
func (c *container) checkGone() {
	c.t.Helper()
	for _, dir := range []string{"c", "lc", "rootfs"} {
		if _, err := os.Stat(filepath.Join(c.dir, "keeper", dir, c.ID)); err == nil {
			c.t.Errorf("%s/%s is left", dir, c.ID)
		}
	}
	if dirs := c.cgroups(); len(dirs) > 0 {
		c.t.Errorf("cgroups are left: %v", dirs)
	}
	if c.pid > 0 {
		// After a crash its new parent, PID 1, may take its time to reap it.
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.pid))
		if err == nil && !bytes.Contains(b, []byte(") Z ")) {
			c.t.Errorf("process %d is left", c.pid)
		}
	}
}

func (c *container) cgroups() []string {
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + c.Spec.Linux.CgroupsPath)
	v2, _ := filepath.Glob("/sys/fs/cgroup" + c.Spec.Linux.CgroupsPath)
	return append(dirs, v2...)
}

// stdinPath is the FIFO that the container reads.
func (c *container) stdinPath() string { return filepath.Join(keeper.Dir(c.dir), "c", c.ID, "stdin") }

// exec runs a command and returns its output and exit code.
func (c *container) exec(args ...string) (string, int32) {
	c.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		c.t.Fatal(err)
	}
	defer r.Close()
	s, err := c.client.Exec(deadline(c.t), keeper.ExecRequest{ID: c.ID, Args: args}, [3]*os.File{nil, w, w})
	_ = w.Close()
	if err != nil {
		c.t.Fatal(err)
	}
	var out bytes.Buffer
	read := make(chan struct{})
	go func() { defer close(read); _, _ = out.ReadFrom(r) }()
	code, err := s.Wait(deadline(c.t))
	if err != nil {
		c.t.Fatal(err)
	}
	<-read
	return out.String(), code
}

// nsenter runs a command in the mount namespace of a process.
func nsenter(pid int, args ...string) (string, error) {
	out, err := exec.Command("nsenter", append([]string{"-m", "-t", fmt.Sprint(pid)}, args...)...).CombinedOutput()
	return string(out), err
}
