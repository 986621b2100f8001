// Package marks lets the keeper know when an init of libcontainer came to which of its stages, of which libcontainer
// tells nothing: the init writes the time of each into memory that it shares with the keeper. It costs a start some
// system calls and waits for nothing. Whatever goes wrong in it means that there are no marks, and nothing else.
//
// It is not where durations are made of them, and has no part in the start.
package marks

// #cgo CFLAGS: -Wall -Wextra -O2
// #cgo LDFLAGS: -Wl,--wrap=clone
// #include "marks.h"
import "C"

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// FD is the descriptor that the area has in the keeper: an init finds it by this number.
const FD = C.MARKS_FD

const (
	slots    = C.MARKS_SLOTS
	slotSize = C.sizeof_struct_marks_slot
)

// Marks are when an init came to its stages, in nanoseconds of CLOCK_MONOTONIC; 0 for one that it did not come to, such
// as Seccomp without a profile.
type Marks struct {
	// Executed: libcontainer's program runs. Bootstrapped: it is in the cgroup and was told what namespaces to make.
	// Namespaced: it is in them. Began: its Go runs. Seccomp: all is set up but the filter. Exported: libseccomp knows all
	// rules of it.
	Executed, Bootstrapped, Namespaced, Began, Seccomp, Exported int64
}

// Area is what the init processes write to. Its methods may be called at the same time; those of a nil Area do nothing.
type Area struct{ file *os.File }

// Open makes an area with the descriptor FD, for every process that this one executes as "init".
func Open() (*Area, error) {
	fd, err := unix.MemfdCreate(C.MARKS_NAME, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make memory for marks: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, C.MARKS_SIZE); err != nil {
		return nil, fmt.Errorf("make memory for marks: %w", err)
	}
	// Whoever gets hold of it must not shrink it below an init that has it mapped.
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return nil, fmt.Errorf("seal memory for marks: %w", err)
	}
	if _, err := unix.FcntlInt(FD, unix.F_GETFD, 0); err == nil {
		return nil, fmt.Errorf("keep marks: descriptor %d is in use", FD)
	}
	if err := unix.Dup3(fd, FD, unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("keep marks: %w", err)
	}
	return &Area{file: os.NewFile(FD, C.MARKS_NAME)}, nil
}

// Of returns the marks of the init with a pid of this process's namespace, none if it left none or they were
// overwritten by those of another.
func (a *Area) Of(pid int) (m Marks, ok bool) {
	if a == nil {
		return m, false
	}
	slot := make([]byte, slotSize)
	if _, err := a.file.ReadAt(slot, int64(pid%slots)*slotSize); err != nil {
		return m, false
	}
	if int(binary.NativeEndian.Uint32(slot)) != pid {
		return m, false
	}
	for i, at := range []*int64{&m.Executed, &m.Bootstrapped, &m.Namespaced, &m.Began, &m.Seccomp, &m.Exported} {
		*at = int64(binary.NativeEndian.Uint64(slot[8+8*i:]))
	}
	return m, true
}

// Now is CLOCK_MONOTONIC in nanoseconds.
func Now() int64 {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // it cannot fail
	return now.Nano()
}

// Begin is called by an init when its Go runs. It does nothing in a process whose parent has no area.
func Begin() {
	// /proc is still the keeper's, so this is the pid that the keeper knows and not that of the new namespace.
	self, err := os.Readlink("/proc/self")
	if err != nil {
		return
	}
	if pid, err := strconv.ParseUint(self, 10, 32); err == nil {
		C.marks_begin(C.uint32_t(pid))
	}
}
