package keeperd_test

import (
	bits "encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// TestExecFailuresAgree compares what is said of commands that cannot be run by the stage and by libcontainer.
func TestExecFailuresAgree(t *testing.T) {
	n := newNode(t)
	c := n.run(func(r *keeper.StartRequest) {
		r.Spec.Process.Env = []string{"PATH=/bin:relative:/etc"}
		r.Spec.Process.Cwd = "/tmp"
	}, "/bin/sh", "-c", `mkdir -p /tmp/relative; echo '#!/nosuch' >/tmp/script; echo x >/tmp/relative/here
		echo garbage >/tmp/garbage; busybox chmod +x /tmp/script /tmp/garbage /tmp/relative/here; touch /tmp/ready; sleep 1000`)
	c.eventually("the files are there", func() bool { _, code := c.exec("cat", "/tmp/ready"); return code == 0 })
	cases := []struct {
		args []string
		want string
	}{
		{[]string{"nosuch", "argument"}, `exec: "nosuch": executable file not found in $PATH`},
		{[]string{"/bin/nosuch"}, `exec: "/bin/nosuch": stat /bin/nosuch: no such file or directory`},
		{[]string{"./nosuch"}, `exec: "./nosuch": stat ./nosuch: no such file or directory`},
		{[]string{"/noexec"}, `exec: "/noexec": permission denied`},
		{[]string{"/noexec/deeper"}, `exec: "/noexec/deeper": stat /noexec/deeper: not a directory`},
		{[]string{"/bin"}, `exec: "/bin": is a directory`},
		{[]string{""}, `exec: "": executable file not found in $PATH`},
		{[]string{".."}, `exec: "..": executable file not found in $PATH`},
		{[]string{"passwd"}, `exec: "passwd": executable file not found in $PATH`},
		{[]string{"here"}, `exec: "here": cannot run executable found relative to current directory`},
		{[]string{"/tmp/script"}, "exec /tmp/script: no such file or directory"},
		{[]string{"./garbage"}, "exec ./garbage: exec format error"},
		{[]string{"true", strings.Repeat("x", 1<<18)}, "exec /bin/true: argument list too long"},
	}
	// At these only execve fails, when libcontainer has said already that all is well: it gives exit code 255.
	const late = 3
	check := func(path string, n int) {
		for _, tc := range cases[:n] {
			_, err := c.client.Exec(deadline(t), keeper.ExecRequest{ID: c.ID, Args: tc.args}, [3]*os.File{})
			if !errors.Is(err, keeper.ErrStart) || err.Error() != tc.want {
				t.Errorf("%.20q by %s: %v, expected %s", tc.args, path, err, tc.want)
			}
		}
		if dirs := c.execCgroups(); len(dirs) > 0 {
			t.Errorf("left: %v", dirs)
		}
	}
	check("the stage", len(cases))
	if log := n.log(); strings.Contains(log, "start slowly") {
		t.Errorf("not by the stage:\n%s", log)
	}
	n.crash()
	n.program = plainKeeper(t, "-plain-exec")
	n.respawn(c)
	check("libcontainer", len(cases)-late)
}

// TestExecReadsNoFileWithoutEnd has a container put something endless where the user's HOME is looked up.
func TestExecReadsNoFileWithoutEnd(t *testing.T) {
	n := newNode(t)
	c := n.run(func(r *keeper.StartRequest) { r.Spec.Process.Env = []string{"PATH=/bin"} }, "/bin/sh", "-c",
		"busybox ln -sf /dev/zero /etc/passwd && touch /tmp/ready; sleep 1000")
	c.eventually("the file is there", func() bool { _, code := c.exec("cat", "/tmp/ready"); return code == 0 })
	if out, code := c.exec("sh", "-c", "echo $HOME"); out != "/\n" || code != 0 {
		t.Errorf("HOME is %q, exit code %d", out, code)
	}
	if log := n.log(); strings.Contains(log, "start slowly") {
		t.Errorf("not by the stage:\n%s", log)
	}
}

// TestExecLoadsTheFilterOfTheContainer compares the program in force, as the kernel has it, of the container's own
// process and of one that was exec'd.
func TestExecLoadsTheFilterOfTheContainer(t *testing.T) {
	for _, tc := range []struct {
		name    string
		profile func(*specs.Spec) (*specs.LinuxSeccomp, error)
	}{
		{"default", seccomp.GetDefaultProfile},
		{"small", func(*specs.Spec) (*specs.LinuxSeccomp, error) { return filter(), nil }},
		{"flags", func(*specs.Spec) (*specs.LinuxSeccomp, error) {
			f := filter()
			f.Flags = []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog}
			return f, nil
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			c := n.run(func(r *keeper.StartRequest) {
				profile, err := tc.profile(r.Spec)
				if err != nil {
					t.Fatal(err)
				}
				r.Spec.Linux.Seccomp = profile
			}, "sleep", "1000")
			init, exec := loadedFilter(t, c.pid), loadedFilter(t, c.execSleep())
			if init.flags != exec.flags {
				t.Errorf("flags %#x and %#x", init.flags, exec.flags)
			}
			compareVerdicts(t, init.program, exec.program)
			if log := n.log(); strings.Contains(log, "start slowly") {
				t.Errorf("not by the stage:\n%s", log)
			}
		})
	}
}

// execSleep starts a command that runs until the end of the test, and returns its process.
func (c *container) execSleep() int {
	c.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = r.Close() })
	s, err := c.client.Exec(deadline(c.t), keeper.ExecRequest{ID: c.ID, Args: []string{"sleep", "1000"}}, [3]*os.File{w, w, w})
	_ = w.Close()
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(s.Close)
	return s.PID
}

// compareVerdicts asks both programs about every system call. Their bytes may differ: libcontainer puts the tests for the
// architectures in any order.
func compareVerdicts(t *testing.T, a, b *bpf.VM) {
	t.Helper()
	seen := map[int]bool{}
	const x32 = 1 << 30
	for _, arch := range []uint32{unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_AARCH64, unix.AUDIT_ARCH_ARM} {
		for _, base := range []uint32{0, x32} {
			for nr := range uint32(1200) {
				for _, arg := range []uint64{0, 8, 16, 40, 0x20008, 0x7e020000, 1<<32 | 8, math.MaxUint32} {
					data := systemCall(base+nr, arch, arg)
					va, err := a.Run(data)
					if err != nil {
						t.Fatal(err)
					}
					vb, err := b.Run(data)
					if err != nil || va != vb {
						t.Fatalf("call %#x, architecture %#x, argument %#x: %#x and %#x, %v", base+nr, arch, arg, va, vb, err)
					}
					seen[va] = true
				}
			}
		}
	}
	if len(seen) < 2 {
		t.Errorf("one verdict for all: %v", seen)
	}
}

// systemCall is struct seccomp_data in the byte order of the interpreter, which is that of the network.
func systemCall(nr, arch uint32, arg uint64) []byte {
	data := bits.BigEndian.AppendUint32(nil, nr)
	data = bits.BigEndian.AppendUint32(data, arch)
	data = append(data, make([]byte, 8)...)
	for range 6 {
		data = bits.BigEndian.AppendUint32(data, uint32(arg))
		data = bits.BigEndian.AppendUint32(data, uint32(arg>>32))
	}
	return data
}

type seccompFilter struct {
	flags   uint64
	program *bpf.VM
}

// loadedFilter asks the kernel for the only filter of a process that runs sleep, and is stopped for that. One that still
// is to execute it is waited for: to stop it in the middle of that does not always succeed.
func loadedFilter(t *testing.T, pid int) (loaded seccompFilter) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if string(name) == "sleep\n" {
			break
		}
		if err != nil || time.Now().After(end) {
			t.Fatalf("process %d is called %q, %v", pid, name, err)
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.PtraceSeize(pid); err != nil {
		t.Fatal(err)
	}
	if err := unix.PtraceInterrupt(pid); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Wait4(pid, nil, unix.WALL, nil); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.PtraceDetach(pid); err != nil {
			t.Fatal(err)
		}
	}()
	ask := func(request int, index uintptr, data unsafe.Pointer) int {
		n, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(pid), index, uintptr(data), 0, 0)
		if errno == unix.EIO {
			t.Skip("the kernel lacks CONFIG_CHECKPOINT_RESTORE")
		}
		if errno != 0 {
			t.Fatalf("ptrace %#x: %v", request, errno)
		}
		return int(n)
	}
	filter := make([]unix.SockFilter, 1<<16)
	n := ask(unix.PTRACE_SECCOMP_GET_FILTER, 0, unsafe.Pointer(&filter[0]))
	metadata := struct{ index, flags uint64 }{}
	ask(unix.PTRACE_SECCOMP_GET_METADATA, unsafe.Sizeof(metadata), unsafe.Pointer(&metadata))
	loaded.flags = metadata.flags
	var raw []bpf.RawInstruction
	for _, f := range filter[:n] {
		raw = append(raw, bpf.RawInstruction{Op: f.Code, Jt: f.Jt, Jf: f.Jf, K: f.K})
	}
	program, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("a program that cannot be read")
	}
	var err error
	if loaded.program, err = bpf.NewVM(program); err != nil {
		t.Fatal(err)
	}
	return loaded
}
