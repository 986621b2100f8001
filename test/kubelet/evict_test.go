//go:build e2e

package kubelet

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/images"
	"github.com/gantry-cri/gantry/test/e2e/node"
)

// What is free of the two filesystems of the node, in MiB: all, what makes pressure that evicts nobody for an hour (of the
// kubelet's only), and what makes the kubelet evict, which is below the quarter where the daemon begins to look closely.
const (
	diskSize = 200
	diskSoft = 70
	diskHard = 40
)

// full is a node whose disk fills: images and writable layers are on one small filesystem, what the kubelet keeps of
// pods, volumes and logs, is on another.
type full struct {
	*cluster
	nodefs, imagefs string
}

func joinFull(t *testing.T, c *cluster) *full {
	t.Helper()
	n, err := newNode("full", func(o *node.Options) {
		o.Config = fmt.Sprintf("[image]\npinned_images = [%q]\n", images.Pause)
	})
	if err != nil {
		t.Fatal(err)
	}
	f := &full{nodefs: filepath.Join(node.Dir(), "nodefs"), imagefs: n.Root()}
	for _, dir := range []string{f.nodefs, f.imagefs} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(filepath.Base(dir), dir, "tmpfs", 0, fmt.Sprintf("size=%dm", diskSize)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	}
	startDaemon(t, n)
	pull(t, n, images.Big) // before the kubelet looks: of what it has not seen it removes nothing
	f.cluster = c.join(t, n, "full", Options{
		Name: "full", Root: filepath.Join(f.nodefs, "root"), PodLogs: filepath.Join(f.nodefs, "logs"), Port: 13250,
		Config: map[string]string{
			"evictionHard":                     fmt.Sprintf("{nodefs.available: %[1]dMi, imagefs.available: %[1]dMi}", diskHard),
			"evictionSoft":                     fmt.Sprintf("{nodefs.available: %dMi}", diskSoft),
			"evictionSoftGracePeriod":          "{nodefs.available: 1h}",
			"evictionPressureTransitionPeriod": "100ms",
			"nodeStatusUpdateFrequency":        "1s", "volumeStatsAggPeriod": "1s", "imageMinimumGCAge": "1s",
		},
	})
	return f
}

// free is what is free of a filesystem, in MiB.
func free(t *testing.T, dir string) int {
	t.Helper()
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		t.Fatal(err)
	}
	return int(s.Bavail * uint64(s.Bsize) >> 20)
}

func waitFree(t *testing.T, what, dir string, wanted func(int) bool) {
	t.Helper()
	eventually(t, what, func() error {
		if got := free(t, dir); !wanted(got) {
			return fmt.Errorf("%d MiB are free", got)
		}
		return nil
	})
}

// fill is a shell function that fills the filesystem of a directory until not more than so many KiB are free.
const fill = `fill() { while [ $(df -kP $1 | awk 'NR == 2 {print $4}') -gt $2 ]; do dd if=/dev/zero bs=1M count=2 2>/dev/null >> $1/big; done; }
await() { until [ -e $1 ]; do sleep 0.1; done; }
`

// script is a container that runs a script after fill, and then sleeps.
func script(text string) string {
	return fmt.Sprintf("name: main\n  image: BUSYBOX\n  command: [sh, -c, %q]", fill+text+"\nexec sleep 10000")
}

// pastSoft and pastHard are what fill leaves, in KiB: two MiB less than what makes pressure.
const (
	pastSoft = (diskSoft - 2) << 10
	pastHard = (diskHard - 2) << 10
)

// testDiskPressure: what nobody uses is removed first, and nobody is evicted if that is enough; then the pod goes that has
// most beyond what it requested, of the filesystem that is full, and nobody else.
func testDiskPressure(t *testing.T, c *cluster) {
	f := joinFull(t, c)
	stay := map[string]string{
		// More than any other, and less than it requested.
		"disk-entitled": "containers:\n- " + script("dd if=/dev/zero of=/file bs=1M count=80; touch /done") +
			"\n  resources: {requests: {ephemeral-storage: 100Mi}}",
		"disk-modest": "containers:\n- " + script("dd if=/dev/zero of=/file bs=1M count=4; touch /done"),
	}
	for name, spec := range stay {
		f.create(t, name, spec)
	}
	f.create(t, "disk-hoarder", "volumes: [{name: data, emptyDir: {}}]\ncontainers:\n- "+
		script(fmt.Sprintf("await /soft; fill /data %d; await /hard; fill /data %d", pastSoft, pastHard))+
		"\n  volumeMounts: [{name: data, mountPath: /data}]")
	f.create(t, "disk-greedy", "containers:\n- "+script(fmt.Sprintf("await /hard; fill / %d", pastHard)))
	before := map[string]string{}
	for _, name := range []string{"disk-entitled", "disk-modest", "disk-hoarder", "disk-greedy"} {
		status := f.wait(t, name, "running and ready", func(s *Status) bool { return s.Phase == "Running" && s.Ready() })
		before[name] = status.Container("main").ContainerID
	}
	for name := range stay {
		f.shell(t, name, fill+"await /done")
	}
	f.waitTaints(t, "none", func(taints string) bool { return taints == "" })

	f.removesImagesFirst(t)
	f.rejectsPods(t)
	f.evicts(t, "disk-hoarder", f.nodefs)
	f.evicts(t, "disk-greedy", f.imagefs)
	f.leavesNothing(t, before)

	f.waitCondition(t, "DiskPressure", "False")
	f.waitTaints(t, "none", func(taints string) bool { return taints == "" })
	f.acceptsPods(t)
	for name := range stay {
		status := f.wait(t, name, "running", func(s *Status) bool { return s.Phase == "Running" && s.Ready() })
		wantEqual(t, "container of "+name, status.Container("main").ContainerID, before[name])
		wantEqual(t, "restarts of "+name, status.Container("main").RestartCount, 0)
	}
}

func (f *full) waitTaints(t *testing.T, what string, wanted func(string) bool) {
	t.Helper()
	eventually(t, "the node's taints: "+what, func() error {
		var n struct {
			Spec struct{ Taints []struct{ Key string } }
		}
		b, err := f.Get(timeout(t), f.kubelet.client, "/api/v1/nodes/"+f.kubelet.Name)
		if err == nil {
			err = json.Unmarshal(b, &n)
		}
		if taints := fmt.Sprint(n.Spec.Taints); err == nil && !wanted(strings.Trim(taints, "[]")) {
			err = fmt.Errorf("there are %s", taints)
		}
		return err
	})
}

// removesImagesFirst fills the disk by so little too much that an image that nobody uses is enough.
func (f *full) removesImagesFirst(t *testing.T) {
	t.Helper()
	filler := filepath.Join(f.imagefs, "filler")
	if err := os.WriteFile(filler, make([]byte, (free(t, f.imagefs)-diskHard+4)<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the kubelet to reclaim", func() error {
		log := readFile(t, f.kubelet.LogFile())
		if strings.Contains(log, "must evict pod(s) to reclaim") {
			t.Fatal("the kubelet evicts a pod though to remove an image is enough")
		}
		if !strings.Contains(log, "able to reduce resource pressure without evicting pods") {
			return fmt.Errorf("it does not yet")
		}
		return nil
	})
	if left := imagesOf(t, f.node); strings.Contains(left, images.Big) {
		t.Errorf("images left are %s", left)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
}

// rejectsPods makes pressure that evicts nobody.
func (f *full) rejectsPods(t *testing.T) {
	t.Helper()
	f.shell(t, "disk-hoarder", "touch /soft")
	waitFree(t, "hoarder to have written", f.nodefs, func(n int) bool { return n < diskSoft })
	f.waitCondition(t, "DiskPressure", "True")
	f.waitTaints(t, "of the pressure", func(taints string) bool {
		return strings.Contains(taints, "node.kubernetes.io/disk-pressure")
	})
	f.create(t, "disk-late", "containers:\n- "+script(""))
	late := f.wait(t, "disk-late", "its rejection", func(s *Status) bool { return s.Phase != "Pending" })
	wantEqual(t, "phase of disk-late", late.Phase, "Failed")
	wantEqual(t, "reason of disk-late", late.Reason, "Evicted")
	wantContains(t, "message of disk-late", late.Message, "The node had condition: [DiskPressure]")
}

// evicts lets a pod fill a filesystem, which the kubelet has to end by evicting it.
func (f *full) evicts(t *testing.T, name, dir string) {
	t.Helper()
	f.shell(t, name, "touch /hard")
	status := f.wait(t, name, "its eviction", func(s *Status) bool { return s.Phase == "Failed" })
	wantEqual(t, "reason of "+name, status.Reason, "Evicted")
	wantContains(t, "message of "+name, status.Message, "The node was low on resource: ephemeral-storage")
	wantEqual(t, "disruption of "+name, status.Condition("DisruptionTarget").Reason, "TerminationByKubelet")
	waitFree(t, "the space of "+name+" to be free", dir, func(n int) bool { return n > diskSoft })
}

// leavesNothing looks for what is left of the containers that are in none of the lists any more.
func (f *full) leavesNothing(t *testing.T, containers map[string]string) {
	t.Helper()
	for _, name := range []string{"disk-hoarder", "disk-greedy"} {
		eventually(t, "the containers of "+name+" to be gone", func() error {
			list, err := f.node.Runtime.ListContainers(timeout(t), &runtime.ListContainersRequest{
				Filter: &runtime.ContainerFilter{LabelSelector: map[string]string{"io.kubernetes.pod.name": name}},
			})
			if err == nil && len(list.Containers) > 0 {
				err = fmt.Errorf("there are %v", list.Containers)
			}
			return err
		})
		_, id, _ := strings.Cut(containers[name], "://")
		for _, top := range []string{f.imagefs, f.node.State} {
			err := filepath.WalkDir(top, func(path string, _ fs.DirEntry, err error) error {
				if strings.Contains(filepath.Base(path), id) {
					t.Errorf("%s is left of %s", path, name)
				}
				return nil // what goes meanwhile is gone
			})
			if err != nil {
				t.Error(err)
			}
		}
	}
}

// acceptsPods makes pods until one is accepted: of the end of the pressure the kubelet knows before or after it says so.
func (f *full) acceptsPods(t *testing.T) {
	t.Helper()
	for try := 0; ; try++ {
		name := fmt.Sprintf("disk-after-%d", try)
		f.create(t, name, "containers:\n- "+script(""))
		status := f.wait(t, name, "it to be accepted or not", func(s *Status) bool { return s.Phase == "Failed" || s.Ready() })
		if status.Ready() {
			return
		}
		wantContains(t, "message of "+name, status.Message, "The node had condition: [DiskPressure]")
		if t.Failed() || try == 100 {
			t.FailNow()
		}
	}
}
