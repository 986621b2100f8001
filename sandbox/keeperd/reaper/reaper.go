// Package reaper keeps the exit codes of containers whose keeper was killed. A process that is spawned with
// keeper.ReaperVariable in its environment forks at once: the parent stays and is the reaper, the child becomes the
// keeper. The reaper sleeps as long as the keeper lives. Then the keeper's children are its own, and it notes in a file
// how each of them ends, where the next keeper finds it; when all have ended, so does the reaper, as the keeper did. It
// is C that runs before the Go runtime starts, for its memory's sake.
//
// It is a net below the keeper, and nothing but exit codes depends on it: if it is killed itself, process 1 inherits the
// containers.
package reaper

// #cgo CFLAGS: -Wall -Wextra -O2
// #include "reaper.h"
import "C"

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Name is the reaper's process name.
const Name = "gantry-reaper"

// PID returns the pid of this process's reaper, or 0 if there is none (any more).
func PID() int {
	if pid := int(C.reaper_pid()); pid == os.Getppid() {
		return pid
	}
	return 0
}

// Ends is the file in which ends of processes are noted. It has a fixed number of places, and a pid is noted at its own
// modulo that: the file never grows beyond 1 MiB, and nobody has to clear it. Safe for concurrent use, and by several
// processes.
type Ends struct {
	file *os.File
}

// OpenEnds opens the file, and makes it if there is none.
func OpenEnds(path string) (*Ends, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open ends of processes: %w", err)
	}
	return &Ends{file: f}, nil
}

// endSize is the size of struct end.
const endSize = C.sizeof_struct_end

func offset(pid int) int64 { return int64(pid%C.END_SLOTS) * endSize }

// Note notes how the process ended; start is its start time as in proc_pid_stat(5). Who notes an end and then reaps the
// process can be killed at any moment between.
func (e *Ends) Note(pid int, start uint64, status unix.WaitStatus) error {
	var b [endSize]byte
	binary.NativeEndian.PutUint32(b[0:], uint32(pid))
	binary.NativeEndian.PutUint32(b[4:], uint32(status))
	binary.NativeEndian.PutUint64(b[8:], start)
	if _, err := e.file.WriteAt(b[:], offset(pid)); err != nil {
		return fmt.Errorf("note end of %d: %w", pid, err)
	}
	return nil
}

// Find returns how the process ended, if that was noted and not overwritten since by the end of another.
func (e *Ends) Find(pid int, start uint64) (unix.WaitStatus, bool) {
	var b [endSize]byte
	if _, err := e.file.ReadAt(b[:], offset(pid)); err != nil {
		return 0, false // io.EOF: none has been noted so far out
	}
	if binary.NativeEndian.Uint32(b[0:]) != uint32(pid) || binary.NativeEndian.Uint64(b[8:]) != start {
		return 0, false
	}
	return unix.WaitStatus(binary.NativeEndian.Uint32(b[4:])), true
}
