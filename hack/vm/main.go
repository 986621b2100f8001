// Command vm tests the built programs on a node as users have it: cgroup v2 with all controllers, systemd as process 1,
// AppArmor, in a virtual machine that QEMU emulates. `make vm-test` runs it, from the top of the tree; it needs root, for
// the guest's disk, and no KVM. It is not a way to run containers, and nothing in the guest is fast.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	only := flag.String("only", "", "comma-separated `names` of the steps to run; default all: "+strings.Join(stepNames(), ", "))
	keep := flag.Bool("keep", false, "leave the machine running after the steps, until Ctrl-C")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *only, *keep); err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, only string, keep bool) error {
	chosen, err := choose(only)
	if err != nil {
		return err
	}
	dir, err := filepath.Abs(".work/vm")
	if err != nil {
		return err
	}
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := makeImage(ctx, dir); err != nil {
		return err
	}
	if err := makePayload(ctx, dir); err != nil {
		return err
	}
	m, err := boot(ctx, dir)
	if err != nil {
		return err
	}
	defer m.powerOff()
	err = runSteps(ctx, m, chosen)
	if err != nil {
		m.saveJournal(filepath.Join(dir, "journal.log"))
	}
	if keep {
		fmt.Printf("The machine runs until Ctrl-C: curl --data-binary COMMAND %s\n", m.url)
		<-ctx.Done()
	}
	return err
}

// lock keeps a second run out of the directory.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, fmt.Errorf("lock %s: another run uses it: %w", dir, err)
	}
	return func() { f.Close() }, nil
}

// runSteps runs all steps, also after one that failed, and sums up.
func runSteps(ctx context.Context, m *machine, chosen []step) error {
	var errs []error
	var summary strings.Builder
	for _, s := range chosen {
		fmt.Printf("\n=== %s\n", s.name)
		started := time.Now()
		err := s.run(ctx, m)
		result := "passed"
		if err != nil {
			result = "FAILED: " + err.Error()
			errs = append(errs, fmt.Errorf("%s: %w", s.name, err))
		}
		fmt.Fprintf(&summary, "%-10s %6.0f s  %s\n", s.name, time.Since(started).Seconds(), result)
		if err != nil && s.essential {
			break
		}
	}
	fmt.Printf("\n=== summary\n%s", summary.String())
	return errors.Join(errs...)
}

// choose returns the steps with the given names, and those without which no other can be.
func choose(only string) ([]step, error) {
	if only == "" {
		return steps, nil
	}
	names := strings.Split(only, ",")
	for _, name := range names {
		if !slices.Contains(stepNames(), name) {
			return nil, fmt.Errorf("step %q: expected one of %s", name, strings.Join(stepNames(), ", "))
		}
	}
	var chosen []step
	for _, s := range steps {
		if s.essential || slices.Contains(names, s.name) {
			chosen = append(chosen, s)
		}
	}
	return chosen, nil
}
