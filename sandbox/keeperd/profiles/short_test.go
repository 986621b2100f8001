package profiles

import (
	"crypto/sha256"
	"fmt"
	"reflect"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	libseccomp "github.com/seccomp/libseccomp-golang"
)

func TestOnlyWhatCannotDoHarmIsShortened(t *testing.T) {
	var names []string
	for n := range libseccomp.ScmpSyscall(100) {
		name, err := n.GetName()
		if err == nil {
			names = append(names, name)
		}
	}
	sum := sha256.Sum256([]byte("x"))
	for _, test := range []struct {
		name   string
		change func(*specs.LinuxSeccomp)
		short  bool
	}{
		{"as it is", func(*specs.LinuxSeccomp) {}, true},
		{"kills", func(p *specs.LinuxSeccomp) { p.DefaultAction = specs.ActKillProcess }, true},
		{"allows by default", func(p *specs.LinuxSeccomp) { p.DefaultAction = specs.ActAllow }, false},
		{"logs by default", func(p *specs.LinuxSeccomp) { p.DefaultAction = specs.ActLog }, false},
		{"no default", func(p *specs.LinuxSeccomp) { p.DefaultAction = "" }, false},
		{"few rules", func(p *specs.LinuxSeccomp) { p.Syscalls[0].Names = names[:worthIt-1] }, false},
		{"tells a listener", func(p *specs.LinuxSeccomp) { p.Syscalls[0].Action = specs.ActNotify }, false},
		{"unknown calls only", func(p *specs.LinuxSeccomp) { p.Syscalls[0].Names = slices.Repeat([]string{"nosuch"}, 50) }, false},
		{"unknown architecture", func(p *specs.LinuxSeccomp) { p.Architectures = []specs.Arch{"SCMP_ARCH_NOSUCH"} }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			ret := uint(38)
			long := &specs.LinuxSeccomp{
				DefaultAction: specs.ActErrno, DefaultErrnoRet: &ret, Architectures: []specs.Arch{specs.ArchAARCH64},
				Flags:    []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog},
				Syscalls: []specs.LinuxSyscall{{Names: names, Action: specs.ActAllow}},
			}
			test.change(long)
			before := fmt.Sprint(long)
			short := shorten(long, sum)
			if fmt.Sprint(long) != before {
				t.Error("the profile was changed")
			}
			if (short != nil) != test.short {
				t.Fatalf("short form %v", short)
			}
			if short == nil {
				return
			}
			if reflect.DeepEqual(short, shorten(long, sha256.Sum256([]byte("y")))) {
				t.Error("another profile has the same short form")
			}
			short.Syscalls, long.Syscalls = nil, nil
			if !reflect.DeepEqual(short, long) {
				t.Errorf("more than the rules is different: %v, %v", short, long)
			}
		})
	}
}
