//go:build e2e

package vm

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/test/e2e/images"
	"github.com/gantry-cri/gantry/test/kubelet"
)

// kubeletTimeout bounds what a kubelet does in some steps, of which each may wait for a period of its own.
const kubeletTimeout = 10 * time.Minute

const kubeletPod = `
containers:
- name: main
  image: ` + images.Busybox + `
  command: [sh, -c, "trap 'exit 0' TERM; sleep 100000 & wait"]
  resources: {limits: {cpu: 500m, memory: 50Mi}, requests: {cpu: 100m, memory: 20Mi}}
  readinessProbe: {exec: {command: [cat, /etc/hostname]}, periodSeconds: 5, timeoutSeconds: 60}`

// startKubelet starts an unmodified kubelet with the systemd cgroup driver, which the others of the tests do not have.
func startKubelet(t *testing.T) *kubelet.Kubelet {
	t.Helper()
	dir := t.TempDir()
	k, err := kubelet.New(kubelet.Options{
		Dir: dir, Tools: "/payload/.work/bin", Endpoint: "unix:///run/gantry/gantry.sock", Runtime: installed.Runtime,
		IP: "10.0.2.15", Verbosity: 2, Config: map[string]string{"cgroupDriver": "systemd", "failSwapOn": "false"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(k.LogTail())
		}
		if err := k.Stop(); err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout) // the test's own is over
		defer cancel()
		if err := installed.RemoveAll(ctx); err != nil { // what it keeps of pods that have ended
			t.Error(err)
		}
		command(t, "systemctl", "stop", "kubepods.slice")
	})
	if err := k.Start(long(t)); err != nil {
		t.Fatal(err)
	}
	return k
}

func long(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), kubeletTimeout)
	t.Cleanup(cancel)
	return ctx
}

// The whole of a node: the kubelet makes the pod's slice by systemd, the daemon the scopes in it, and cAdvisor in the
// kubelet finds both, and the pod's network.
func TestKubeletRunsAPod(t *testing.T) {
	k := startKubelet(t)
	p, err := k.Create(kubelet.Manifest{Name: "vm", Spec: kubeletPod})
	if err != nil {
		t.Fatal(err)
	}
	status, err := p.Wait(long(t), "ready", (*kubelet.Status).Ready)
	if err != nil {
		t.Fatal(err)
	}
	uid := strings.ReplaceAll(p.UID(long(t)), "-", "_")
	slice := filepath.Join(cgroupRoot, "kubepods.slice/kubepods-burstable.slice", "kubepods-burstable-pod"+uid+".slice")
	_, id, _ := strings.Cut(status.Container("main").ContainerID, "://")
	for _, dir := range []string{slice, filepath.Join(slice, "gantry-"+id+".scope")} {
		b, err := os.ReadFile(filepath.Join(dir, "memory.max"))
		if err != nil {
			t.Fatal(err)
		}
		wantEqual(t, "memory limit of "+filepath.Base(dir), strings.TrimSpace(string(b)), strconv.Itoa(50<<20))
	}
	out, err := p.Run(long(t), "main", "hostname")
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "exec", strings.TrimSpace(out), p.Name)
	wantStatistics(t, k, p.Name)
	time.Sleep(70 * time.Second) // once a minute cAdvisor forgets what it does not find in its own list of cgroups
	wantStatistics(t, k, p.Name)

	if err := p.Delete(long(t)); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(kubeletTimeout); ; time.Sleep(time.Second) {
		if _, err := os.Stat(slice); os.IsNotExist(err) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s outlives the pod", slice)
		}
	}
	if left, _ := filepath.Glob(cgroupRoot + "/system.slice/gantryd.service/sandboxes/*/cgroup.procs"); len(left) > 0 {
		t.Errorf("cgroups for cAdvisor outlive the pod: %v", left)
	}
}

// wantStatistics waits until the kubelet tells of the pod's use, most of which it has from cAdvisor.
func wantStatistics(t *testing.T, k *kubelet.Kubelet, pod string) {
	t.Helper()
	var missing []string
	for deadline := time.Now().Add(kubeletTimeout); ; time.Sleep(time.Second) {
		if missing = missingStatistics(t, k, pod); len(missing) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the kubelet does not tell: %v", missing)
		}
	}
}

// missingStatistics names what the kubelet does not tell of the pod, or tells with the value 0.
func missingStatistics(t *testing.T, k *kubelet.Kubelet, pod string) (missing []string) {
	t.Helper()
	metrics, err := k.Get(long(t), "/metrics/cadvisor")
	if err != nil {
		return []string{err.Error()}
	}
	for _, name := range []string{
		"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_processes",
		"container_pressure_cpu_waiting_seconds_total", "container_network_receive_bytes_total",
	} {
		if !hasSeries(string(metrics), name, pod) {
			missing = append(missing, name)
		}
	}
	summary, err := k.Get(long(t), "/stats/summary")
	if err != nil {
		return append(missing, err.Error())
	}
	var told struct {
		Pods []struct {
			PodRef     struct{ Name string }
			Network    struct{ RxBytes uint64 }
			CPU        struct{ UsageCoreNanoSeconds uint64 }
			Containers []struct {
				CPU    struct{ UsageCoreNanoSeconds uint64 }
				Memory struct{ WorkingSetBytes uint64 }
				Rootfs struct{ UsedBytes uint64 }
			}
		}
	}
	if err := json.Unmarshal(summary, &told); err != nil {
		t.Fatal(err)
	}
	for _, p := range told.Pods {
		if p.PodRef.Name != pod || len(p.Containers) != 1 {
			continue
		}
		c := p.Containers[0]
		for what, value := range map[string]uint64{
			"network": p.Network.RxBytes, "CPU of the pod": p.CPU.UsageCoreNanoSeconds, "CPU": c.CPU.UsageCoreNanoSeconds,
			"memory": c.Memory.WorkingSetBytes, "files": c.Rootfs.UsedBytes,
		} {
			if value == 0 {
				missing = append(missing, fmt.Sprintf("%s of %s in the summary", what, pod))
			}
		}
		return missing
	}
	return append(missing, "the pod in the summary")
}

func hasSeries(metrics, name, pod string) bool {
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, name+"{") && strings.Contains(line, fmt.Sprintf("pod=%q", pod)) {
			return true
		}
	}
	return false
}
