package stage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Program is the compiled filter of a seccomp profile.
type Program struct {
	flags  uint32
	filter []byte
}

// filterSize is the size of one instruction, struct sock_filter.
const filterSize = 8

// Programs compiles each profile once. The zero value is ready, for use by several goroutines.
type Programs struct {
	mu   sync.Mutex
	have map[[sha256.Size]byte]*compilation
}

type compilation struct {
	done    chan struct{}
	program *Program
	err     error
}

// maxPrograms bounds the memory: a node has one profile or a few.
const maxPrograms = 64

// Compile returns the filter of a profile, nil for a profile that filters nothing. It is compiled by another process,
// since to learn what libcontainer loads one has to let it load; see CompilerMain.
func (p *Programs) Compile(ctx context.Context, profile *specs.LinuxSeccomp) (*Program, error) {
	if profile == nil || (profile.DefaultAction == "" && len(profile.Syscalls) == 0) {
		return nil, nil
	}
	text, err := json.Marshal(profile)
	if err != nil {
		return nil, fmt.Errorf("encode seccomp profile: %w", err)
	}
	key := sha256.Sum256(text)
	p.mu.Lock()
	c := p.have[key]
	if c == nil {
		if p.have == nil || len(p.have) >= maxPrograms {
			p.have = map[[sha256.Size]byte]*compilation{}
		}
		c = &compilation{done: make(chan struct{})}
		p.have[key] = c
		go p.compile(key, c, text)
	}
	p.mu.Unlock()
	select {
	case <-c.done:
		return c.program, c.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// compile fills in c; one that failed is tried again by who comes next.
func (p *Programs) compile(key [sha256.Size]byte, c *compilation, profile []byte) {
	defer close(c.done)
	c.program, c.err = runCompiler(context.Background(), profile)
	if c.err == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.have[key] == c {
		delete(p.have, key)
	}
}

// Compile has a process say which filter libcontainer loads for a profile: one of CompilerVerb, with the arguments given
// before it.
func Compile(ctx context.Context, profile *specs.LinuxSeccomp, args ...string) (*Program, error) {
	text, err := json.Marshal(profile)
	if err != nil {
		return nil, fmt.Errorf("encode seccomp profile: %w", err)
	}
	return runCompiler(ctx, text, args...)
}

func runCompiler(ctx context.Context, profile []byte, args ...string) (*Program, error) {
	ctx, cancel := context.WithTimeout(ctx, compilerTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append(args, CompilerVerb)...)
	cmd.Stdin = bytes.NewReader(profile)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("compile seccomp profile: %w: %s", err, bytes.TrimSpace(said.Bytes()))
	}
	if len(out) < 4+filterSize || len(out)%filterSize != 4 {
		return nil, fmt.Errorf("compile seccomp profile: %d bytes", len(out))
	}
	return &Program{flags: binary.NativeEndian.Uint32(out), filter: slices.Clone(out[4:])}, nil
}

// Equal says whether two programs are the same, to the byte.
func (p *Program) Equal(other *Program) bool {
	return p.flags == other.flags && bytes.Equal(p.filter, other.filter)
}

// Notifies says that system calls are to be told to a listener.
func Notifies(profile *specs.LinuxSeccomp) bool {
	if profile == nil {
		return false
	}
	return profile.ListenerPath != "" || profile.DefaultAction == specs.ActNotify ||
		slices.ContainsFunc(profile.Syscalls, func(s specs.LinuxSyscall) bool { return s.Action == specs.ActNotify })
}
