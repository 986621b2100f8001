package stage

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The test binary is the compiler too, as the keeper's is. What the stage does in a container is tested with the keeper.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == CompilerVerb {
		CompilerMain()
	}
	os.Exit(m.Run())
}

func newSpec() *specs.Spec {
	return &specs.Spec{
		Process: &specs.Process{Cwd: "/", Env: []string{"PATH=/bin"}},
		Linux:   &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}}},
	}
}

func TestEnvironment(t *testing.T) {
	for _, tc := range []struct {
		name      string
		env, want []string
		home      bool // is looked up
	}{
		{"none", nil, nil, true},
		{"last of a name", []string{"A=1", "B=", "A=2", "HOME=/x"}, []string{"B=", "A=2", "HOME=/x"}, false},
		{"empty home", []string{"HOME=", "A=1"}, []string{"A=1"}, true},
		{"home after an empty one", []string{"HOME=", "HOME=/x"}, []string{"HOME=/x"}, false},
		{"empty home after one", []string{"HOME=/x", "HOME="}, nil, true},
		{"value with a sign", []string{"A=b=c", "HOME=/"}, []string{"A=b=c", "HOME=/"}, false},
	} {
		spec := newSpec()
		spec.Process.Env = tc.env
		tp, err := NewTemplate("id", spec, nil)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if home := tp.fixed.flags&flagHome != 0; !slices.Equal(tp.env, tc.want) || home != tc.home {
			t.Errorf("%s: %q, home is looked up: %v; expected %q, %v", tc.name, tp.env, home, tc.want, tc.home)
		}
	}
	for env, want := range map[string]string{
		"A": "missing '='", "=b": "name cannot be empty", "A=b\x00": `"A": contains nul byte`,
	} {
		spec := newSpec()
		spec.Process.Env = []string{env}
		if _, err := NewTemplate("id", spec, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, expected %s", env, err, want)
		}
	}
}

func TestUnknownLimitIsRefused(t *testing.T) {
	spec := newSpec()
	spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOTHING"}}
	if _, err := NewTemplate("id", spec, nil); err == nil || !strings.Contains(err.Error(), `rlimit "RLIMIT_NOTHING"`) {
		t.Errorf("got %v", err)
	}
}

func TestWhatOnlyLibcontainerDoes(t *testing.T) {
	l := NewLauncher(t.TempDir())
	if err := l.Unsupported(newSpec()); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*specs.Spec){
		"scheduler":    func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{} },
		"io priority":  func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{} },
		"affinity":     func(s *specs.Spec) { s.Process.ExecCPUAffinity = &specs.CPUAffinity{} },
		"personality":  func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{} },
		"rdt":          func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{} },
		"no mounts":    func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[1:] },
		"time":         func(s *specs.Spec) { s.Linux.Namespaces[1].Type = specs.TimeNamespace },
		"listener":     func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{ListenerPath: "/x"} },
		"notification": func(s *specs.Spec) { s.Linux.Seccomp = profile("read", specs.ActNotify) },
		"limit of processes in a user namespace": func(s *specs.Spec) {
			s.Linux.Namespaces[1].Type = specs.UserNamespace
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NPROC"}}
		},
	} {
		spec := newSpec()
		change(spec)
		if l.Unsupported(spec) == nil {
			t.Errorf("%s: passed", name)
		}
	}
}

func profile(call string, action specs.LinuxSeccompAction) *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno,
		Syscalls:      []specs.LinuxSyscall{{Names: []string{call, "exit_group"}, Action: action}},
	}
}

func TestErrorsAreThoseOfLibcontainer(t *testing.T) {
	for want, e := range map[string]*Error{
		`exec: "x": executable file not found in $PATH`:  {step: stepNotFound, name: "x", errno: unix.ENOENT},
		`exec: "/x": stat /x: no such file or directory`: {step: stepStat, name: "/x", errno: unix.ENOENT},
		`exec /x: exec format error`:                     {step: stepExec, name: "x", detail: "/x", errno: unix.ENOEXEC},
		`chdir to cwd ("/w") set in config.json failed: ` +
			`no such file or directory`: {step: stepCWD, detail: "/w", errno: unix.ENOENT},
		"error setting rlimit type 7: no such process": {step: stepRlimit, arg: 7, errno: unix.ESRCH},
		"step 999: invalid argument":                   {step: 999, errno: unix.EINVAL},
	} {
		if e.Error() != want || !errors.Is(e, e.errno) {
			t.Errorf("got %s, expected %s", e, want)
		}
	}
}
