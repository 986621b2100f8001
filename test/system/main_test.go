//go:build e2e

package system

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/test/e2e/images"
	"github.com/gantry-cri/gantry/test/e2e/machine"
	"github.com/gantry-cri/gantry/test/e2e/node"
)

// top is the top of the tree; archive is busyboxImage as 'docker save' writes it.
var (
	top     string
	set     *images.Set
	archive []byte
)

// registryData is the directory of a registry that has the images.
var registryData string

const busyboxImage = images.Busybox

func TestMain(m *testing.M) {
	inner, code := node.Isolate()
	if !inner {
		os.Exit(code)
	}
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "system:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func prepare() (err error) {
	if top, err = filepath.Abs("../.."); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if set, err = images.Build(ctx, images.E2E()[:1]); err != nil {
		return err
	}
	dir := filepath.Join(node.Dir(), "registry")
	registry, err := node.StartRegistry(ctx, filepath.Join(top, ".work/bin"), dir, false)
	if err != nil {
		return err
	}
	defer registry.Stop()
	registryData = filepath.Join(dir, "data")
	if err := set.Push(ctx, images.Registry{Address: registry.Address}); err != nil {
		return err
	}
	var buffer bytes.Buffer
	err = set.WriteDockerArchive(&buffer, busyboxImage)
	archive = buffer.Bytes()
	return err
}

// box is a machine of one test.
type box struct {
	*testing.T
	*machine.Machine
	ctx context.Context
}

// boot boots a machine that lives as long as the test, with crictl in it.
func boot(t *testing.T) *box {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(cancel)
	scratch := filepath.Join(node.Dir(), t.Name())
	if err := os.MkdirAll(scratch, 0o755); err != nil {
		t.Fatal(err)
	}
	m, err := machine.Boot(ctx, filepath.Join(top, "hack/systemd"), filepath.Join(top, ".work/systemd-root"), scratch)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	b := &box{t, m, ctx}
	b.put(".work/bin/crictl", "/usr/bin/crictl", 0o755)
	return b
}

// copyDir copies a directory with all below it.
func (b *box) copyDir(source, target string) {
	b.Helper()
	tar := exec.CommandContext(b.ctx, "tar", "-C", source, "-c", ".")
	tar.Stderr = os.Stderr
	files, err := tar.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := tar.Start(); err != nil {
		b.Fatal(err)
	}
	b.feed(files, "sh", "-c", fmt.Sprintf("mkdir -p '%s' && tar -x -C '%[1]s'", target))
	if err := tar.Wait(); err != nil {
		b.Fatalf("tar of %s: %v", source, err)
	}
}

// put copies a file of the tree.
func (b *box) put(source, target string, mode os.FileMode) {
	b.Helper()
	if err := b.Put(b.ctx, filepath.Join(top, source), target, mode); err != nil {
		b.Fatal(err)
	}
}

func (b *box) write(text, target string) {
	b.Helper()
	if err := b.Write(b.ctx, strings.NewReader(text), target, 0o644); err != nil {
		b.Fatal(err)
	}
}

// run runs a command that must succeed and returns what it printed.
func (b *box) run(command ...string) string {
	b.Helper()
	return b.feed(nil, command...)
}

// sh runs a line of shell that must succeed.
func (b *box) sh(line string) string {
	b.Helper()
	return b.run("sh", "-c", line)
}

// feed is run with an input.
func (b *box) feed(stdin io.Reader, command ...string) string {
	b.Helper()
	out, err := b.Exec(b.ctx, stdin, command...)
	if err != nil {
		b.Fatalf("%v\n%s\n%s", err, out, b.journal())
	}
	return strings.TrimSpace(out)
}

// fails runs a command that must not succeed and returns its error.
func (b *box) fails(command ...string) error {
	b.Helper()
	out, err := b.Exec(b.ctx, nil, command...)
	if err == nil {
		b.Errorf("%q succeeded: %s", command, out)
	}
	return err
}

// journal is the end of what the machine logged.
func (b *box) journal() string {
	out, _ := b.Exec(context.Background(), nil, "sh", "-c",
		"journalctl --no-pager -n 40; tail -n 20 /run/gantry/keeper.log")
	return out
}

// want compares.
func (b *box) want(what, got, want string) {
	b.Helper()
	if got != want {
		b.Errorf("%s: %q, expected %q\n%s", what, got, want, b.journal())
	}
}

// eventually waits for a line of shell to succeed.
func (b *box) eventually(line string) {
	b.Helper()
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if _, err = b.Exec(b.ctx, nil, "sh", "-c", line); err == nil {
			return
		}
	}
	b.Fatalf("not in time: %v\n%s", err, b.journal())
}

// pod runs a pod of one container named c, with the given script, and returns the container's id. parent is the pod's
// cgroup, or nothing.
func (b *box) pod(name, parent, script string) (id string) {
	b.Helper()
	b.write(fmt.Sprintf(`{"metadata": {"name": %q, "namespace": "default", "uid": %[1]q}, "hostname": %[1]q,
		"log_directory": "/var/log/pods/%[1]s",
		"linux": {"cgroup_parent": %[2]q, "security_context": {"namespace_options": {"pid": 1}}}}`, name, parent),
		"/root/"+name+".json")
	b.write(fmt.Sprintf(`{"metadata": {"name": "c"}, "image": {"image": %q}, "log_path": "c.log",
		"command": ["sh", "-c", %q], "linux": {"security_context": {"namespace_options": {"pid": 1}}}}`,
		busyboxImage, script),
		"/root/c.json")
	return b.run("crictl", "run", "--no-pull", "/root/c.json", "/root/"+name+".json")
}

// pid is the container's process in the machine's namespace.
func (b *box) pid(container string) string {
	b.Helper()
	return b.run("crictl", "inspect", "-o", "go-template", "--template", "{{.info.pid}}", container)
}
