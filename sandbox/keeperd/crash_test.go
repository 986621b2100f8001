package keeperd_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// respawn starts the next keeper and hands over what the daemon kept.
func (n *node) respawn(containers ...*container) {
	n.t.Helper()
	n.spawn()
	for _, c := range containers {
		if err := n.client.Adopt(deadline(n.t), c.ID, c.proc); err != nil {
			n.t.Fatalf("adopt %s: %v", c.ID, err)
		}
	}
	if err := n.client.Settle(deadline(n.t)); err != nil {
		n.t.Fatal(err)
	}
	if hello, err := n.client.Hello(deadline(n.t), "test"); err != nil || !hello.Settled {
		n.t.Fatalf("hello: %+v, %v", hello, err)
	}
}

// wantInherited checks the exit code of a container whose keeper was killed.
func (c *container) wantInherited(code int32) {
	c.t.Helper()
	if s := c.wait(); s.ExitCode != code || s.Error != "" {
		c.t.Errorf("status %+v, expected exit code %d", s, code)
	}
}

// inBothWays has the keepers after the first learn exit codes as on this kernel, and as on one before 6.15.
func inBothWays(t *testing.T, test func(*testing.T, *node)) {
	t.Run("of the kernel", func(t *testing.T) { test(t, newNode(t)) })
	t.Run("before 6.15", func(t *testing.T) {
		n := newNode(t)
		n.program = plainKeeper(t, "-plain-exits")
		test(t, n)
	})
}

func TestNoLineIsLostInCrashes(t *testing.T) { inBothWays(t, noLineIsLostInCrashes) }

func noLineIsLostInCrashes(t *testing.T, n *node) {
	const lines = 60000
	c := n.run(nil, "sh", "-c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do i=$((i+1)); echo line $i; done; exit 11", lines))
	crashes := 0
	for s, _ := keeper.ReadStatus(c.Dir); !s.Exited() && crashes < 6; s, _ = keeper.ReadStatus(c.Dir) {
		n.crash()
		time.Sleep(20 * time.Millisecond)
		n.respawn(c)
		crashes++
		time.Sleep(60 * time.Millisecond)
	}
	c.wantInherited(11)
	// A crash between write and discard writes a batch twice: so every line is there, in order of its first time.
	next, twice := 1, 0
	for _, line := range strings.Split(strings.TrimSpace(c.output("stdout")), "\n") {
		if line == fmt.Sprintf("line %d", next) {
			next++
		} else if twice++; !slices.Contains(strings.Fields(line), "line") {
			t.Fatalf("torn: %q", line)
		}
	}
	if next != lines+1 {
		t.Errorf("line %d is missing", next)
	}
	t.Logf("%d crashes, %d lines twice", crashes, twice)
	c.delete()
}

func TestAdoptedContainerIsWhole(t *testing.T) { inBothWays(t, adoptedContainerIsWhole) }

func adoptedContainerIsWhole(t *testing.T, n *node) {
	c := n.run(nil, "sh", "-c", "trap 'echo bye; exit 12' TERM; echo up; while :; do sleep 0.02; done")
	c.eventually("up", func() bool { return c.output("stdout") == "up\n" })
	n.crash()
	n.respawn(c)
	w, err := n.client.Watch(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if e, p, err := w.Next(); err != nil || e.Live == nil || e.Live.ID != c.ID || len(p.Output) != 2 {
		t.Fatalf("got %+v, %v", e, err)
	} else if err := p.Output[0].SetReadDeadline(time.Now()); !errors.Is(err, os.ErrNoDeadline) {
		t.Errorf("Go's poller wakes the daemon for each write: %v", err)
	}
	if out, code := c.exec("echo", "in"); out != "in\n" || code != 0 {
		t.Errorf("exec: %q, %d", out, code)
	}
	if err := n.client.Kill(deadline(t), keeper.KillRequest{ID: c.ID, Signal: int(unix.SIGTERM)}); err != nil {
		t.Fatal(err)
	}
	c.wantInherited(12)
	if got := c.output("stdout"); got != "up\nbye\n" {
		t.Errorf("output %q", got)
	}
	c.delete()
}

func TestDeathWithoutAKeeper(t *testing.T) { inBothWays(t, deathWithoutAKeeper) }

func deathWithoutAKeeper(t *testing.T, n *node) {
	script := "while [ ! -e /tmp/go ]; do sleep 0.01; done; echo last words; printf 'no newline'; exit 13"
	kept, dropped := n.run(nil, "sh", "-c", script), n.run(nil, "sh", "-c", script)
	done := n.run(nil, "sh", "-c", "exit 14")
	done.wait()
	n.crash()
	dropped.proc.Close()
	for _, c := range []*container{kept, dropped} {
		f, err := os.Create(fmt.Sprintf("/proc/%d/root/tmp/go", c.pid))
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	for _, c := range []*container{kept, dropped} {
		c.eventually("dead", func() bool {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.pid))
			return err != nil || strings.Contains(string(b), ") Z ")
		})
	}
	time.Sleep(50 * time.Millisecond) // let the new parent reap
	n.spawn()
	if hello, err := n.client.Hello(deadline(t), "test"); err != nil || hello.Settled {
		t.Errorf("hello: %+v, %v", hello, err)
	}
	if s, _ := keeper.ReadStatus(kept.Dir); s.Exited() {
		t.Errorf("called lost before the daemon said so: %+v", s)
	}
	if err := n.client.Adopt(deadline(t), kept.ID, kept.proc); err != nil {
		t.Fatal(err)
	}
	kept.wantInherited(13)
	if got := kept.output("stdout"); got != "last words\nno newline" {
		t.Errorf("output %q", got)
	}
	if err := n.client.Settle(deadline(t)); err != nil {
		t.Fatal(err)
	}
	dropped.wantInherited(13) // its reaper noted it
	if s := done.wait(); s.ExitCode != 14 {
		t.Errorf("status %+v", s)
	}
	for _, c := range []*container{kept, dropped, done} {
		c.delete()
	}
}

func TestTerminalSurvivesACrash(t *testing.T) { inBothWays(t, terminalSurvivesACrash) }

func terminalSurvivesACrash(t *testing.T, n *node) {
	c := n.run(func(r *keeper.StartRequest) { r.Spec.Process.Terminal = true },
		"sh", "-c", "read a; echo first $a; read b; echo second $b")
	_, _ = c.proc.Master.WriteString("x\n")
	c.eventually("first", func() bool { return strings.Contains(c.output("stdout"), "first x") })
	n.crash()
	n.respawn(c)
	_, _ = c.proc.Master.WriteString("y\n")
	c.wantInherited(0)
	if got := c.output("stdout"); !strings.Contains(got, "second y") {
		t.Errorf("output %q", got)
	}
}

func TestHalfMadeStartIsRemoved(t *testing.T) {
	n := newNode(t)
	c := n.run(sharedPID, "sleep", "1000")
	n.crash()
	// As if the keeper had died before it recorded the start.
	if err := os.Remove(c.Dir + "/" + keeper.StatusFile); err != nil {
		t.Fatal(err)
	}
	n.spawn()
	c.eventually("the process is gone", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.pid))
		return err != nil || strings.Contains(string(b), ") Z ")
	})
	c.pid = 0
	c.checkGone()
}
