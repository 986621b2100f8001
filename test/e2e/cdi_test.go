//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCDIDevices(t *testing.T) {
	dir := t.TempDir()
	spec := fmt.Sprintf(`
cdiVersion: 0.7.0
kind: example.com/sink
containerEdits:
  env: [VENDOR=example]
  mounts: [{hostPath: %q, containerPath: /vendor, options: [ro, rbind, nosuid, nodev]}]
devices:
  - name: one
    containerEdits:
      deviceNodes: [{path: /dev/sink, hostPath: /dev/null, permissions: rw}]
      env: [SINK=/dev/sink]
`, dir)
	if err := os.WriteFile(filepath.Join(dir, "example.yaml"), []byte(spec), 0o644); err != nil {
		t.Fatal(err)
	}
	n := configuredNode(t, "cdi", fmt.Sprintf("[cdi]\nspec_dirs = [%q]\n", dir))
	p := runHandler(t, n, "")
	with := func(name string) func(*runtime.ContainerConfig) {
		return func(c *runtime.ContainerConfig) { c.CDIDevices = []*runtime.CDIDevice{{Name: name}} }
	}
	out := p.output(t, "c", `echo $VENDOR $SINK; echo gone > $SINK && echo written; stat -c '%t:%T %F' $SINK; ls /vendor`,
		with("example.com/sink=one"))
	want := "example /dev/sink\nwritten\n1:3 character special file\nexample.yaml"
	wantEqual(t, "output", strings.TrimSpace(out), want)
	out = p.output(t, "without", `echo ${VENDOR:-none}; ls /dev/sink 2>&1 | grep -c 'No such'`)
	wantEqual(t, "output without the device", strings.TrimSpace(out), "none\n1")

	config := containerConfig("unknown", "true")
	with("example.com/sink=other")(config)
	_, err := p.tryCreate(t, config)
	wantCode(t, err, codes.InvalidArgument, "CDI_devices", "example.com/sink=other")

	// A vendor's change counts for the next container, and a restart between create and start does no harm.
	c := p.create(t, "later", `echo $VENDOR; sleep 1000`, with("example.com/sink=one"))
	n.Kill()
	if err := n.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
	if err := c.start(t); err != nil {
		t.Fatal(err)
	}
	c.waitLog(t, "example")
	if err := os.Remove(filepath.Join(dir, "example.yaml")); err != nil {
		t.Fatal(err)
	}
	config = containerConfig("gone", "true")
	with("example.com/sink=one")(config)
	_, err = p.tryCreate(t, config)
	wantCode(t, err, codes.InvalidArgument, "example.com/sink=one")
}
