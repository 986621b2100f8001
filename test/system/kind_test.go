//go:build e2e

package system

import (
	"bytes"
	"encoding/json"
	"io"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// kindNode is a machine that hack/kind/install.sh made a node of kind of, without Kubernetes.
func kindNode(t *testing.T) *box {
	t.Helper()
	b := boot(t)
	b.copyDir(filepath.Join(top, ".work/kind"), "/kind/gantry")
	b.Log(b.sh("/kind/gantry/install.sh 2>&1"))
	b.write(network, "/etc/cni/net.d/10-kindnet.conflist")
	for _, plugin := range []string{"bridge", "host-local"} {
		b.put("bin/cni/"+plugin, "/opt/cni/bin/"+plugin, 0o755)
	}
	return b
}

// ctr runs one of kind's calls, shows it as it would be typed, and returns what it printed.
func (b *box) ctr(stdin io.Reader, args ...string) string {
	b.Helper()
	out := b.feed(stdin, append([]string{"ctr", "--namespace=k8s.io"}, args...)...)
	b.Logf("$ ctr --namespace=k8s.io %s\n%s", strings.Join(args, " "), out)
	return out
}

// shown runs a command and shows it.
func (b *box) shown(command ...string) string {
	b.Helper()
	out := b.run(command...)
	b.Logf("$ %s\n%s", strings.Join(command, " "), out)
	return out
}

func TestKindImportsWhatCameWithTheNode(t *testing.T) {
	b := kindNode(t)
	b.put("README.md", "/kind/gantry-images/none", 0o644) // is no archive and stays
	if err := b.Write(b.ctx, bytes.NewReader(archive), "/kind/gantry-images/preloaded.tar", 0o644); err != nil {
		t.Fatal(err)
	}
	b.run("systemctl", "start", "gantry-kind-images.service")
	if !b.inspect(busyboxImage).Status.Pinned {
		t.Error("the image is not pinned")
	}
	b.want("archives left", b.run("ls", "/kind/gantry-images"), "none")
}

type inspected struct {
	Status struct {
		ID       string
		RepoTags []string
		Pinned   bool
	}
}

// inspect asks as kind does.
func (b *box) inspect(image string) (i inspected) {
	b.Helper()
	if err := json.Unmarshal([]byte(b.run("crictl", "inspecti", image)), &i); err != nil || i.Status.ID == "" {
		b.Fatalf("crictl inspecti %s: %+v, %v", image, i, err)
	}
	return i
}

func TestKindCalls(t *testing.T) {
	b := kindNode(t)
	if out := b.shown("containerd", "--version"); len(strings.Fields(out)) != 4 {
		t.Errorf("containerd --version: %q", out)
	}
	var config struct {
		Version int
		Plugins map[string]struct{ Snapshotter string }
	}
	if err := toml.Unmarshal([]byte(b.shown("containerd", "config", "dump")), &config); err != nil ||
		config.Version != 3 || config.Plugins["io.containerd.cri.v1.images"].Snapshotter != "overlayfs" {
		t.Errorf("containerd config dump: %+v, %v", config, err)
	}
	var spec struct{ OCIVersion string }
	if err := json.Unmarshal([]byte(b.run("ctr", "oci", "spec")), &spec); err != nil || spec.OCIVersion == "" {
		t.Errorf("ctr oci spec: %+v, %v", spec, err)
	}
	b.fails("ctr", "info")

	b.run("systemctl", "start", "containerd")
	b.want("is-active", b.shown("systemctl", "is-active", "containerd"), "active")
	b.shown("ctr", "info")
	if pid := b.shown("pgrep", "--exact", "containerd"); pid != b.run("systemctl", "show", "-P", "MainPID", "containerd") {
		t.Errorf("pgrep --exact containerd: %q", pid)
	}
	if log := b.run("journalctl", "--no-pager", "-u", "containerd.service"); !strings.Contains(log, "Serving") {
		t.Errorf("journalctl -u containerd.service: %q", log)
	}
	if out := b.run("crictl", "info"); !strings.Contains(out, "test-handler") {
		t.Errorf("crictl info has no test-handler: %s", out)
	}
	b.kindImages()

	// kind's kubelet has cgroupRoot /kubelet.
	c := b.pod("web", "kubelet-kubepods-podweb.slice", counts)
	pid := b.pid(c)
	b.want("cgroup", b.sh("sed -n s/^0:://p /proc/"+pid+"/cgroup"),
		"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podweb.slice/gantry-"+c+".scope")
	b.cadvisorFinds(c)
	b.run("systemctl", "restart", "containerd")
	b.run("pkill", "containerd")
	b.eventually("systemctl is-active containerd && crictl version")
	b.want("pid of a container after restart and pkill", b.pid(c), pid)
	b.gapless(c)
	b.quiet()
}

// cadvisorFinds asks what the kubelet's cAdvisor asks containerd, on the one socket that there is.
func (b *box) cadvisorFinds(container string) {
	b.Helper()
	conn, err := grpc.NewClient("unix://"+b.Root()+"/run/containerd/containerd.sock",
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	ctx := metadata.AppendToOutgoingContext(b.ctx, "containerd-namespace", "k8s.io")
	got, err := containers.NewContainersClient(conn).Get(ctx, &containers.GetContainerRequest{ID: container})
	if err != nil || got.GetContainer().GetLabels()["io.cri-containerd.kind"] != "container" {
		b.Errorf("containers.Get: %v, %v", got, err)
	}
}

// fetch pulls from a registry in the machine, found by a hosts.toml where kind's users put one.
func (b *box) fetch() {
	b.Helper()
	b.put(".work/bin/registry", "/usr/bin/registry", 0o755)
	b.copyDir(registryData, "/var/lib/registry")
	b.write("version: 0.1\nstorage: {filesystem: {rootdirectory: /var/lib/registry}}\nhttp: {addr: '127.0.0.1:5000'}\n",
		"/etc/registry.yml")
	b.run("systemd-run", "--unit=registry", "registry", "serve", "/etc/registry.yml")
	b.write("server = 'http://127.0.0.1:5000'\n", "/etc/containerd/certs.d/registry.test/hosts.toml")
	b.eventually("ss -Hltn | grep -q 127.0.0.1:5000")
	b.run("crictl", "rmi", busyboxImage)
	b.ctr(nil, "content", "fetch", "--platform=linux/"+runtime.GOARCH, busyboxImage)
	if i := b.inspect(busyboxImage); len(i.Status.RepoTags) != 1 {
		b.Errorf("tags of a fetched image: %q", i.Status.RepoTags)
	}
}

// kindImages loads, names, lists and fetches images as kind does.
func (b *box) kindImages() {
	b.Helper()
	load := []string{"images", "import", "--all-platforms", "--digests", "--snapshotter=overlayfs", "-"}
	b.ctr(bytes.NewReader(archive), load...)
	first := b.inspect(busyboxImage)
	b.want("name", strings.Join(first.Status.RepoTags, " "), busyboxImage)
	if first.Status.Pinned {
		b.Error("a loaded image is pinned")
	}
	b.run("crictl", "rmi", busyboxImage)
	b.fails("crictl", "inspecti", busyboxImage)
	var oci bytes.Buffer
	if err := set.WriteOCIArchive(&oci, busyboxImage); err != nil {
		b.Fatal(err)
	}
	b.ctr(&oci, load...)
	b.want("id from the OCI archive", b.inspect(busyboxImage).Status.ID, first.Status.ID)
	b.ctr(bytes.NewReader(archive), "images", "import", "--label=io.cri-containerd.pinned=pinned", "--all-platforms",
		"--no-unpack", "--digests", "-")
	if !b.inspect(busyboxImage).Status.Pinned {
		b.Error("an image with the label is not pinned")
	}
	b.ctr(nil, "images", "tag", "--force", busyboxImage, "localhost/second:v1")
	b.ctr(nil, "images", "tag", "--force", busyboxImage, "localhost/second:v1")
	b.fails("ctr", "--namespace=k8s.io", "images", "tag", busyboxImage, "localhost/second:v1")
	names := strings.Fields(b.ctr(nil, "images", "list", "-q"))
	for _, want := range []string{busyboxImage, "localhost/second:v1"} {
		if !slices.Contains(names, want) {
			b.Errorf("ctr images list -q: %q, expected %s in it", names, want)
		}
	}
	if tags := b.inspect("localhost/second:v1").Status.RepoTags; len(tags) != 2 {
		b.Errorf("tags after ctr images tag: %q", tags)
	}
	b.shown("crictl", "images")
	b.fetch()
	for _, bad := range [][]string{
		{"images", "import", "--snapshotter=stargz", "-"}, {"images", "import", "--label=a=b", "-"},
		{"content", "fetch", "--platform=linux/s390x", busyboxImage}, {"images", "push", busyboxImage},
	} {
		b.Log(b.fails(append([]string{"ctr", "--namespace=k8s.io"}, bad...)...))
	}
	b.Log(b.fails("ctr", "images", "list", "-q"))
}
