package keeperd_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// plainKeeper is a program that starts the keeper with a flag that leaves more to libcontainer.
func plainKeeper(t testing.TB, flag string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "plain-keeper")
	script := fmt.Sprintf("#!/bin/sh\nexec %s %s \"$@\"\n", binary, flag)
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// probe tells all that a process can know of how it was started. Only built-in commands of the shell look at the shell
// itself, so what its children have is not told.
const probe = `umask; cd /proc/$$ || exit 9
for f in comm cmdline environ attr/current cgroup mountinfo setgroups uid_map; do
	echo "== $f"; while IFS= read -r line || [ -n "$line" ]; do echo "$line"; done <$f | tr '\000' '\n'
done
for f in status limits oom_score_adj personality coredump_filter timerslack_ns autogroup stat loginuid; do
	echo "== $f"; busybox cat $f 2>&1
done
echo "== links"; for l in cwd root exe ns/*; do echo $l $(busybox readlink $l); done
echo "== fds"; for l in fd/[0-2] fd/[3-9]; do echo $l $(busybox readlink $l); done
busybox stat -L -c '%u %g %a %F' fd/0 fd/1 fd/2
echo "== keys"; busybox cat /proc/keys | tr -s ' ' | busybox cut -d' ' -f 5,6,7,8,9 | busybox sort -u
echo "== files"; busybox ls -ld /proc/$$/fd; busybox id
`

// volatile is what differs between two processes that were started in the same way, and what replaces it.
var volatile = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`/exec-\d+`), "/exec-N"},
	{regexp.MustCompile(`(pipe|socket):\[\d+\]`), "$1:[N]"},
	{regexp.MustCompile(`(?m)^/autogroup-\d+`), "/autogroup-N"},
	{regexp.MustCompile(`(?m)^(State|Vm|Rss|Hugetlb|voluntary|nonvoluntary|Threads|FDSize|SigQ|x86_Thread|Mems_|Speculation|SigPnd)\w*:.*$`), "$1"},
	{regexp.MustCompile(`(?m)^(d\S+ +\d+ \S+ +\S+ +\d+ )\w+ +\d+ [\d:]+`), "$1"},
	{regexp.MustCompile(`pts/\d+`), "pts/N"},
	{regexp.MustCompile(`(?m)^(Pid|Tgid|NSpid|NStgid|NSpgid|NSsid):.*$`), "$1"}, // statFields tells how they relate
	{regexp.MustCompile(`/proc/\d+`), "/proc/PID"},
}

// statFields keeps of /proc/<pid>/stat the parent, the group, the session and the terminal, as they relate to the pid,
// and the flags, the priority and the policy.
func statFields(line string) string {
	f := strings.Fields(line)
	if len(f) < 44 {
		return line
	}
	return fmt.Sprintf("ppid %s leader %v %v tty %v foreground %v prio %s nice %s rt %s policy %s",
		f[3], f[0] == f[4], f[0] == f[5], f[6] != "0", f[0] == f[7], f[17], f[18], f[39], f[40])
}

// settle takes from what the process pid found what differs each time.
func (c *container) settle(out, pid string) string {
	var lines []string
	for _, line := range strings.Split(strings.ReplaceAll(out, "\r", ""), "\n") {
		if strings.Contains(line, "keyring _ses.") && !strings.Contains(line, c.ID) {
			continue // of another test's container: keys belong to the user
		}
		if strings.HasPrefix(line, pid+" (") {
			line = statFields(line)
		}
		lines = append(lines, line)
	}
	out = strings.Join(lines, "\n")
	for _, v := range volatile {
		out = v.pattern.ReplaceAllString(out, v.with)
	}
	return out
}

// look returns what the probe finds, without what differs each time.
func (c *container) look(terminal bool, args []string) string {
	c.t.Helper()
	var out string
	if terminal {
		out = c.execTerminal(args...)
	} else {
		out, _ = c.exec(args...)
	}
	pid := regexp.MustCompile(`(?m)^Pid:\s+(\d+)`).FindStringSubmatch(out)
	if pid == nil {
		c.t.Fatalf("the probe failed: %s", out)
	}
	return c.settle(out, pid[1])
}

// execTerminal runs a command with a terminal and returns what it writes there.
func (c *container) execTerminal(args ...string) string {
	c.t.Helper()
	s, err := c.client.Exec(deadline(c.t), keeper.ExecRequest{ID: c.ID, Args: args, Terminal: true}, [3]*os.File{})
	if err != nil {
		c.t.Fatal(err)
	}
	defer s.Close()
	var out bytes.Buffer
	read := make(chan struct{})
	go func() { defer close(read); _, _ = out.ReadFrom(s.Master) }()
	if code, err := s.Wait(deadline(c.t)); err != nil || code != 0 {
		c.t.Fatalf("exec: %d, %v", code, err)
	}
	<-read
	return out.String()
}

// filter is a seccomp profile that the probe gets along with.
func filter(arches ...specs.Arch) *specs.LinuxSeccomp {
	errno := uint(38)
	return &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow, Architectures: arches,
		Syscalls: []specs.LinuxSyscall{
			{Names: []string{"swapon", "reboot", "kexec_load"}, Action: specs.ActErrno, ErrnoRet: &errno},
			{Names: []string{"personality"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{
				{Index: 0, Value: 8, Op: specs.OpEqualTo},
			}},
		},
	}
}

func everyCapability(r *keeper.StartRequest) {
	all := strings.Fields(`CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_KILL CAP_SETGID CAP_SETUID CAP_SETPCAP CAP_NET_ADMIN
		CAP_NET_RAW CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_ADMIN CAP_MKNOD CAP_SETFCAP CAP_NO_SUCH`)
	r.Spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
	r.Spec.Process.NoNewPrivileges = false
}

// TestExecPathsAgree runs the same container's execs by the stage and by libcontainer, and compares what the processes
// see of themselves.
func TestExecPathsAgree(t *testing.T) {
	users := newUserns(t)
	umask, score := uint32(0o027), 500
	probing := []string{"/bin/sh", "-c", probe}
	for _, tc := range []struct {
		name     string
		change   func(*keeper.StartRequest)
		args     []string
		terminal bool
	}{
		{name: "plain"},
		{name: "found by PATH", args: []string{"sh", "-c", probe}},
		{name: "user", change: func(r *keeper.StartRequest) {
			r.User = keeper.User{User: "app", Groups: []uint32{7, 8}}
			r.Spec.Process.Cwd = "/home/app"
			r.Spec.Process.User.Umask = &umask
		}},
		{name: "unknown user", change: func(r *keeper.StartRequest) { r.User.User = "4711" }},
		{name: "environment", change: func(r *keeper.StartRequest) {
			r.Spec.Process.Env = []string{"A=1", "PATH=/nowhere:bin:/bin", "A=2", "HOME=", "EMPTY="}
			r.Spec.Process.OOMScoreAdj = &score
		}},
		{name: "user namespace", change: mapped(users)},
		{name: "user in a user namespace", change: func(r *keeper.StartRequest) {
			mapped(users)(r)
			r.User.User = "app"
			r.Spec.Linux.Seccomp = filter()
		}},
		{name: "privileged", change: everyCapability},
		{name: "privileged with a filter", change: func(r *keeper.StartRequest) {
			everyCapability(r)
			r.Spec.Linux.Seccomp = filter(specs.ArchX86_64, specs.ArchX86, specs.ArchX32)
		}},
		{name: "ambient capabilities", change: func(r *keeper.StartRequest) {
			caps := []string{"CAP_NET_BIND_SERVICE", "CAP_CHOWN"}
			r.Spec.Process.Capabilities = &specs.LinuxCapabilities{
				Bounding: caps, Effective: caps[:1], Permitted: caps, Inheritable: caps, Ambient: caps[:1],
			}
			r.User.User = "app"
		}},
		{name: "no capabilities", change: func(r *keeper.StartRequest) {
			r.Spec.Process.Capabilities = &specs.LinuxCapabilities{}
		}},
		{name: "filter", change: func(r *keeper.StartRequest) { r.Spec.Linux.Seccomp = filter() }},
		{name: "filter of before close_range", change: func(r *keeper.StartRequest) {
			eperm := uint(1)
			r.Spec.Process.NoNewPrivileges = false // so that it is loaded early
			r.Spec.Linux.Seccomp = filter()
			r.Spec.Linux.Seccomp.Syscalls = append(r.Spec.Linux.Seccomp.Syscalls, specs.LinuxSyscall{
				Names: []string{"close_range"}, Action: specs.ActErrno, ErrnoRet: &eperm,
			})
		}},
		{name: "limits", change: func(r *keeper.StartRequest) {
			r.Spec.Process.Rlimits = []specs.POSIXRlimit{
				{Type: "RLIMIT_NOFILE", Soft: 64, Hard: 128}, {Type: "RLIMIT_CORE"}, {Type: "RLIMIT_NPROC", Soft: 500, Hard: 500},
			}
		}},
		{name: "read-only", change: func(r *keeper.StartRequest) { r.Spec.Root.Readonly = true }},
		{name: "terminal", terminal: true},
		{name: "terminal of a user", terminal: true, change: func(r *keeper.StartRequest) {
			r.User.User = "app"
			r.Spec.Process.Env = []string{"PATH=/bin"}
		}},
		{name: "host namespaces", change: func(r *keeper.StartRequest) {
			r.Spec.Hostname = ""
			r.Spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}}
		}},
		{name: "own cgroup namespace", change: func(r *keeper.StartRequest) {
			r.Spec.Linux.Namespaces = append(r.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newOpenNode(t)
			args := tc.args
			if args == nil {
				args = probing
			}
			c := n.run(tc.change, "/bin/sleep", "1000")
			staged := c.look(tc.terminal, args)
			if strings.Contains(n.log(), "start slowly") {
				t.Errorf("not by the stage:\n%s", n.log())
			}
			n.crash()
			n.program = plainKeeper(t, "-plain-exec")
			n.respawn(c)
			plain := c.look(tc.terminal, args)
			if staged != plain {
				t.Errorf("by the stage and by libcontainer:\n%s", difference(staged, plain))
			}
			c.delete()
		})
	}
}

// difference names the lines that only one has.
func difference(a, b string) string {
	var out strings.Builder
	only := func(mark, a, b string) {
		have := map[string]bool{}
		for _, line := range strings.Split(b, "\n") {
			have[line] = true
		}
		for _, line := range strings.Split(a, "\n") {
			if !have[line] {
				fmt.Fprintf(&out, "%s %s\n", mark, line)
			}
		}
	}
	only("ours        ", a, b)
	only("libcontainer", b, a)
	return out.String()
}
