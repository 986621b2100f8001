package profiles

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	libseccomp "github.com/seccomp/libseccomp-golang"

	"github.com/opencontainers/runc/libcontainer/seccomp"

	"github.com/gantry-cri/gantry/sandbox/keeperd/stage"
)

// worthIt is from how many names on a profile gets a short form.
const worthIt = 32

// denials are the default actions of profiles that get a short form. Should an init ever load the short form itself, it
// allows next to nothing, and the container does not start. Of a profile that allows by default it would be none at all.
var denials = []specs.LinuxSeccompAction{
	specs.ActErrno, specs.ActKill, specs.ActKillThread, specs.ActKillProcess, specs.ActTrap,
}

// shorten returns a profile of which libcontainer makes the same as of the given one, its rules apart: they are those of
// the highest calls, past which libcontainer answers ENOSYS (its package patchbpf), and one that has the checksum for the
// values of its arguments. It returns nil when there is none, or none is needed.
func shorten(profile *specs.LinuxSeccomp, sum [sha256.Size]byte) *specs.LinuxSeccomp {
	names := 0
	for _, s := range profile.Syscalls {
		names += len(s.Names)
	}
	if names < worthIt || !slices.Contains(denials, profile.DefaultAction) || stage.Notifies(profile) {
		return nil
	}
	highest := highestCalls(profile)
	if highest == nil {
		return nil
	}
	mark := specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActAllow}
	for i := range uint(6) {
		value := binary.BigEndian.Uint32(sum[4*i:])
		mark.Args = append(mark.Args, specs.LinuxSeccompArg{Index: i, Value: uint64(value), Op: specs.OpEqualTo})
	}
	short := *profile
	short.Syscalls = []specs.LinuxSyscall{mark, {Names: highest, Action: specs.ActAllow}}
	return &short
}

// highestCalls names the call with the highest number on each architecture of the profile, nil if one has none.
func highestCalls(profile *specs.LinuxSeccomp) (names []string) {
	native, err := libseccomp.GetNativeArch()
	if err != nil {
		return nil
	}
	archs := []libseccomp.ScmpArch{native}
	for _, a := range profile.Architectures {
		name, err := seccomp.ConvertStringToArch(string(a))
		if err != nil {
			return nil
		}
		arch, err := libseccomp.GetArchFromString(name)
		if err != nil {
			return nil
		}
		archs = append(archs, arch)
	}
	for _, arch := range archs {
		name := highestCall(profile, arch)
		if name == "" {
			return nil
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func highestCall(profile *specs.LinuxSeccomp, arch libseccomp.ScmpArch) (name string) {
	var highest libseccomp.ScmpSyscall
	for _, s := range profile.Syscalls {
		for _, n := range s.Names {
			number, err := libseccomp.GetSyscallFromNameByArch(n, arch)
			if err == nil && number > highest {
				name, highest = n, number
			}
		}
	}
	return name
}
