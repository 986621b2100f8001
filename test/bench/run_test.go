//go:build e2e

package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// run builds the program, measures the daemon that was built (make build tools) and returns the values of each figure.
func run(t *testing.T, args ...string) map[string][]float64 {
	t.Helper()
	program, result := filepath.Join(t.TempDir(), "gantry-bench"), filepath.Join(t.TempDir(), "result.json")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cmd := exec.Command(program, append(args, "-json="+result)...)
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b, err := os.ReadFile(result)
	if err != nil {
		t.Fatal(err)
	}
	var report Report
	if err := json.Unmarshal(b, &report); err != nil {
		t.Fatal(err)
	}
	values := map[string][]float64{}
	for _, row := range report.Rows {
		values[row.Key] = row.Values["gantry"]
	}
	return values
}

// The program leaves nothing behind.
func TestBenchMeasuresTheDaemon(t *testing.T) {
	values := run(t, "-pods=2", "-execs=40", "-concurrency=1,2", "-levels=2,4", "-log-bytes=2000000", "-rounds=2")
	for _, key := range []string{
		"pods, host network, 1 at a time: start p50", "pods, pod network, 2 at a time: StartContainer p99",
		"pods, host network, 1 at a time: start, CPU of the runtime", "pods, pod network, 1 at a time: stop and remove, rate",
		"execs, 2 at a time: ExecSync, CPU of the machine", "exec storm, 2 at a time in as many pods: ExecSync p90",
		"log: written", "density: memory with no pods, gantryd", "density, 4 pods: memory, all",
		"density, 0 pods: one more: start p50", "density, 4 pods: one more: start, CPU of the runtime",
		"density, 2 pods: ListContainerStats p50", "density, 4 pods: all ready after kill -9", "density: pods when it stopped",
	} {
		if got := values[key]; len(got) != 2 || got[0] <= 0 || got[1] <= 0 {
			t.Errorf("%s: got %v, expected two values above 0", key, got)
		}
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/bench-*"); len(left) > 0 {
		t.Errorf("cgroups are left: %v", left)
	}
}

// On the embedded network a pod is no mount in the table of the host.
func TestBenchCountsWhatPodsHold(t *testing.T) {
	values := run(t, "-only=density", "-embedded", "-idle=3s", "-pods=1", "-levels=1,16")
	for _, key := range []string{
		"density, 16 pods: idle, CPU of the runtime", "density, 16 pods: descriptors, gantry-keeper", "density, 16 pods: threads, gantryd",
	} {
		if got := values[key]; len(got) != 1 || got[0] <= 0 {
			t.Errorf("%s: got %v, expected a value above 0", key, got)
		}
	}
	one, many := values["density, 1 pods: mounts of the host"], values["density, 16 pods: mounts of the host"]
	if len(one) != 1 || len(many) != 1 || one[0] < 1 || many[0] >= one[0]+10 { // something else may come and go
		t.Errorf("%v mounts with 1 pod, %v with 16: expected no more", one, many)
	}
}
