//go:build e2e

package kubelet

import (
	"fmt"
	"strings"
	"testing"
)

// metric is the sum of a metric of the kubelet's over its labels, and whether there is one.
func metric(t *testing.T, name string) (sum float64, found bool) {
	t.Helper()
	b, err := shared.Get(timeout(t), "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		series, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if before, _, _ := strings.Cut(series, "{"); ok && before == name {
			var v float64
			if _, err := fmt.Sscan(value, &v); err != nil {
				t.Fatalf("metric %s: %v", line, err)
			}
			sum, found = sum+v, true
		}
	}
	return sum, found
}

// TestGatesAreInEffect: a gate that the runtime does not do justice to is given up by the kubelet without another sign.
func TestGatesAreInEffect(t *testing.T) {
	t.Parallel()
	if shared.Gates["EventedPLEG"] {
		eventually(t, "a stream of events", func() error {
			if streams, found := metric(t, "kubelet_evented_pleg_connection_success_count"); !found || streams < 1 {
				return fmt.Errorf("%v were opened", streams)
			}
			return nil
		})
	}
	if shared.Gates["CRIListStreaming"] {
		for _, method := range []string{"StreamPodSandboxes", "StreamContainers", "StreamImages"} {
			eventually(t, "a request "+method, func() error {
				if !strings.Contains(readFile(t, gantry.LogFile()), method) {
					return fmt.Errorf("there was none")
				}
				return nil
			})
		}
	}
	log := readFile(t, shared.LogFile())
	for _, sign := range []string{"falling back", "Unimplemented", "unknown service", "unknown method"} {
		for line := range strings.Lines(log) {
			if strings.Contains(line, sign) {
				t.Errorf("the kubelet says %s", line)
			}
		}
	}
	if losing, _ := metric(t, "kubelet_cri_losing_support"); losing != 0 {
		t.Errorf("%v things of the runtime lose the kubelet's support", losing)
	}
}
