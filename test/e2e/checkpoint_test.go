//go:build e2e

package e2e

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/node"
)

// counterScript counts, by a process that lives all the time, so that only one that was restored can go on.
const counterScript = `i=0; while :; do i=$((i+1)); echo $i; usleep 10000; done`

// needCRIU skips a test on a node whose kernel CRIU does not get on with.
func needCRIU(t *testing.T) {
	t.Helper()
	out, err := exec.Command("criu", "check").CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatal("criu is missing: hack/deps.sh installs it")
	}
	if err != nil {
		t.Skipf("criu check: %v: this kernel lacks what CRIU needs: %s", err, out)
	}
}

// numbers are the lines of a counter's log.
func (c *container) numbers(t *testing.T) (list []int) {
	t.Helper()
	for _, line := range readLog(t, c.logPath) {
		n, err := strconv.Atoi(line.text)
		if err != nil {
			t.Fatalf("line of a counter: %v", err)
		}
		list = append(list, n)
	}
	return list
}

// counts waits until a counter has come further, and looks for gaps.
func (c *container) counts(t *testing.T) {
	t.Helper()
	before := len(c.numbers(t))
	eventually(t, "the counter goes on", func() bool { return len(c.numbers(t)) > before+5 })
	list := c.numbers(t)
	for i, n := range list {
		if n != list[0]+i {
			t.Fatalf("line %d of the counter is %d, expected %d", i, n, list[0]+i)
		}
	}
}

func (c *container) checkpoint(t *testing.T, location string) error {
	t.Helper()
	_, err := c.node.Runtime.CheckpointContainer(timeout(t), &runtime.CheckpointContainerRequest{ContainerId: c.id, Location: location})
	return err
}

// whenLetGo repeats a checkpoint until the one before, which was given up, has let go of the containers.
func whenLetGo(t *testing.T, checkpoint func() error) (err error) {
	t.Helper()
	eventually(t, "the checkpoint that was given up lets go", func() bool {
		err = checkpoint()
		return err == nil || !strings.Contains(err.Error(), "is being captured already")
	})
	return err
}

// files reads a tar: the regular files that are no larger than a record of ours, and the names of all.
func files(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	content := map[string]string{}
	for r := tar.NewReader(f); ; {
		header, err := r.Next()
		if err == io.EOF {
			return content
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		content[header.Name] = string(b)
	}
}

func TestCheckpointContainer(t *testing.T) {
	needCRIU(t)
	p := runPod(t)
	c := p.start(t, "counter", "echo kept > /etc/motd; rm /etc/passwd; "+counterScript)
	c.waitLog(t, "5")
	dir := t.TempDir()
	location := filepath.Join(dir, "archive.tar")
	if err := c.checkpoint(t, location); err != nil {
		t.Fatal(err)
	}
	c.counts(t)
	content := files(t, location)
	for _, name := range []string{"checkpoint/inventory.img", "checkpoint/pages-1.img", "checkpoint/pstree.img", "spec.dump", "status.dump"} {
		if content[name] == "" {
			t.Errorf("archive has no %s", name)
		}
	}
	var config struct {
		ID, Name     string
		Image        string    `json:"rootfsImageName"`
		Checkpointed time.Time `json:"checkpointedTime"`
	}
	if err := json.Unmarshal([]byte(content["config.dump"]), &config); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "id", config.ID, c.id)
	wantEqual(t, "name", config.Name, "counter")
	wantEqual(t, "image", config.Image, c.config.Image.UserSpecifiedImage)
	var spec struct{ Annotations map[string]string }
	if err := json.Unmarshal([]byte(content["spec.dump"]), &spec); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "pod's name", spec.Annotations["io.kubernetes.cri.sandbox-name"], p.config.Metadata.Name)
	layer := filepath.Join(dir, "layer.tar")
	if err := os.WriteFile(layer, []byte(content["rootfs-diff.tar"]), 0o600); err != nil {
		t.Fatal(err)
	}
	changed := files(t, layer)
	wantEqual(t, "changed file", changed["etc/motd"], "kept\n")
	if _, ok := changed["etc/.wh.passwd"]; !ok {
		t.Error("layer has no whiteout of a deleted file")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 2 {
		t.Errorf("beside the archive there is %v", entries)
	}
	// It can be done again, and what the container can do it still can.
	if err := c.checkpoint(t, location); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "output of an exec", c.exec(t, "echo works"), "works")
	c.counts(t)
}

func TestCheckpointContainerThatCannotBe(t *testing.T) {
	needCRIU(t)
	p := runPod(t)
	dir := t.TempDir()
	location := filepath.Join(dir, "archive.tar")
	created := p.create(t, "created", "sleep 1000")
	wantCode(t, created.checkpoint(t, location), codes.FailedPrecondition, "created", "running")
	exited := p.start(t, "exited", "exit 0")
	exited.waitExit(t)
	wantCode(t, exited.checkpoint(t, location), codes.FailedPrecondition, "exited", "running")
	terminal := p.start(t, "terminal", "sleep 1000", func(c *runtime.ContainerConfig) { c.Tty = true })
	wantCode(t, terminal.checkpoint(t, location), codes.FailedPrecondition, "terminal")

	c := p.start(t, "counter", counterScript)
	wantCode(t, c.checkpoint(t, "archive.tar"), codes.InvalidArgument, "location", "absolute")
	wantCode(t, c.checkpoint(t, filepath.Join(dir, "none/archive.tar")), codes.InvalidArgument, "location", "exists")
	wantCode(t, c.checkpoint(t, dir), codes.InvalidArgument, "location", "file")
	wantCode(t, c.checkpoint(t, ""), codes.InvalidArgument, "location")
	_, err := c.node.Runtime.CheckpointContainer(timeout(t), &runtime.CheckpointContainerRequest{ContainerId: c.id, Location: location, Timeout: -1})
	wantCode(t, err, codes.InvalidArgument, "timeout")
	_, err = c.node.Runtime.CheckpointContainer(timeout(t), &runtime.CheckpointContainerRequest{ContainerId: strings.Repeat("0", 64), Location: location})
	wantCode(t, err, codes.NotFound)
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("requests that were refused left %v", entries)
	}
	c.counts(t)
}

// bigScript fills memory, so that capturing it takes a while, and then counts.
const bigScript = `x=$(head -c 100000000 /dev/zero | tr '\0' x); echo 0; ` + counterScript

// TestCheckpointContainerGivesUp cuts checkpoints short at many moments.
func TestCheckpointContainerGivesUp(t *testing.T) {
	needCRIU(t)
	p := runPod(t)
	c := p.start(t, "big", bigScript)
	c.waitLog(t, "5")
	dir := t.TempDir()
	cut := 0
	for after := 5 * time.Millisecond; after < 400*time.Millisecond; after += 40 * time.Millisecond {
		err := whenLetGo(t, func() error {
			ctx, cancel := context.WithTimeout(t.Context(), after)
			defer cancel()
			_, err := c.node.Runtime.CheckpointContainer(ctx, &runtime.CheckpointContainerRequest{
				ContainerId: c.id, Location: filepath.Join(dir, "archive.tar"),
			})
			return err
		})
		if err == nil {
			continue
		}
		cut++
		wantCode(t, err, codes.DeadlineExceeded)
		c.counts(t)
	}
	if cut == 0 {
		t.Error("no checkpoint was cut short")
	}
	eventually(t, "nothing partial is left", func() bool {
		os.Remove(filepath.Join(dir, "archive.tar")) // of a call that was done, also when its answer came too late
		entries, _ := os.ReadDir(dir)
		work, _ := os.ReadDir(filepath.Join(c.node.Root(), "checkpoints"))
		return len(entries) == 0 && len(work) == 0
	})
	err := whenLetGo(t, func() error { return c.checkpoint(t, filepath.Join(dir, "archive.tar")) })
	if err != nil {
		t.Errorf("after checkpoints that were cut short: %v", err)
	}
	c.counts(t)
}

func TestCheckpointWithoutCRIU(t *testing.T) {
	n, err := newNode("nocriu", func(o *node.Options) { o.Wrap = []string{"env", "PATH=/var/empty"} })
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, n)
	if err := n.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
	p := runPodOn(t, n, podConfig(t, n, ""), func(c *runtime.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_NODE
	})
	c := p.start(t, "counter", counterScript, func(c *runtime.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_NODE
	})
	c.waitLog(t, "5")
	wantCode(t, c.checkpoint(t, filepath.Join(t.TempDir(), "archive.tar")), codes.FailedPrecondition, "criu", "PATH", "install")
	dir := t.TempDir()
	wantCode(t, p.checkpoint(t, dir, c), codes.FailedPrecondition, "criu", "PATH", "install")
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("there is left %v", entries)
	}
	c.counts(t)
}

// TestStopDuringCheckpoint stops a container at moments of its checkpoint: it is gone in time, and nothing hangs.
func TestStopDuringCheckpoint(t *testing.T) {
	needCRIU(t)
	p := runPod(t)
	for i := range 4 {
		c := p.start(t, fmt.Sprint("big", i), bigScript)
		c.waitLog(t, "5")
		done := make(chan error, 1)
		location := filepath.Join(t.TempDir(), "archive.tar")
		go func() {
			_, err := p.node.Runtime.CheckpointContainer(context.Background(), &runtime.CheckpointContainerRequest{ContainerId: c.id, Location: location, Timeout: 60})
			done <- err
		}()
		time.Sleep(time.Duration(30+60*i) * time.Millisecond)
		if err := c.stop(t, 0); err != nil {
			t.Fatal(err)
		}
		wantEqual(t, "exit code", c.status(t).ExitCode, 137)
		err := <-done
		if _, statErr := os.Stat(location); (err == nil) != (statErr == nil) {
			t.Errorf("the checkpoint ended with %v, its file with %v", err, statErr)
		}
	}
}
