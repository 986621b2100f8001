package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"
)

// step is a part of the test that passes or fails by itself.
type step struct {
	name string
	// essential is a step without which the others make no sense.
	essential bool
	run       func(context.Context, *machine) error
}

// steps are all of them, in order. Time-outs are ten times what a quiet machine needs.
var steps = []step{
	{name: "install", essential: true, run: script(5*time.Minute, "sh /payload/guest/install.sh")},
	{name: "node", run: script(20*time.Minute, guestTests("^TestNode"))},
	{name: "reboot", run: reboot},
	{name: "kubelet", run: script(60*time.Minute, guestTests("^TestKubelet"))},
	{name: "keeper", run: script(40*time.Minute, keeperTests)},
	{name: "e2e", run: script(100*time.Minute, endToEnd)},
	{name: "critest", run: script(60*time.Minute, "sh /payload/guest/critest.sh")},
}

// keeperTests are the keeper's own, which on a machine of cgroup v1 see no controllers of v2: see hack/unified.sh.
const keeperTests = "cd /payload/test/keeperd && GANTRY_TEST_KEEPER=$PWD/gantry-keeper ./keeperd.test -test.v -test.timeout 40m"

// endToEnd runs those of the end-to-end tests for which cgroup v2 or another kernel makes a difference: by a daemon of their
// own with the cgroupfs driver, in cgroups of their own beside systemd's.
// Without swap, which makes a container that is to run out of memory take minutes.
const endToEnd = "swapoff -a; cd /payload/test/e2e && GANTRY_TEST_IMAGES=/payload/registry ./e2e.test -test.v -test.timeout 100m -test.run '" +
	"^Test(Limits|OOM|Update|AnInvalidUpdate|Hugepage|OnTheUnified|Stats|UserNamespace|TwoMappings|Privileged|Small" +
	"|Shared|OwnPID|HostAndTarget|EveryCombination|ContainerCannotLeave|MaskedAndReadonly|Seccomp|Sysctl" +
	"|Devices|CDI|RecursiveReadOnly|Mount|OrderOfMounts|ImageVolume|DeclaredVolumes|Hostname|Process|UserGroup|Capabilities" +
	"|Ambient|ReadonlyRootfs|NoNewPrivileges|Terminal|Checkpoint|Restore|StopDuringCheckpoint)'"

func stepNames() []string {
	var names []string
	for _, s := range steps {
		names = append(names, s.name)
	}
	return names
}

// script is a step that is a shell script in the guest.
func script(timeout time.Duration, text string) func(context.Context, *machine) error {
	return func(ctx context.Context, m *machine) error {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		return m.sh(ctx, os.Stdout, text)
	}
}

// guestTests is the script that runs tests of test/vm.
func guestTests(pattern string) string {
	return fmt.Sprintf("cd /payload/test/vm && ./vm.test -test.v -test.timeout 60m -test.run '%s'", pattern)
}

// reboot leaves pods in the guest, boots it again, and looks what has become of them.
func reboot(ctx context.Context, m *machine) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	if err := m.sh(ctx, os.Stdout, guestTests("^TestRebootLeaves")); err != nil {
		return err
	}
	before, err := m.bootID(ctx)
	if err != nil {
		return err
	}
	if err := m.sh(ctx, os.Stdout, "systemctl reboot"); err != nil {
		return err
	}
	for {
		now, err := m.bootID(ctx)
		if err == nil && now != before {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the reboot: %w", ctx.Err())
		case <-time.After(time.Second):
		}
	}
	return m.sh(ctx, os.Stdout, guestTests("^TestRebootFinds"))
}

// bootID is the kernel's name for the time since it booted.
func (m *machine) bootID(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var out strings.Builder
	err := m.sh(ctx, &out, "cat /proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(out.String()), err
}
