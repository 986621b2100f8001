//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	version "github.com/containerd/containerd/api/services/version/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/node"
)

// cadvisor is what the kubelet's cAdvisor does: the three calls, and a look at cgroups and processes.
type cadvisor struct {
	conn   *grpc.ClientConn
	parent string // the daemon's cgroup_parent
}

// cadvisorNode is a node that serves cAdvisor on a socket of its own.
func cadvisorNode(t *testing.T, name string) (*node.Node, string, cadvisor) {
	t.Helper()
	socket := filepath.Join(node.Dir(), name+".run", "containerd.sock")
	n := configuredNode(t, name, fmt.Sprintf("cgroup_parent = \"/gantry-%s\"\n[cadvisor]\nserve = \"on\"\naddress = \"unix://%s\"\n", name, socket))
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return n, socket, cadvisor{conn, "/gantry-" + name}
}

func inKubernetes(t *testing.T) context.Context {
	return metadata.AppendToOutgoingContext(timeout(t), "containerd-namespace", "k8s.io")
}

// pid is the process of a container or a sandbox, 0 if there is none.
func (c cadvisor) pid(t *testing.T, id string) int {
	t.Helper()
	r, err := tasks.NewTasksClient(c.conn).Get(inKubernetes(t), &tasks.GetRequest{ContainerID: id}, grpc.WaitForReady(true))
	if err != nil {
		wantCode(t, err, codes.NotFound)
		return 0
	}
	return int(r.GetProcess().GetPid())
}

func (c cadvisor) labels(t *testing.T, id string) map[string]string {
	t.Helper()
	r, err := containers.NewContainersClient(c.conn).Get(inKubernetes(t), &containers.GetContainerRequest{ID: id}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	return r.GetContainer().GetLabels()
}

// cgroup is that of a sandbox's name which is not a pod's own.
func (c cadvisor) cgroup(t *testing.T, id string) os.FileInfo {
	t.Helper()
	for _, hierarchy := range []string{"", "devices", "cpu", "memory"} {
		if info, err := os.Stat(filepath.Join(cgroupTop, hierarchy, c.parent, "sandboxes", id)); err == nil {
			return info
		}
	}
	return nil
}

// netNS tells network namespaces apart.
func netNS(t *testing.T, pid int) string {
	t.Helper()
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func readProc(t *testing.T, pid int, file string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func podNamed(c *runtime.PodSandboxConfig) {
	c.Labels = map[string]string{"io.kubernetes.pod.name": c.Metadata.Name, "io.kubernetes.pod.namespace": c.Metadata.Namespace}
}

func TestCadvisorFindsAPodByItsCgroup(t *testing.T) {
	n, _, c := cadvisorNode(t, "cadv")
	if _, err := version.NewVersionClient(c.conn).Version(timeout(t), &emptypb.Empty{}); err != nil {
		t.Fatal(err)
	}
	p := runPodOn(t, n, podConfig(t, n, ""), podNamed)
	wantEqual(t, "process of a pod without containers", c.pid(t, p.id), 0)
	first := p.start(t, "first", "while [ ! -e /dev/shm/end ]; do usleep 10000; done")
	second := p.start(t, "second", "sleep 1000")
	wantEqual(t, "kind of the pod", c.labels(t, p.id)["io.cri-containerd.kind"], "sandbox")
	wantEqual(t, "name of the pod", c.labels(t, p.id)["io.kubernetes.pod.name"], p.config.Metadata.Name)
	wantEqual(t, "kind of the container", c.labels(t, first.id)["io.cri-containerd.kind"], "container")
	for _, container := range []*container{first, second} {
		if pid := c.pid(t, container.id); pid == 0 || !strings.Contains(readProc(t, pid, "cgroup"), container.id) {
			t.Errorf("process of container %s is %d", container.id, pid)
		}
	}
	eventually(t, "the pod has a cgroup", func() bool { return c.cgroup(t, p.id) != nil })
	made := c.cgroup(t, p.id)
	wantEqual(t, "process of the pod", c.pid(t, p.id), c.pid(t, first.id))
	if netNS(t, c.pid(t, p.id)) == netNS(t, os.Getpid()) {
		t.Error("the pod's process is in the host's network namespace")
	}
	second.exec(t, "touch /dev/shm/end")
	first.waitExit(t)
	eventually(t, "the pod's cgroup is another one", func() bool {
		now := c.cgroup(t, p.id)
		return now != nil && !os.SameFile(made, now)
	})
	wantEqual(t, "process of the pod", c.pid(t, p.id), c.pid(t, second.id))
	if err := second.stop(t, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pod's cgroup is gone", func() bool { return c.cgroup(t, p.id) == nil })
}

func TestCadvisorFindsTheNetworkOfASharedPIDNamespace(t *testing.T) {
	n, _, c := cadvisorNode(t, "cadvpid")
	p := runPodOn(t, n, podConfig(t, n, ""), podPID)
	share := p.start(t, "share", "sleep 1000", pidMode(runtime.NamespaceMode_POD))
	init := c.pid(t, p.id)
	if init == 0 || init == c.pid(t, share.id) || !strings.Contains(readProc(t, init, "cgroup"), p.id) {
		t.Fatalf("process of the pod is %d, that of its container %d", init, c.pid(t, share.id))
	}
	wantEqual(t, "network namespace of the init", netNS(t, init), netNS(t, c.pid(t, share.id)))
	if c.cgroup(t, p.id) != nil {
		t.Error("there are two cgroups of the pod's name")
	}
}

func TestCadvisorIsServedAcrossAKill(t *testing.T) {
	n, socket, c := cadvisorNode(t, "cadvkill")
	p := runPodOn(t, n, podConfig(t, n, ""))
	one := p.start(t, "c", "sleep 1000")
	other := runPodOn(t, n, podConfig(t, n, "-other"))
	ends := other.start(t, "c", "sleep 1000")
	eventually(t, "the pods have cgroups", func() bool { return c.cgroup(t, p.id) != nil && c.cgroup(t, other.id) != nil })
	n.Kill()
	if _, err := os.Lstat(socket); err != nil {
		t.Fatalf("a killed daemon leaves its socket: %v", err)
	}
	for _, pid := range processesWith(t, ends.id) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "process of the pod", c.pid(t, p.id), c.pid(t, one.id))
	eventually(t, "the pod that ended has no cgroup", func() bool { return c.cgroup(t, p.id) != nil && c.cgroup(t, other.id) == nil })
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after a clean end the socket is still there: %v", err)
	}
	if c.cgroup(t, p.id) != nil {
		t.Error("after a clean end the pod's cgroup is still there")
	}
	if err := n.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pod has a cgroup again", func() bool { return c.cgroup(t, p.id) != nil })
	n.Kill()
	off := strings.Replace(n.Config, `serve = "on"`, `serve = "off"`, 1)
	if err := os.WriteFile(filepath.Join(n.Dir, "config.toml"), []byte(off), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a daemon that does not serve cAdvisor removes the cgroup of the killed one", func() bool {
		return c.cgroup(t, p.id) == nil
	})
}

func TestCadvisorSocketOfAnotherProgramIsLeftAlone(t *testing.T) {
	socket := filepath.Join(node.Dir(), "other.sock")
	config := "[cadvisor]\nserve = %q\naddress = \"unix://" + socket + "\"\n"
	other, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	n := configuredNode(t, "cadvauto", fmt.Sprintf(config, "auto"))
	eventually(t, "the log says that cAdvisor is not served, and why", func() bool {
		log, err := os.ReadFile(n.LogFile())
		return err == nil && strings.Contains(string(log), "cAdvisor is not served") &&
			strings.Contains(string(log), "another process listens there")
	})
	strict, err := newNode("cadvon", func(o *node.Options) { o.Config = fmt.Sprintf(config, "on") })
	if err != nil {
		t.Fatal(err)
	}
	if err := strict.Start(timeout(t)); err == nil || !strings.Contains(err.Error(), "serve cAdvisor: listen on "+socket) {
		t.Errorf("with \"on\": %v", err)
	}
	if err := strict.Close(); err != nil {
		t.Error(err)
	}
	if conn, err := net.Dial("unix", socket); err != nil {
		t.Errorf("the other program's socket: %v", err)
	} else {
		conn.Close()
	}
	other.Close()
}

// containerd, which takes the name of its socket without asking, may be started after the daemon.
func TestCadvisorSocketThatWasTakenIsNotRemoved(t *testing.T) {
	n, socket, _ := cadvisorNode(t, "cadvtaken")
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	other, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(socket); err != nil {
		t.Errorf("the daemon removed a socket that is not its own: %v", err)
	}
	other.Close()
	if err := n.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
}
