// Package stage starts a command in a running container at the cost of a C program: the keeper executes its own binary,
// in which the command's process turns into what the command is to be, in C, before any C library or Go runtime starts.
// It is what libcontainer does with a second start of the whole program, for the common case; Unsupported names the
// others. It knows how to start, not what becomes of the process: that is the keeper's.
//
// The seccomp filter of a profile is compiled once and then loaded as it is (Program).
package stage

// #cgo CFLAGS: -Wall -Wextra -O2 -fno-stack-protector
// #cgo LDFLAGS: -Wl,-e,gantrystart
// #include "stage.h"
import "C"

import (
	"errors"
	"fmt"
	"os"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/opencontainers/runc/libcontainer/exeseal"
)

// Launcher holds what all starts share. It is for use by several goroutines.
type Launcher struct {
	// dir is where a sealed copy of the binary is made if the kernel cannot do without.
	dir string

	open func() error
	exe  *os.File
	null *os.File
}

// NewLauncher returns a launcher that opens nothing before it is used. dir is a directory for a temporary file.
func NewLauncher(dir string) *Launcher {
	l := &Launcher{dir: dir}
	l.open = sync.OnceValue(l.prepare)
	return l
}

// Unsupported says why a container's commands cannot be started in this way, nil if they can.
func (l *Launcher) Unsupported(spec *specs.Spec) error {
	if err := l.open(); err != nil {
		return err
	}
	return uncommon(spec)
}

// prepare opens what every start needs. The binary is sealed, since a container may get hold of it by /proc/<pid>/exe
// (CVE-2019-5736), and since it is used again it must be of a kind that nobody can open for writing.
func (l *Launcher) prepare() error {
	if err := unix.CloseRange(^uint(0)>>32, ^uint(0)>>32, 0); err != nil {
		return fmt.Errorf("close_range: %w: expected Linux 5.9 or later", err)
	}
	exe, err := exeseal.CloneSelfExe(l.dir)
	if err != nil {
		return fmt.Errorf("seal binary: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(exe.Fd()), &fs); err != nil || (fs.Type != unix.OVERLAYFS_SUPER_MAGIC && !exeseal.IsCloned(exe)) {
		_ = exe.Close()
		return errors.Join(errors.New("seal binary: neither a sealed memfd nor an overlay is to be had"), err)
	}
	if l.null, err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err != nil {
		_ = exe.Close()
		return err
	}
	l.exe = exe
	return nil
}

// uncommon finds what only libcontainer does.
func uncommon(spec *specs.Spec) error {
	p, linux := spec.Process, spec.Linux
	flags := namespaces(linux)
	nproc := false
	for _, r := range p.Rlimits {
		nproc = nproc || r.Type == "RLIMIT_NPROC"
	}
	switch {
	case p.Scheduler != nil, p.IOPriority != nil, p.ExecCPUAffinity != nil:
		return errors.New("the process has scheduling attributes")
	case linux.Personality != nil, linux.MemoryPolicy != nil, linux.IntelRdt != nil, len(linux.TimeOffsets) > 0:
		return errors.New("the container has a personality, a memory policy, RDT or a time of its own")
	case flags&unix.CLONE_NEWNS == 0, flags&unix.CLONE_NEWTIME != 0:
		return errors.New("the container has unusual namespaces")
	case nproc && flags&unix.CLONE_NEWUSER != 0:
		return errors.New("the number of processes is limited in a user namespace")
	case Notifies(linux.Seccomp):
		return errors.New("the seccomp filter has a listener")
	}
	return nil
}

var namespaceFlags = map[specs.LinuxNamespaceType]uint32{
	specs.PIDNamespace: unix.CLONE_NEWPID, specs.NetworkNamespace: unix.CLONE_NEWNET,
	specs.MountNamespace: unix.CLONE_NEWNS, specs.IPCNamespace: unix.CLONE_NEWIPC, specs.UTSNamespace: unix.CLONE_NEWUTS,
	specs.UserNamespace: unix.CLONE_NEWUSER, specs.CgroupNamespace: unix.CLONE_NEWCGROUP,
	specs.TimeNamespace: unix.CLONE_NEWTIME,
}

// namespaces returns the flags of the namespaces that the container does not share with the keeper.
func namespaces(linux *specs.Linux) (flags uint32) {
	for _, ns := range linux.Namespaces {
		flags |= namespaceFlags[ns.Type]
	}
	return flags
}
