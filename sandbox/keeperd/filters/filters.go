// Package filters keeps compiled seccomp filters, so that the init of a container does not make its own: of the time that a
// start takes, libseccomp's list of rules and its code generator are the largest single part. libcontainer calls libseccomp
// in the init and has no way to be handed a program, so this package stands between the two, where the linker lets it. It
// notes the calls that make up a filter. As long as they are those of a filter that was made before, a rule gets the answer
// that it got then and is not added, and when the program is asked for, it is the one of then. At the first difference the
// rules are added after all, and libseccomp goes on alone. All calls of libseccomp 2.5 that read or change a filter stand
// between the two; those that libcontainer does not use make a filter that is not looked up. When libcontainer comes to use
// what 2.6 added (seccomp_export_bpf_mem, seccomp_precompute, transactions), those have to be added here.
//
// It is not a compiler and never loads a filter.
package filters

// #cgo pkg-config: libseccomp
// #cgo CFLAGS: -Wall -Wextra -O2
// #cgo LDFLAGS: -Wl,--wrap=seccomp_init -Wl,--wrap=seccomp_arch_add -Wl,--wrap=seccomp_attr_set
// #cgo LDFLAGS: -Wl,--wrap=seccomp_rule_add_array -Wl,--wrap=seccomp_rule_add_exact_array -Wl,--wrap=seccomp_export_bpf
// #cgo LDFLAGS: -Wl,--wrap=seccomp_load -Wl,--wrap=seccomp_export_pfc -Wl,--wrap=seccomp_reset -Wl,--wrap=seccomp_merge
// #cgo LDFLAGS: -Wl,--wrap=seccomp_arch_remove -Wl,--wrap=seccomp_syscall_priority
// #include "filters.h"
import "C"

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// FD is the descriptor that the cache has in the keeper: an init finds it by this number.
const FD = C.FILTERS_FD

// MaxFilters is how many filters a cache holds.
const MaxFilters = C.FILTERS_MAX

const (
	magic      = C.FILTERS_MAGIC
	maxEntries = MaxFilters
	size       = C.FILTERS_SIZE
	headerSize = 16
	entrySize  = 16

	countOffset = 8 // in the header
)

// sealed is what nobody may do with the memory any more, but write to it by a mapping from before: an init has it mapped,
// and a container may look into its first process while that still is one.
const sealed = unix.F_SEAL_FUTURE_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// Cache is what the init processes read. The methods may be called at the same time.
type Cache struct {
	mu     sync.Mutex
	memory []byte // the only mapping that can be written to
	count  uint32
	end    uint32
}

// Open makes an empty cache with the descriptor FD, for every process that this one executes as "init" to read. It needs
// Linux 5.1.
func Open() (*Cache, error) {
	fd, err := unix.MemfdCreate(C.FILTERS_NAME, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make memory for seccomp filters: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, size); err != nil {
		return nil, fmt.Errorf("make memory for seccomp filters: %w", err)
	}
	memory, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map memory for seccomp filters: %w", err)
	}
	if err := share(fd); err != nil {
		_ = unix.Munmap(memory)
		return nil, err
	}
	binary.NativeEndian.PutUint64(memory, magic)
	return &Cache{memory: memory, end: headerSize + maxEntries*entrySize}, nil
}

// share seals the memory and gives it the descriptor FD.
func share(fd int) error {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, sealed); err != nil {
		return fmt.Errorf("seal memory for seccomp filters: %w", err)
	}
	if _, err := unix.FcntlInt(FD, unix.F_GETFD, 0); err == nil {
		return fmt.Errorf("keep seccomp filters: descriptor %d is in use", FD)
	}
	if err := unix.Dup3(fd, FD, unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("keep seccomp filters: %w", err)
	}
	return nil
}

// Close gives the memory back.
func (c *Cache) Close() error { return errors.Join(unix.Close(FD), unix.Munmap(c.memory)) }

// Recording is what a recording process wrote (see Record): the length of the calls that make a filter, the calls, and its
// program.
type Recording []byte

func (r Recording) split() (calls, program []byte, err error) {
	if len(r) < 4 {
		return nil, nil, fmt.Errorf("read recorded filter: %d bytes", len(r))
	}
	n, body := binary.NativeEndian.Uint32(r), r[4:]
	if uint64(n) >= uint64(len(body)) {
		return nil, nil, fmt.Errorf("read recorded filter: %d bytes of calls in %d", n, len(body))
	}
	return body[:n], body[n:], nil
}

// For returns a recording in which the calls of r make the program of another.
func (r Recording) For(other Recording) Recording {
	calls, _, err := r.split()
	_, program, oerr := other.split()
	if err != nil || oerr != nil {
		return nil // Add says what is wrong
	}
	return slices.Concat(r[:4], calls, program)
}

// Add keeps the program of a filter. A cache that is full takes no more: a node has a handful of profiles.
func (c *Cache) Add(r Recording) error {
	calls, program, err := r.split()
	if err != nil {
		return err
	}
	body := r[4:]
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count == maxEntries || uint64(c.end)+uint64(len(body)) > size {
		return fmt.Errorf("keep seccomp filter: the cache is full with %d", c.count)
	}
	copy(c.memory[c.end:], body)
	entry := c.memory[headerSize+c.count*entrySize:]
	for i, v := range []uint32{c.end, uint32(len(calls)), uint32(len(program)), 0} {
		binary.NativeEndian.PutUint32(entry[4*i:], v)
	}
	c.count++
	c.end += uint32(len(body))
	// The count goes last: a process that reads now sees the entry whole or not at all.
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&c.memory[countOffset])), c.count)
	return nil
}

// Len returns how many filters there are.
func (c *Cache) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return int(c.count)
}

// Record makes this process one that compiles a filter for the cache: when libseccomp is asked for the program, the
// process writes the calls and the program to f and exits.
func Record(f *os.File) { C.filters_record(C.int(f.Fd())) }
