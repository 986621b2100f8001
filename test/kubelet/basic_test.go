//go:build e2e

package kubelet

import (
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/test/e2e/images"
)

func TestPodRunsWithLogAndExec(t *testing.T) {
	t.Parallel()
	p := start(t, `
containers:
- {name: main, image: BUSYBOX, command: [sh, -c, "echo hello from $(hostname); exec sleep 10000"]}`)
	status := p.running(t)
	wantContains(t, "pod address", status.PodIP, "10.78.1.")
	c := status.Container("main")
	wantContains(t, "container id", c.ContainerID, "gantry://")
	wantEqual(t, "image", c.Image, images.Busybox)
	wantContains(t, "image id", c.ImageID, "registry.test/gantry/busybox@sha256:")
	wantEqual(t, "restarts", c.RestartCount, 0)
	p.logsHave(t, "main", "hello from "+p.Name+"\n")

	wantEqual(t, "address inside", p.shell(t, "main", "ip -4 -o addr show eth0 | sed 's|.* inet ||;s|/.*||'"), status.PodIP)
	result, err := p.Exec(timeout(t), "main", strings.NewReader("through stdin"), "sh", "-c", "cat; echo bad >&2; exit 7")
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "stdout", result.Stdout, "through stdin")
	wantEqual(t, "stderr", result.Stderr, "bad\n")
	wantContains(t, "failure", result.Failure, "(ExitCode 7)")
	out, err := p.Run(timeout(t), "main", "cat /etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	wantContains(t, "resolv.conf", out, "nameserver "+NodeIP)
}
