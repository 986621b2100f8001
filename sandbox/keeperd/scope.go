package keeperd

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"

	"github.com/gantry-cri/gantry/sandbox/keeperd/reaper"
)

const (
	// scopeTimeout bounds asking systemd for the scope.
	scopeTimeout = 10 * time.Second
	// scopeStopTimeout is how long the node's shutdown waits for the keeper, which waits for containers and what they
	// still write.
	scopeStopTimeout = 30 * time.Second
)

// enterScope has systemd, where that is this machine's init, move the process to a scope of its own. In the cgroup of
// the daemon's service it would be a left-over process to systemd, which says so at every start and stop of the
// service, and kills it if somebody leaves KillMode out of a unit. Each keeper has a scope of its own name: that of a
// dead one is gone only when systemd has noticed.
func (k *Keeper) enterScope() error {
	if !systemdIsInit() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), scopeTimeout)
	defer cancel()
	conn, err := systemd.NewSystemdConnectionContext(ctx) // its own socket: no D-Bus daemon is needed for it
	if err != nil {
		return fmt.Errorf("connect to systemd: %w", err)
	}
	defer conn.Close()
	name := fmt.Sprintf("gantry-keeper-%d.scope", os.Getpid())
	done := make(chan string, 1)
	if _, err := conn.StartTransientUnitContext(ctx, name, "fail", scopeProperties(), done); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("start %s: systemd says %q", name, result)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("start %s: %w", name, ctx.Err())
	}
}

func scopeProperties() []systemd.Property {
	property := func(name string, value any) systemd.Property {
		return systemd.Property{Name: name, Value: godbus.MakeVariant(value)}
	}
	return []systemd.Property{
		systemd.PropDescription("Gantry's keeper, the parent of all containers"),
		systemd.PropSlice("system.slice"),
		systemd.PropPids(scopeProcesses()...),
		property("Delegate", true),
		property("CollectMode", "inactive-or-failed"), // a keeper that was killed leaves no failed unit
		property("TasksMax", ^uint64(0)),
		property("TimeoutStopUSec", uint64(scopeStopTimeout.Microseconds())),
	}
}

func scopeProcesses() []uint32 {
	pids := []uint32{uint32(os.Getpid())}
	if pid := reaper.PID(); pid > 0 {
		pids = append(pids, uint32(pid))
	}
	return pids
}

// systemdIsInit reports whether systemd is process 1 as this process sees it: a socket of the host's systemd that was
// bound into a container is no reason, the pid would mean another process there.
func systemdIsInit() bool {
	if info, err := os.Lstat("/run/systemd/system"); err != nil || !info.IsDir() { // sd_booted(3)
		return false
	}
	comm, err := os.ReadFile("/proc/1/comm")
	return err == nil && strings.TrimSpace(string(comm)) == "systemd"
}
