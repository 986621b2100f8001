package sandbox

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/keeper/pins"
)

func mappedConfig(name string) *runtime.PodSandboxConfig {
	c := podConfig(name)
	ids := []*runtime.IDMapping{{HostId: 100000, Length: 65536}}
	c.Linux.SecurityContext = &runtime.LinuxSandboxSecurityContext{NamespaceOptions: &runtime.NamespaceOption{
		UsernsOptions: &runtime.UserNamespace{Uids: ids, Gids: ids},
	}}
	return c
}

func TestUserNamespaceNeedsANodeThatCan(t *testing.T) {
	r := newRig(t) // its keeper's binary does not exist
	if r.m.UserNamespaces() {
		t.Error("the node says that it can")
	}
	_, err := r.m.Run(context.Background(), mappedConfig("a"), "")
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "userns_options") {
		t.Errorf("got %v, expected FailedPrecondition that names the field", err)
	}
	r.nothingLeft()
}

func TestStateDirectoryHasToBeOpen(t *testing.T) {
	dir := t.TempDir()
	closed := filepath.Join(dir, "closed")
	if err := os.MkdirAll(closed+"/state", 0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := checkOpen(closed + "/state"); err == nil || !strings.Contains(err.Error(), closed+" has mode 0700") {
		t.Errorf("got %v, expected an error that names the closed directory", err)
	}
	if err := checkOpen("/usr/bin"); err != nil {
		t.Error(err)
	}
}

func TestSandboxHasItsUserNamespaceAndTheFilesForIt(t *testing.T) {
	r := newRig(t)
	cat, err := exec.LookPath("cat")
	if err != nil {
		t.Fatal(err)
	}
	r.m.config.Keeper, r.m.noUserns = cat, nil
	id, err := r.m.Run(context.Background(), mappedConfig("a"), "")
	if err != nil {
		t.Fatal(err)
	}
	if pin := r.m.pins.Path(r.m.sandboxes[id].userNS()); !pins.Alive(pin) {
		t.Errorf("%s is not pinned", pin)
	}
	for _, name := range []string{hostnameFile, hostsFile, resolvFile} {
		info, err := os.Stat(filepath.Join(r.m.sandboxDir(id), name))
		if err != nil || info.Sys().(*syscall.Stat_t).Uid != 100000 || info.Mode().Perm() != 0o644 {
			t.Errorf("%s: %+v, %v; expected it to be the namespace's root's", name, info, err)
		}
	}
	if err := r.m.Remove(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	r.nothingLeft()
}

func TestUserNamespaceBesideTheNodesNamespacesIsRefused(t *testing.T) {
	r := newRig(t)
	for field, change := range map[string]func(*runtime.NamespaceOption){
		"namespace_options.ipc": func(o *runtime.NamespaceOption) { o.Ipc = runtime.NamespaceMode_NODE },
		"namespace_options.pid": func(o *runtime.NamespaceOption) { o.Pid = runtime.NamespaceMode_NODE },
	} {
		c := mappedConfig("a")
		change(c.Linux.SecurityContext.NamespaceOptions)
		if _, err := r.m.Run(context.Background(), c, ""); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), field) {
			t.Errorf("got %v, expected InvalidArgument that names %s", err, field)
		}
	}
	r.nothingLeft()
}
