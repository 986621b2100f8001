package keeperd_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

func TestManyLayers(t *testing.T) {
	n := newNode(t)
	c := n.container(nil, "sh", "-c", "cat /layer-000 /layer-119")
	var lower []string
	for i := range 120 {
		dir := filepath.Join(n.dir, "layers", strings.Repeat("x", 60), fmt.Sprintf("%03d", i))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(fmt.Sprintf("%s/layer-%03d", dir, i), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		lower = append(lower, dir)
	}
	c.Rootfs[0].Options[0] = "lowerdir=" + strings.Join(append(lower, image), ":")
	if len(c.Rootfs[0].Options[0]) < 2*os.Getpagesize() {
		t.Fatal("too short to test anything")
	}
	c.begin()
	if s := c.wait(); s.ExitCode != 0 {
		t.Errorf("status %+v", s)
	}
	// One record, or two where the keeper found time for the first: the files are written one after the other.
	if b := c.records(); c.output("stdout") != "xx" || !strings.HasSuffix(string(b), "x\n") {
		t.Errorf("log %q", b)
	}
}

func TestReadOnlyBindRootfs(t *testing.T) {
	c := newNode(t).run(func(r *keeper.StartRequest) {
		r.Rootfs = []specs.Mount{{Type: "bind", Source: image, Options: []string{"rbind", "ro"}}}
		r.Spec.Root.Readonly = true
	}, "sh", "-c", "touch /x || exit 3")
	if s := c.wait(); s.ExitCode != 3 {
		t.Errorf("status %+v", s)
	}
	c.delete()
	if _, err := os.Stat(filepath.Join(image, "x")); err == nil {
		t.Error("the image was written to")
	}
}

// TestSharedHostMounts runs the keeper where all mounts are shared, as on a node with systemd.
func TestSharedHostMounts(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "shared-keeper")
	text := "#!/bin/sh\nexec unshare -m --propagation shared " + binary + ` "$@"` + "\n"
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	plain := binary
	binary = script
	n := newNode(t)
	binary = plain
	volume := filepath.Join(n.dir, "volume")
	if err := os.MkdirAll(volume+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	usual := usualMounts(t, dir)
	mount := func(r *keeper.StartRequest) {
		usual(r)
		r.Spec.Mounts = append(r.Spec.Mounts, specs.Mount{
			Type: "bind", Source: volume, Destination: "/volume", Options: []string{"rbind", "rslave"},
		})
	}
	c := n.run(mount, "sh", "-c", "echo up; while [ ! -e /volume/sub/late ]; do sleep 0.01; done; echo seen; sleep 1000")
	c.eventually("up", func() bool { return c.output("stdout") == "up\n" })
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", n.pid()))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(mounts), "\n") {
		if strings.Contains(line, c.ID) || strings.Contains(line, "/volume ") || strings.Contains(line, "/keeper/rootfs/") {
			t.Errorf("the host has %s", line)
		}
	}
	if !strings.Contains(string(mounts), "/keeper/rootfs ") {
		t.Errorf("the private mount is missing: %s", mounts)
	}
	// A volume that is mounted on the host after the start reaches the container.
	late := "mount -t tmpfs late " + volume + "/sub && touch " + volume + "/sub/late"
	if out, err := nsenter(n.pid(), "sh", "-c", late); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c.eventually("seen", func() bool { return c.output("stdout") == "up\nseen\n" })
	c.delete()
	if out, err := nsenter(n.pid(), "umount", volume+"/sub"); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestSeccompIsInForce(t *testing.T) {
	errno := uint(38)
	c := newNode(t).run(func(r *keeper.StartRequest) {
		r.Spec.Linux.Seccomp = &specs.LinuxSeccomp{
			DefaultAction: specs.ActAllow,
			Architectures: []specs.Arch{specs.ArchX86_64},
			Syscalls: []specs.LinuxSyscall{{
				Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno, ErrnoRet: &errno,
			}},
		}
	}, "sleep", "1000")
	if out, code := c.exec("mkdir", "/d"); code == 0 || !strings.Contains(out, "Function not implemented") {
		t.Errorf("got %q, %d", out, code)
	}
}

func TestFloodIsLoggedWhole(t *testing.T) {
	c := newNode(t).run(nil, "sh", "-c", "yes 0123456789abcdef0123456789abcdef0123456789abcdef | head -c 60000000")
	s := c.wait()
	got := c.output("stdout")
	if s.ExitCode != 0 || len(got) != 60000000 {
		t.Fatalf("%d bytes, status %+v", len(got), s)
	}
	d := s.Finished.Sub(s.Started)
	t.Logf("%.0f MB/s", 60/d.Seconds())
}

// TestUnterminatedOutputDoesNotBlock fills the FIFO without ever ending a line.
func TestUnterminatedOutputDoesNotBlock(t *testing.T) {
	c := newNode(t).run(nil, "sh", "-c", "yes x | tr -d '\\n' | dd bs=3001 count=200 iflag=fullblock 2>/dev/null; printf end")
	if s := c.wait(); s.ExitCode != 0 {
		t.Errorf("status %+v", s)
	}
	// What is printed last may be a record of its own.
	got := c.output("stdout")
	if !strings.HasSuffix(got, "xend") {
		t.Errorf("output ends with %q", got[max(0, len(got)-60):])
	}
	if len(got) != 200*3001+3 {
		t.Errorf("%d bytes", len(got))
	}
}

// TestLineInPiecesIsOneRecord writes such lines until one is a record. On a busy machine the pieces may come so long after
// each other that the first is logged as what it is then: an unterminated line.
func TestLineInPiecesIsOneRecord(t *testing.T) {
	const most = 100
	c := newNode(t).run(withStdin, "sh", "-c", "while read x; do printf one; printf ' '; sleep 0.01; echo line; done")
	cl := c.attach(keeper.AttachRequest{Stdin: true}, false)
	whole, lines := 0, 0
	for whole == 0 && lines < most {
		lines++
		_, _ = cl.Input.WriteString("\n")
		c.eventually("the line is logged", func() bool { return c.output("stdout") == strings.Repeat("one line\n", lines) })
		whole = strings.Count(string(c.records()), " F one line\n")
	}
	if whole == 0 {
		t.Errorf("of %d lines none is one record: %q", lines, c.records())
	}
}

// TestPromptIsLoggedAsAnUnterminatedLine has a line that does not end while the container lives.
func TestPromptIsLoggedAsAnUnterminatedLine(t *testing.T) {
	c := newNode(t).run(nil, "sh", "-c", "printf prompt; sleep 1000")
	c.eventually("the prompt is logged", func() bool { return c.output("stdout") == "prompt" })
	if b := c.records(); !strings.HasSuffix(string(b), " P prompt\n") {
		t.Errorf("log %q", b)
	}
}

// TestLargeWriteBehindAnUnterminatedLine is slow by seconds, each time, when the reader waits to be woken: a write that
// finds the FIFO not empty and fills it wakes nobody. On a busy machine it may be slow, but not each time; and on one that
// is always slow, not slower than behind lines that end.
func TestLargeWriteBehindAnUnterminatedLine(t *testing.T) {
	const most = 10
	n := newNode(t)
	var took, ended []time.Duration
	for quick := false; !quick && len(took) < most; {
		last := n.largeWritesBehind("prompt")
		took = append(took, last)
		if quick = last <= 4*time.Second; !quick {
			ended = append(ended, n.largeWritesBehind(`line\n`))
			quick = last <= 2*ended[len(ended)-1]
		}
	}
	if len(took) == most {
		t.Errorf("took %v, behind lines that end %v", took, ended)
	}
}

// largeWritesBehind tells how long a container takes for large writes that each follow a small one.
func (n *node) largeWritesBehind(small string) time.Duration {
	n.t.Helper()
	c := n.run(nil, "sh", "-c", fmt.Sprintf(
		"for i in 1 2 3 4 5; do printf '%s'; dd if=/dev/zero bs=300001 count=1; sleep 0.3; done 2>/dev/null", small))
	s := c.wait()
	if got, want := len(c.output("stdout")), 5*(300001+len(small)-strings.Count(small, `\`)); got != want {
		n.t.Errorf("%d bytes, expected %d", got, want)
	}
	c.delete()
	return s.Finished.Sub(s.Started)
}
