//go:build e2e

package vm

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// cadvisorSocket is where the kubelet's cAdvisor looks.
const cadvisorSocket = "/run/containerd/containerd.sock"

// processFor is the process that cAdvisor is told for an id.
func processFor(t *testing.T, id string) int {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+cadvisorSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "containerd-namespace", "k8s.io")
	r, err := tasks.NewTasksClient(conn).Get(ctx, &tasks.GetRequest{ContainerID: id}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	return int(r.GetProcess().GetPid())
}

// The cgroup that stands in for a pause container's is in what systemd has delegated to the daemon, and has no controller.
func TestNodeTellsCadvisor(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "sleep 1000")
	pid := processFor(t, p.id)
	if pid == 0 || pid != processFor(t, c.id) {
		t.Errorf("process of the pod is %d, that of its container %d", pid, processFor(t, c.id))
	}
	dir := filepath.Join(cgroupRoot, "system.slice/gantryd.service/sandboxes", p.id)
	there := func() bool {
		_, err := os.Stat(dir)
		return err == nil
	}
	eventually(t, "the pod has a cgroup", there)
	controllers, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "its controllers", strings.TrimSpace(string(controllers)), "")
	command(t, "systemctl", "daemon-reload")
	if !there() {
		t.Error("systemd removed the pod's cgroup")
	}
	command(t, "systemctl", "restart", "gantryd")
	ready(t)
	wantEqual(t, "process of the pod after a restart", processFor(t, p.id), pid)
	eventually(t, "the pod has a cgroup again", there)
}
