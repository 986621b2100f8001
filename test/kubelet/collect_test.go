//go:build e2e

package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/images"
	"github.com/gantry-cri/gantry/test/e2e/node"
)

// containersOf lists the containers of a pod, running or not.
func containersOf(t *testing.T, n *node.Node, p testPod) []*runtime.Container {
	t.Helper()
	list, err := n.Runtime.ListContainers(timeout(t), &runtime.ListContainersRequest{
		Filter: &runtime.ContainerFilter{LabelSelector: map[string]string{"io.kubernetes.pod.name": p.Name}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return list.Containers
}

func TestDeadContainersAndPodsAreCollected(t *testing.T) {
	t.Parallel()
	p := start(t, `
restartPolicy: OnFailure
volumes: [{name: state, emptyDir: {}}]
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, "echo x >> /state/runs; [ $(wc -l < /state/runs) = 3 ] && exec sleep 10000; exit 1"]
  volumeMounts: [{name: state, mountPath: /state}]`)
	p.wait(t, "two restarts", func(s *Status) bool { return s.Container("main").RestartCount == 2 && s.Ready() })
	eventually(t, "one dead container", func() error { // the kubelet keeps the last one
		if n := len(containersOf(t, gantry, p)); n != 2 {
			return fmt.Errorf("there are %d", n)
		}
		return nil
	})
	logs := filepath.Join(shared.PodLogs, fmt.Sprintf("%s_%s_%s", Namespace, p.Name, p.UID(timeout(t))))
	if _, err := os.Stat(filepath.Join(logs, "main/0.log")); err == nil {
		t.Error("the log of a collected container is still there")
	}
	p.deleteNow(t)
	waitGone(t, p)
	eventually(t, "the pod's logs to be gone", func() error {
		if _, err := os.Stat(logs); err == nil {
			return fmt.Errorf("%s is there", logs)
		}
		return nil
	})
	eventually(t, "the links to its logs to be gone", func() error {
		if links, _ := filepath.Glob("/var/log/containers/" + p.Name + "_*"); len(links) > 0 {
			return fmt.Errorf("there are %s", strings.Join(links, " "))
		}
		return nil
	})
}

// smallNode is a daemon whose images are on a filesystem of 160 MiB, with a kubelet that wants 60 MiB of it free. Port 0
// is not the shared kubelet's.
func smallNode(t *testing.T) (*node.Node, *Kubelet) {
	t.Helper()
	n, err := newNode("small", func(o *node.Options) {
		o.Config = fmt.Sprintf("[image]\npinned_images = [%q]\n", images.Pause)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(n.Root(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("small", n.Root(), "tmpfs", 0, "size=160m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(n.Root(), unix.MNT_DETACH) })
	if err := n.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
	k, err := newKubelet("small-kubelet", n, Options{
		Root: filepath.Join(node.Dir(), "small-kubelet/root"), PodLogs: filepath.Join(node.Dir(), "small-kubelet/logs"),
		CgroupRoot: "/small", Port: 11250, Gates: shared.Gates,
		Config: map[string]string{
			"evictionHard":                     "{memory.available: 50Mi, nodefs.available: 100Mi, imagefs.available: 60Mi}",
			"evictionPressureTransitionPeriod": "1s", "imageMinimumGCAge": "1s",
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	makeCgroup(t, "small")
	t.Cleanup(func() {
		if err := k.Stop(); err != nil {
			t.Error(err)
		}
		if err := n.RemoveAll(timeout(t)); err != nil {
			t.Error(err)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n, k
}

// makeCgroup makes a cgroup of a name in every hierarchy; it goes with those of the run.
func makeCgroup(t *testing.T, name string) {
	t.Helper()
	tops, _ := filepath.Glob("/sys/fs/cgroup/*")
	for _, top := range tops {
		if info, err := os.Lstat(top); err != nil || !info.IsDir() {
			continue
		}
		if err := os.Mkdir(filepath.Join(top, name), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} { // a new cpuset is empty
			if value, err := os.ReadFile(filepath.Join(top, file)); err == nil {
				os.WriteFile(filepath.Join(top, name, file), value, 0)
			}
		}
	}
}

// imagesOf are the tags that a node has.
func imagesOf(t *testing.T, n *node.Node) string {
	t.Helper()
	list, err := n.Images.ListImages(timeout(t), &runtime.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var tags []string
	for _, image := range list.Images {
		tags = append(tags, image.RepoTags...)
	}
	return strings.Join(tags, " ")
}

func pull(t *testing.T, n *node.Node, ref string) {
	t.Helper()
	_, err := n.Images.PullImage(timeout(t), &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatal(err)
	}
}

// TestImagesAreCollectedWhenTheDiskIsFull: the kubelet removes dead containers and then what nobody uses when the disk
// falls below what it wants free. Pods from files are never evicted, and stay.
func TestImagesAreCollectedWhenTheDiskIsFull(t *testing.T) {
	t.Parallel()
	n, k := smallNode(t)
	for _, ref := range []string{images.Pause, images.Big, images.Web} {
		pull(t, n, ref)
	}
	before := imagesOf(t, n)
	if err := k.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
	p := startOn(t, k, Manifest{Name: "stays", Spec: `
containers:
- {name: main, image: BUSYBOX, command: [sleep, inf]}`})
	done := startOn(t, k, Manifest{Name: "done", Spec: `
restartPolicy: Never
containers:
- {name: main, image: DATA, command: ["true"]}`})
	container := p.running(t).Container("main").ContainerID
	done.finished(t)
	for ref := range strings.FieldsSeq(before) {
		wantContains(t, "images before the disk is full", imagesOf(t, n), ref)
	}
	filler := filepath.Join(n.Root(), "filler")
	if err := os.WriteFile(filler, make([]byte, 80<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "images to be collected", func() error {
		if got := imagesOf(t, n); strings.Contains(got, images.Big) || strings.Contains(got, images.Web) {
			return fmt.Errorf("there are %s", got)
		}
		return nil
	})
	wantEqual(t, "dead containers", len(containersOf(t, n, done)), 0)
	wantContains(t, "images", imagesOf(t, n), images.Busybox)
	wantContains(t, "images", imagesOf(t, n), images.Pause)
	wantEqual(t, "container of the pod that stays", p.running(t).Container("main").ContainerID, container)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
}
