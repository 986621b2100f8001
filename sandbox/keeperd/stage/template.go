package stage

// #include "stage.h"
import "C"

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Template is what all commands of one container have in common. It does not change.
type Template struct {
	fixed   C.struct_request
	env     []string
	groups  []uint32
	limits  []uint64
	program *Program
	// keyring, score, label, profile and cwd may be empty, for none.
	cwd, keyring, score, label, profile string
}

// NewTemplate returns the template of a container with that id and OCI spec, which must not be Unsupported. program is
// the compiled filter of the spec's seccomp profile, nil for none.
func NewTemplate(id string, spec *specs.Spec, program *Program) (*Template, error) {
	p := spec.Process
	t := &Template{
		groups: p.User.AdditionalGids, program: program,
		cwd: p.Cwd, keyring: "_ses." + id, label: p.SelinuxLabel, profile: p.ApparmorProfile,
	}
	t.fixed.namespaces = C.uint32_t(namespaces(spec.Linux))
	t.fixed.uid, t.fixed.gid = C.uint32_t(p.User.UID), C.uint32_t(p.User.GID)
	if p.User.Umask != nil {
		t.fixed.flags |= C.FLAG_UMASK
		t.fixed.umask = C.uint32_t(*p.User.Umask)
	}
	if p.NoNewPrivileges {
		t.fixed.flags |= C.FLAG_NO_NEW_PRIVS
	}
	if p.OOMScoreAdj != nil {
		t.score = strconv.Itoa(*p.OOMScoreAdj)
	}
	if program != nil {
		t.fixed.flags |= C.FLAG_SECCOMP
		t.fixed.seccomp_flags = C.uint32_t(program.flags)
		t.fixed.seccomp_count = C.uint32_t(len(program.filter) / filterSize)
	}
	if err := t.setCapabilities(p.Capabilities); err != nil {
		return nil, err
	}
	for _, r := range p.Rlimits {
		resource, ok := Rlimits[r.Type]
		if !ok {
			return nil, fmt.Errorf("rlimit %q: expected a name such as RLIMIT_NOFILE", r.Type)
		}
		t.limits = append(t.limits, uint64(resource), r.Soft, r.Hard)
	}
	return t, t.setEnv(p.Env)
}

// supported are the capabilities of the kernel by their names in the OCI spec.
var supported = sync.OnceValues(func() (map[string]capability.Cap, error) {
	list, err := capability.ListSupported()
	if err != nil {
		return nil, fmt.Errorf("list capabilities: %w", err)
	}
	caps := map[string]capability.Cap{}
	for _, c := range list {
		caps["CAP_"+strings.ToUpper(c.String())] = c
	}
	return caps, nil
})

// setCapabilities passes over those that the kernel does not know.
func (t *Template) setCapabilities(c *specs.LinuxCapabilities) error {
	if c == nil {
		return nil
	}
	known, err := supported()
	if err != nil {
		return err
	}
	set := func(names []string) (mask C.uint64_t) {
		for _, name := range names {
			if n, ok := known[name]; ok {
				mask |= 1 << uint(n)
			}
		}
		return mask
	}
	t.fixed.flags |= C.FLAG_CAPABILITIES
	t.fixed.bounding, t.fixed.effective, t.fixed.permitted = set(c.Bounding), set(c.Effective), set(c.Permitted)
	t.fixed.inheritable, t.fixed.ambient = set(c.Inheritable), set(c.Ambient)
	return nil
}

// flagHome asks for a HOME to be looked up.
const flagHome = C.FLAG_HOME

// setEnv keeps the last of several variables of one name, in its place. An empty HOME counts as none, and one that is
// missing is filled in where the container's passwd file can be seen.
func (t *Template) setEnv(env []string) error {
	last := map[string]int{}
	for i, v := range env {
		name, value, ok := strings.Cut(v, "=")
		switch {
		case !ok:
			return errors.New("invalid environment variable: missing '='")
		case name == "":
			return errors.New("invalid environment variable: name cannot be empty")
		case strings.Contains(v, "\x00"):
			return fmt.Errorf("invalid environment variable %q: contains nul byte (\\x00)", name)
		}
		last[name] = i
		if name == "HOME" && value == "" {
			last[name] = -1
		}
	}
	for i, v := range env {
		if name, _, _ := strings.Cut(v, "="); last[name] == i {
			t.env = append(t.env, v)
		}
	}
	if i, ok := last["HOME"]; !ok || i < 0 {
		t.fixed.flags |= flagHome
	}
	return nil
}

// Rlimits are the numbers of the limits by their names in the OCI spec.
var Rlimits = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
	"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
	"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

// encode makes the message that the stage reads: struct request and what it points to.
func (t *Template) encode(c *Command) []byte {
	r := t.fixed
	e := encoder{b: make([]byte, unsafe.Sizeof(r), 4096)}
	env := t.env
	if c.Terminal {
		r.flags |= C.FLAG_TERMINAL
		if !hasTerm(env) {
			env = append(env[:len(env):len(env)], "TERM=xterm")
		}
	}
	r.groups, r.group_count = e.place(), C.uint32_t(len(t.groups))
	for _, g := range t.groups {
		e.b = binary.NativeEndian.AppendUint32(e.b, g)
	}
	r.rlimits, r.rlimit_count = e.place(), C.uint32_t(len(t.limits)/3)
	for _, n := range t.limits {
		e.b = binary.NativeEndian.AppendUint64(e.b, n)
	}
	if t.program != nil {
		r.seccomp = e.place()
		e.b = append(e.b, t.program.filter...)
	}
	var tasks []string
	for _, dir := range c.Cgroups {
		tasks = append(tasks, dir+"/tasks")
	}
	r.cgroups, r.cgroup_count = e.strings(tasks)
	r.unified = e.string(c.Unified)
	r.args, r.arg_count = e.strings(c.Args)
	r.env, r.env_count = e.strings(env)
	r.cwd, r.keyring, r.oom_score = e.string(t.cwd), e.string(t.keyring), e.string(t.score)
	r.label, r.apparmor = e.string(t.label), e.string(t.profile)
	r.size = C.uint32_t(len(e.b))
	copy(e.b, unsafe.Slice((*byte)(unsafe.Pointer(&r)), unsafe.Sizeof(r)))
	return e.b
}

func hasTerm(env []string) bool {
	for _, v := range env {
		if strings.HasPrefix(v, "TERM=") {
			return true
		}
	}
	return false
}

type encoder struct{ b []byte }

// place returns the offset of what is appended next.
func (e *encoder) place() C.uint32_t {
	for len(e.b)%8 != 0 {
		e.b = append(e.b, 0)
	}
	return C.uint32_t(len(e.b))
}

func (e *encoder) strings(list []string) (offset, count C.uint32_t) {
	offset = e.place()
	for _, s := range list {
		e.b = append(append(e.b, s...), 0)
	}
	return offset, C.uint32_t(len(list))
}

// string returns 0 for an empty one.
func (e *encoder) string(s string) C.uint32_t {
	if s == "" {
		return 0
	}
	offset, _ := e.strings([]string{s})
	return offset
}
