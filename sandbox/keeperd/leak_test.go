package keeperd_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// descriptors counts what the keeper has open, without its connections to us.
func (n *node) descriptors() (count int, list string) {
	n.t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", n.pid())
	entries, err := os.ReadDir(dir)
	if err != nil {
		n.t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		target, err := os.Readlink(dir + "/" + e.Name())
		if err == nil && !strings.HasPrefix(target, "socket:") {
			all = append(all, target)
		}
	}
	return len(all), strings.Join(all, "\n")
}

func TestNothingStaysOpen(t *testing.T) {
	n := newNode(t)
	cycle := func() {
		c := n.run(func(r *keeper.StartRequest) { r.Stdin = true }, "sleep", "1000")
		c.exec("true")
		_, _ = n.client.Exec(deadline(t), keeper.ExecRequest{ID: c.ID, Args: []string{"nosuch"}}, [3]*os.File{})
		tty := n.run(func(r *keeper.StartRequest) { r.Spec.Process.Terminal = true }, "sleep", "1000")
		bad := n.container(nil, "nosuch")
		if _, _, err := n.client.Start(deadline(t), bad.StartRequest); !errors.Is(err, keeper.ErrStart) {
			t.Errorf("got %v", err)
		}
		c.delete()
		tty.delete()
	}
	cycle() // what is made once: scratch pipes, the poller
	before, _ := n.descriptors()
	for range 5 {
		cycle()
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		count, list := n.descriptors()
		if count <= before {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d descriptors before, %d after:\n%s", before, count, list)
		}
	}
}

func TestManyStartsAtOnce(t *testing.T) {
	n := newNode(t)
	const count = 24
	errs := make(chan error)
	var all []*container
	for range count {
		all = append(all, n.container(nil, "sh", "-c", "echo $$; exit 5"))
	}
	for _, c := range all {
		go func() {
			_, proc, err := n.client.Start(deadline(t), c.StartRequest)
			if err == nil {
				proc.Close()
			}
			errs <- err
		}()
	}
	for range count {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	for _, c := range all {
		if s := c.wait(); s.ExitCode != 5 || c.output("stdout") != "1\n" {
			t.Errorf("status %+v, output %q", s, c.output("stdout"))
		}
		c.delete()
	}
}

// TestStartGivenUp gives up at every stage of a start.
func TestStartGivenUp(t *testing.T) {
	n := newNode(t)
	for after := time.Millisecond; after < 40*time.Millisecond; after += 3 * time.Millisecond {
		c := n.container(sharedPID, "sleep", "1000")
		ctx, cancel := context.WithTimeout(context.Background(), after)
		_, proc, err := n.client.Start(ctx, c.StartRequest)
		cancel()
		if err == nil {
			proc.Close()
		} else if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		c.delete()
		if left := c.processes(); len(left) > 0 {
			t.Errorf("given up after %v: left %v", after, left)
		}
		if s, rerr := keeper.ReadStatus(c.Dir); rerr == nil && !s.Exited() {
			t.Errorf("given up after %v: status %+v", after, s)
		}
	}
}

func TestDeleteDuringStart(t *testing.T) {
	n := newNode(t)
	for after := time.Duration(0); after < 30*time.Millisecond; after += 3 * time.Millisecond {
		c := n.container(nil, "sleep", "1000")
		started := make(chan error, 1)
		go func() {
			_, proc, err := n.client.Start(deadline(t), c.StartRequest)
			if err == nil {
				proc.Close()
			}
			started <- err
		}()
		time.Sleep(after)
		c.delete()
		if err := <-started; err != nil && !errors.Is(err, keeper.ErrStart) && !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("start: %v", err)
		}
		c.checkGone() // a start that came after the deletion, too
	}
}

func TestStartAfterDelete(t *testing.T) {
	n := newNode(t)
	c := n.container(nil, "sleep", "1000")
	c.delete()
	if _, _, err := n.client.Start(deadline(t), c.StartRequest); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("got %v", err)
	}
	c.checkGone()
}
