package filters

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	libseccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"
)

// The test binary is also the init that asks for a program and the process that records one: like the keeper's.
func TestMain(m *testing.M) {
	if len(os.Args) < 3 || os.Args[1] != "init" && os.Args[1] != "record" {
		os.Exit(m.Run())
	}
	if os.Args[1] == "record" {
		Record(os.Stdout)
	}
	if err := export(os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
}

// variants are filters that differ from the first in one thing each.
var variants = []string{"", "action", "arch", "log", "call", "arguments", "value", "exact", "fewer", "late"}

// unknown are those that are made with calls that libcontainer does not use: they have no place in the cache.
var unknown = []string{"shown", "priority"}

// export makes a filter and writes its program to standard output.
func export(variant string) error {
	action := libseccomp.ActErrno.SetReturnCode(1)
	if variant == "action" {
		action = libseccomp.ActErrno.SetReturnCode(2)
	}
	if variant == "second" {
		if err := first(action); err != nil {
			return err
		}
	}
	f, err := libseccomp.NewFilter(action)
	if err != nil {
		return err
	}
	if variant == "arch" {
		err = f.AddArch(libseccomp.ArchX86)
	}
	if err == nil && variant == "log" {
		err = f.SetLogBit(true)
	}
	for call := range libseccomp.ScmpSyscall(40) {
		if err == nil && !(variant == "fewer" && call == 39) {
			err = f.AddRule(call, libseccomp.ActAllow)
		}
	}
	if err == nil && variant == "call" {
		err = f.AddRule(41, libseccomp.ActAllow)
	}
	var value uint64 = 5
	if variant == "value" {
		value = 6
	}
	condition, cerr := libseccomp.MakeCondition(1, libseccomp.CompareEqual, value)
	add := f.AddRuleConditional
	if variant == "exact" {
		add = f.AddRuleConditionalExact
	}
	if err == nil && variant == "late" {
		err = f.SetLogBit(true)
	}
	if err == nil && variant == "priority" {
		err = f.SetSyscallPriority(7, 200)
	}
	if err == nil && cerr == nil && variant != "arguments" {
		err = add(50, libseccomp.ActAllow, []libseccomp.ScmpCondition{condition})
	}
	if err != nil || cerr != nil {
		return fmt.Errorf("%w, %w", err, cerr)
	}
	if variant == "shown" {
		if err := f.ExportPFC(os.Stdout); err != nil {
			return err
		}
	}
	return f.ExportBPF(os.Stdout)
}

// first begins a filter and leaves it.
func first(action libseccomp.ScmpAction) error {
	f, err := libseccomp.NewFilter(action)
	if err != nil {
		return err
	}
	return f.AddRule(0, libseccomp.ActAllow)
}

// command does not wait for the race detector's goroutines at its end, as it would for a second.
func command(mode, variant string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", mode, variant)
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	return cmd
}

func run(t *testing.T, mode, variant string) []byte {
	t.Helper()
	cmd := command(mode, variant)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", mode, variant, err, stderr.String())
	}
	return out
}

func program(recording []byte) []byte { return recording[4+binary.NativeEndian.Uint32(recording):] }

func TestAnInitGetsTheProgramOfItsOwnCalls(t *testing.T) {
	compiled := map[string][]byte{}
	for _, v := range variants {
		compiled[v] = run(t, "init", v) // there is no cache yet
	}
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	recording := run(t, "record", "")
	if !bytes.Equal(program(recording), compiled[""]) {
		t.Error("the recorded program is another than the compiled one")
	}
	// The cache has a program that no compiler makes, to tell where an answer comes from.
	marked := append([]byte(nil), recording...)
	copy(program(marked), "from the cache")
	if err := c.Add(marked); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "init", ""); !bytes.Equal(got, program(marked)) {
		t.Error("the cache was not used")
	}
	for _, v := range variants[1:] {
		if got := run(t, "init", v); !bytes.Equal(got, compiled[v]) {
			t.Errorf("%s: got the program of another filter", v)
		}
	}
}

// A rule that is known is not added: its answer is the recorded one.
func TestARuleIsAnswered(t *testing.T) {
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	recording := run(t, "record", "")
	const callSize, argumentSize = 20, 32
	last := program(recording)
	last = recording[len(recording)-len(last)-callSize-argumentSize:]
	if kind, result := binary.NativeEndian.Uint32(last), binary.NativeEndian.Uint32(last[4:]); kind != 'r' || result != 0 {
		t.Fatalf("the last call is %c with %d", rune(kind), result)
	}
	binary.NativeEndian.PutUint32(last[4:], ^uint32(unix.EXDEV)+1)
	if err := c.Add(recording); err != nil {
		t.Fatal(err)
	}
	out, err := command("init", "").CombinedOutput()
	if err == nil || !strings.Contains(string(out), unix.EXDEV.Error()) {
		t.Errorf("got %v, %q", err, out)
	}
	for _, v := range variants[1:] {
		run(t, "init", v)
	}
}

func TestUnknownCallsMakeAFilterOfTheirOwn(t *testing.T) {
	want := map[string][]byte{}
	for _, v := range unknown {
		want[v] = run(t, "init", v)
	}
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Add(run(t, "record", "")); err != nil {
		t.Fatal(err)
	}
	for _, v := range unknown {
		if got := run(t, "init", v); !bytes.Equal(got, want[v]) {
			t.Errorf("%s: got %d bytes, want %d", v, len(got), len(want[v]))
		}
		if err := command("record", v).Run(); err == nil {
			t.Errorf("%s was recorded", v)
		}
	}
}

// A filter whose rules were only answered is not there any more when a second one is begun: it would allow too little, or
// too much.
func TestASecondFilterEndsAProcessThatOwesTheFirst(t *testing.T) {
	run(t, "init", "second") // without a cache nothing is owed
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	run(t, "init", "second")
	if err := c.Add(run(t, "record", "")); err != nil {
		t.Fatal(err)
	}
	out, err := command("init", "second").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "SIGABRT") {
		t.Errorf("got %v, %q", err, out)
	}
}

func TestManyFilters(t *testing.T) {
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, v := range variants {
		if err := c.Add(run(t, "record", v)); err != nil {
			t.Fatal(err)
		}
	}
	if c.Len() != len(variants) {
		t.Errorf("%d filters, want %d", c.Len(), len(variants))
	}
	for _, v := range variants {
		if got := run(t, "init", v); !bytes.Equal(got, program(run(t, "record", v))) {
			t.Errorf("%q: got another program than the one compiled", v)
		}
	}
}

func TestABadOrSuperfluousRecordingIsRefused(t *testing.T) {
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, recording := range [][]byte{nil, {1, 0}, {9, 0, 0, 0, 1, 2}, {2, 0, 0, 0, 1, 2}} {
		if err := c.Add(recording); err == nil {
			t.Errorf("%v was taken", recording)
		}
	}
	for range maxEntries {
		if err := c.Add([]byte{1, 0, 0, 0, 7, 8}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Add([]byte{1, 0, 0, 0, 7, 8}); err == nil {
		t.Error("more was taken than there is room for")
	}
}

// What an init has mapped can be opened again by who may look into it: that must not be a way to change it.
func TestNobodyElseWritesToTheCache(t *testing.T) {
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	recording := run(t, "record", "")
	if err := c.Add(recording); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", FD), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("mine"), headerSize); !errors.Is(err, unix.EPERM) {
		t.Errorf("write: %v", err)
	}
	memory, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err == nil {
		_ = unix.Munmap(memory)
	}
	if !errors.Is(err, unix.EPERM) {
		t.Errorf("map: %v", err)
	}
	if err := f.Truncate(0); !errors.Is(err, unix.EPERM) {
		t.Errorf("truncate: %v", err)
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, size); !errors.Is(err, unix.EPERM) {
		t.Errorf("punch a hole: %v", err)
	}
	if got := run(t, "init", ""); !bytes.Equal(got, program(recording)) {
		t.Error("the cache is another")
	}
}

func TestTheCacheNeedsItsDescriptor(t *testing.T) {
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(); err == nil {
		t.Error("a second cache took the descriptor of the first")
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}
