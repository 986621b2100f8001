//go:build e2e

package vm

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/images"
)

// crictl runs the real one, with the configuration in /etc.
func crictl(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	var stderr strings.Builder
	cmd := exec.CommandContext(ctx, "crictl", args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("crictl %v: %v\n%s", args, err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

func writeConfig(t *testing.T, name string, message proto.Message) string {
	t.Helper()
	b, err := protojson.MarshalOptions{UseProtoNames: true, UseEnumNumbers: true}.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestNodeSmokeWithCrictl(t *testing.T) {
	pod := podConfig("smoke", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podsmoke.slice")
	networked(pod)
	pod.Hostname = "smoke"
	config := containerConfig("c", "echo out; sleep 1000")
	config.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_POD
	config.Image.Image = images.Busybox
	podFile, containerFile := writeConfig(t, "pod.json", pod), writeConfig(t, "container.json", config)

	crictl(t, "pull", images.Busybox)
	sandbox := crictl(t, "runp", podFile)
	id := crictl(t, "create", sandbox, containerFile, podFile)
	crictl(t, "start", id)
	wantEqual(t, "exec", crictl(t, "exec", id, "hostname"), "smoke")
	eventually(t, "the log has the output", func() bool { return crictl(t, "logs", id) == "out" })
	var status struct{ Status struct{ State string } }
	if err := json.Unmarshal([]byte(crictl(t, "inspect", id)), &status); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "state", status.Status.State, "CONTAINER_RUNNING")
	crictl(t, "stop", "-t", "1", id)
	crictl(t, "rm", id)
	crictl(t, "stopp", sandbox)
	crictl(t, "rmp", sandbox)
	wantEqual(t, "what is left", crictl(t, "pods", "-q")+crictl(t, "ps", "-aq"), "")
	command(t, "systemctl", "stop", "kubepods-burstable-podsmoke.slice")
}
