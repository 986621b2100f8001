package main

import (
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// TestUnitsWaitForTheDaemonToEnd compares how long systemd waits before it kills with how long the daemon may take.
func TestUnitsWaitForTheDaemonToEnd(t *testing.T) {
	const air = 5 * time.Second // for what has no number, such as to close the image store
	longest := max(drainTimeout, keeper.SpawnTimeout) + closeTimeout + air
	setting := regexp.MustCompile(`(?m)^TimeoutStopSec=(\S+)$`)
	for _, unit := range []string{
		"../../packaging/gantryd.service", "../../hack/kind/files/etc/systemd/system/containerd.service",
	} {
		text, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		found := setting.FindSubmatch(text)
		if found == nil {
			t.Errorf("%s has no TimeoutStopSec", unit)
			continue
		}
		waits, err := time.ParseDuration(string(found[1]))
		if err != nil {
			t.Errorf("%s: %v", unit, err)
		}
		if waits < longest {
			t.Errorf("%s: systemd kills the daemon after %v, which may take %v to end", unit, waits, longest)
		}
	}
}
