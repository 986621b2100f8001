//go:build e2e

package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestEmptyDirIsSharedByContainers(t *testing.T) {
	t.Parallel()
	p := start(t, `
volumes:
- {name: disk, emptyDir: {}}
- {name: memory, emptyDir: {medium: Memory, sizeLimit: 4Mi}}
containers:
- name: one
  image: BUSYBOX
  command: [sh, -c, "echo disk > /disk/file; echo memory > /memory/file; exec sleep 10000"]
  volumeMounts: [{name: disk, mountPath: /disk}, {name: memory, mountPath: /memory}]
- name: two
  image: BUSYBOX
  command: [sleep, inf]
  volumeMounts: [{name: disk, mountPath: /a}, {name: memory, mountPath: /b, readOnly: true}]`)
	p.running(t)
	wantEqual(t, "files", p.shell(t, "two", "until [ -s /b/file ]; do sleep 0.1; done; cat /a/file /b/file"), "disk\nmemory")
	wantContains(t, "mount of memory", p.shell(t, "two", "grep ' /b ' /proc/mounts"), "tmpfs /b tmpfs ro,")
	wantContains(t, "size of memory", p.shell(t, "one", "grep ' /memory ' /proc/mounts"), "size=4096k")
	wantContains(t, "writing to read-only", p.shell(t, "two", "touch /b/x 2>&1 || true"), "Read-only file system")
	wantContains(t, "writing too much", p.shell(t, "one", "dd if=/dev/zero of=/memory/x bs=1M count=5 2>&1 || true"), "No space")
}

func TestEmptyDirGoesWithThePod(t *testing.T) {
	t.Parallel()
	p := start(t, `
volumes: [{name: disk, emptyDir: {}}, {name: memory, emptyDir: {medium: Memory}}]
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, "touch /disk/file /memory/file; exec sleep 10000"]
  volumeMounts: [{name: disk, mountPath: /disk}, {name: memory, mountPath: /memory}]`)
	p.running(t)
	top := filepath.Join(shared.Root, "pods", p.UID(timeout(t)))
	if _, err := os.Stat(filepath.Join(top, "volumes/kubernetes.io~empty-dir/memory")); err != nil {
		t.Fatal(err)
	}
	p.deleteNow(t)
	eventually(t, "the pod's directory to be gone", func() error { // the kubelet looks every two seconds
		if _, err := os.Stat(top); err == nil {
			return fmt.Errorf("%s is still there", top)
		}
		return nil
	})
	wantEqual(t, "mounts that are left", strings.Count(readFile(t, "/proc/self/mountinfo"), filepath.Base(top)), 0)
}

func TestSubPaths(t *testing.T) {
	t.Parallel()
	dir := hostDir(t)
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("one file"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := start(t, fmt.Sprintf(`
volumes: [{name: host, hostPath: {path: %q}}, {name: empty, emptyDir: {}}]
containers:
- name: main
  image: BUSYBOX
  command: [sleep, inf]
  env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
  volumeMounts:
  - {name: host, mountPath: /etc/one-file, subPath: file}
  - {name: empty, mountPath: /made, subPath: a/b}
  - {name: host, mountPath: /mine, subPathExpr: "pods/$(POD)"}`, dir))
	p.running(t)
	wantEqual(t, "file", p.shell(t, "main", "cat /etc/one-file; touch /mine/touched /made/it"), "one file")
	if _, err := os.Stat(filepath.Join(dir, "pods", p.Name, "touched")); err != nil {
		t.Error(err)
	}
	p.killMain(t)
	p.wait(t, "a restart", func(s *Status) bool { return s.Container("main").RestartCount == 1 && s.Ready() })
	wantEqual(t, "files after a restart", p.shell(t, "main", "cat /etc/one-file; ls /mine /made"), "one file/made:\nit\n\n/mine:\ntouched")
}

func TestSubPathOutsideOfTheVolume(t *testing.T) {
	t.Parallel()
	dir := hostDir(t)
	if err := os.Symlink("/etc", filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	p := start(t, fmt.Sprintf(`
volumes: [{name: host, hostPath: {path: %q}}]
containers:
- name: main
  image: BUSYBOX
  command: [sleep, inf]
  volumeMounts: [{name: host, mountPath: /etc2, subPath: out/ssl}]`, dir))
	p.wait(t, "CreateContainerConfigError", func(s *Status) bool {
		w := s.Container("main").State.Waiting
		return w != nil && w.Reason == "CreateContainerConfigError"
	})
}

func TestHostPathAndItsTypes(t *testing.T) {
	t.Parallel()
	dir := hostDir(t)
	p := start(t, fmt.Sprintf(`
volumes:
- {name: made, hostPath: {path: %[1]q, type: DirectoryOrCreate}}
- {name: file, hostPath: {path: %[2]q, type: FileOrCreate}}
- {name: device, hostPath: {path: /dev/zero, type: CharDevice}}
containers:
- name: main
  image: BUSYBOX
  command: [sleep, inf]
  volumeMounts:
  - {name: made, mountPath: /made}
  - {name: file, mountPath: /file}
  - {name: device, mountPath: /zero}`, filepath.Join(dir, "made"), filepath.Join(dir, "file")))
	p.running(t)
	p.shell(t, "main", "echo written > /file; touch /made/x; head -c 4 /zero | wc -c")
	wantEqual(t, "file", readFile(t, filepath.Join(dir, "file")), "written\n")
	if _, err := os.Stat(filepath.Join(dir, "made/x")); err != nil {
		t.Error(err)
	}
}

func TestMountPropagation(t *testing.T) {
	t.Parallel()
	dir := hostDir(t)
	p := start(t, fmt.Sprintf(`
volumes: [{name: host, hostPath: {path: %q}}]
containers:
- name: out
  image: BUSYBOX
  command: [sh, -c, "mkdir -p /host/out; mount -t tmpfs none /host/out && touch /host/out/x; exec sleep 10000"]
  securityContext: {privileged: true}
  volumeMounts: [{name: host, mountPath: /host, mountPropagation: Bidirectional}]
- name: in
  image: BUSYBOX
  command: [sleep, inf]
  volumeMounts: [{name: host, mountPath: /host, mountPropagation: HostToContainer}]
- name: none
  image: BUSYBOX
  command: [sleep, inf]
  volumeMounts: [{name: host, mountPath: /host}]`, dir))
	t.Cleanup(func() { unix.Unmount(filepath.Join(dir, "out"), unix.MNT_DETACH) })
	p.running(t)
	eventually(t, "what the container mounts to be seen on the node", func() error {
		_, err := os.Stat(filepath.Join(dir, "out/x"))
		return err
	})
	wantEqual(t, "seen by another", p.shell(t, "in", "ls /host/out"), "x")
	later := filepath.Join(dir, "later")
	if err := os.Mkdir(later, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", later, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(later, unix.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(later, "y"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "mounted later", p.shell(t, "in", "ls /host/later"), "y")
	wantEqual(t, "mounted later, without propagation", p.shell(t, "none", "ls /host/later"), "")
}

func TestDownwardAPI(t *testing.T) {
	t.Parallel()
	p := startOn(t, shared, Manifest{
		Labels: map[string]string{"app": "downward"}, Annotations: map[string]string{"note": "an annotation"},
		Spec: `
volumes:
- name: pod
  downwardAPI:
    items:
    - {path: labels, fieldRef: {fieldPath: metadata.labels}}
    - {path: dir/note, fieldRef: {fieldPath: "metadata.annotations['note']"}, mode: 0400}
    - {path: limit, resourceFieldRef: {containerName: main, resource: limits.memory}}
containers:
- name: main
  image: BUSYBOX
  command: [sleep, inf]
  resources: {limits: {memory: 64Mi, cpu: "1"}}
  env:
  - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
  - {name: POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
  - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
  - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
  volumeMounts: [{name: pod, mountPath: /pod}]`,
	})
	status := p.running(t)
	wantEqual(t, "labels", p.shell(t, "main", "cat /pod/labels"), `app="downward"`)
	wantEqual(t, "limit", p.shell(t, "main", "cat /pod/limit"), fmt.Sprint(64<<20))
	wantEqual(t, "annotation", p.shell(t, "main", "cat /pod/dir/note"), "an annotation")
	want := fmt.Sprintf("%s %s %s 1", p.Name, p.UID(timeout(t)), status.PodIP)
	wantEqual(t, "environment", p.shell(t, "main", "echo $POD_NAME $POD_UID $POD_IP $CPU"), want)
}

func TestImageVolume(t *testing.T) {
	t.Parallel()
	p := start(t, `
volumes: [{name: data, image: {reference: DATA, pullPolicy: IfNotPresent}}]
containers:
- name: main
  image: BUSYBOX
  command: [sleep, inf]
  volumeMounts:
  - {name: data, mountPath: /whole}
  - {name: data, mountPath: /part, subPath: data/sub}`)
	p.running(t)
	wantEqual(t, "whole", p.shell(t, "main", "cat /whole/data/sub/file"), "from the image")
	wantEqual(t, "part", p.shell(t, "main", "ls /part"), "file")
	wantContains(t, "writing", p.shell(t, "main", "touch /whole/x 2>&1 || true"), "Read-only file system")
}

func TestImageVolumeWithoutItsSubPath(t *testing.T) {
	t.Parallel()
	p := start(t, `
volumes: [{name: data, image: {reference: DATA}}]
containers:
- name: main
  image: BUSYBOX
  command: [sleep, inf]
  volumeMounts: [{name: data, mountPath: /part, subPath: no/such/dir}]`)
	status := p.wait(t, "a failure", func(s *Status) bool {
		w := s.Container("main").State.Waiting
		return w != nil && w.Reason != "ContainerCreating"
	})
	// The kubelet counts by the beginning of the message.
	waiting := status.Container("main").State.Waiting
	wantEqual(t, "reason", waiting.Reason, "CreateContainerError")
	if !strings.HasPrefix(waiting.Message, "ImageVolumeMountFailed: ") {
		t.Errorf("message is %q", waiting.Message)
	}
}
