//go:build e2e

package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The program measures the daemon that was built (make build tools), and leaves nothing behind.
func TestBenchMeasuresTheDaemon(t *testing.T) {
	program, result := filepath.Join(t.TempDir(), "gantry-bench"), filepath.Join(t.TempDir(), "result.json")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cmd := exec.Command(program, "-pods=2", "-execs=4", "-concurrency=1,2", "-levels=2,4", "-log-bytes=2000000", "-rounds=2", "-json="+result)
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
	for _, key := range []string{
		"pods, host network, 1 at a time: start p50", "pods, pod network, 2 at a time: StartContainer p99",
		"pods, host network, 1 at a time: start, CPU of the runtime", "pods, pod network, 1 at a time: stop and remove, rate",
		"execs, 2 at a time: ExecSync, CPU of the machine", "exec storm, 2 at a time in as many pods: ExecSync p90",
		"log: written", "density: memory with no pods, gantryd", "density, 4 pods: memory, all",
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
