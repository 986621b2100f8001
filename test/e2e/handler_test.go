//go:build e2e

package e2e

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/images"
	"github.com/gantry-cri/gantry/test/e2e/node"
)

// configuredNode starts a node with a configuration file.
func configuredNode(t *testing.T, name, config string) *node.Node {
	t.Helper()
	n, err := newNode(name, func(o *node.Options) { o.Config = config })
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, n)
	return n
}

// runHandler runs a pod by a handler and removes it when the test ends.
func runHandler(t *testing.T, n *node.Node, handler string, changes ...func(*runtime.PodSandboxConfig)) *pod {
	t.Helper()
	config := podConfig(t, n, "-"+handler)
	for _, change := range changes {
		change(config)
	}
	response, err := n.Runtime.RunPodSandbox(timeout(t), &runtime.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		t.Fatal(err)
	}
	p := &pod{node: n, id: response.PodSandboxId, config: config}
	t.Cleanup(func() { p.remove(t) })
	return p
}

func TestRuntimeHandlers(t *testing.T) {
	n := configuredNode(t, "handler", `
[runtime_handlers.test-handler]
[runtime_handlers.bare]
privileged_without_host_devices = true
`)
	status, err := n.Runtime.Status(timeout(t), &runtime.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, h := range status.RuntimeHandlers {
		names = append(names, h.Name)
		if h.Features == nil {
			t.Errorf("handler %q has no features", h.Name)
		}
	}
	wantEqual(t, "handlers", strings.Join(names, ","), ",bare,test-handler")

	config := podConfig(t, n, "-unknown")
	_, err = n.Runtime.RunPodSandbox(timeout(t), &runtime.RunPodSandboxRequest{Config: config, RuntimeHandler: "kata"})
	wantCode(t, err, codes.InvalidArgument, `runtime_handler is "kata"`, "test-handler")
	image := &runtime.ImageSpec{Image: images.Busybox, RuntimeHandler: "kata"}
	_, err = n.Images.PullImage(timeout(t), &runtime.PullImageRequest{Image: image})
	wantCode(t, err, codes.InvalidArgument, `"kata"`)

	privileged := func(c *runtime.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true }
	for handler, want := range map[string]string{"": "devices", "test-handler": "devices", "bare": "none"} {
		p := runHandler(t, n, handler, privileged)
		wantEqual(t, "handler in the status", p.status(t).RuntimeHandler, handler)
		out := p.output(t, "c", "[ -e /dev/kmsg ] || [ -e /dev/loop-control ] || [ -e /dev/fuse ] && echo devices || echo none",
			func(c *runtime.ContainerConfig) { c.Linux.SecurityContext.Privileged = true })
		wantEqual(t, "a privileged container of "+handler+" has", strings.TrimSpace(out), want)
	}
}

// An image belongs to the handler that it was pulled for (KEP-4216): it is listed, told of and removed by itself. A
// container gets that of its sandbox's handler, or the default handler's, and says which.
func TestImagesOfRuntimeHandlers(t *testing.T) {
	n := configuredNode(t, "imagehand", "[runtime_handlers.vm]\n[runtime_handlers.other]\n")
	id := pull(t, n, images.Busybox)
	sees := func(want ...string) {
		t.Helper()
		list, err := n.Images.ListImages(timeout(t), &runtime.ListImagesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, i := range list.Images {
			if i.Id == id {
				got = append(got, i.Spec.RuntimeHandler)
			}
		}
		wantEqual(t, "handlers that the image is listed for", strings.Join(got, ","), strings.Join(want, ","))
		for _, handler := range []string{"", "vm", "other"} {
			for _, ref := range []string{images.Busybox, id} {
				spec := &runtime.ImageSpec{Image: ref, RuntimeHandler: handler}
				status, err := n.Images.ImageStatus(timeout(t), &runtime.ImageStatusRequest{Image: spec})
				if err != nil {
					t.Fatal(err)
				}
				wantEqual(t, "there for "+handler, status.Image != nil, slices.Contains(want, handler))
				wantEqual(t, "handler of the image", status.Image.GetSpec().GetRuntimeHandler(), map[bool]string{true: handler}[status.Image != nil])
				filter := &runtime.ImageFilter{Image: spec}
				list, err := n.Images.ListImages(timeout(t), &runtime.ListImagesRequest{Filter: filter})
				if err != nil {
					t.Fatal(err)
				}
				wantEqual(t, "listed for "+handler, len(list.Images) == 1, slices.Contains(want, handler))
			}
		}
	}
	remove := func(handler string) {
		t.Helper()
		spec := &runtime.ImageSpec{Image: id, RuntimeHandler: handler}
		if _, err := n.Images.RemoveImage(timeout(t), &runtime.RemoveImageRequest{Image: spec}); err != nil {
			t.Fatal(err)
		}
	}
	sees("")
	p := runHandler(t, n, "vm")
	before := p.start(t, "before", "sleep 1000")
	wantEqual(t, "handler of the first container's image", before.status(t).Image.RuntimeHandler, "")

	spec := &runtime.ImageSpec{Image: images.Busybox, RuntimeHandler: "vm"}
	pulled, err := n.Images.PullImage(timeout(t), &runtime.PullImageRequest{Image: spec})
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "id for the handler", pulled.ImageRef, id)
	sees("", "vm")
	remove("")
	sees("vm")
	config := containerConfig("after", "sleep 1000")
	config.Image.Image = id
	created, err := n.Runtime.CreateContainer(timeout(t), p.createRequest(config))
	if err != nil {
		t.Fatal(err)
	}
	after := &container{pod: p, id: created.ContainerId, config: config}
	if err := after.start(t); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "handler of the second container's image", after.status(t).Image.RuntimeHandler, "vm")
	wantEqual(t, "its image id", after.status(t).ImageId, id)
	_, err = n.Runtime.CreateContainer(timeout(t), runHandler(t, n, "other").createRequest(containerConfig("c", "true")))
	wantCode(t, err, codes.NotFound, images.Busybox)

	n.Kill()
	if err := n.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
	sees("vm")
	remove("other")
	sees("vm")
	wantEqual(t, "handler after a restart", after.status(t).Image.RuntimeHandler, "vm")
	remove("vm")
	sees()
	wantEqual(t, "exec in a container of a removed image", after.exec(t, "echo works"), "works")
	for name, call := range map[string]error{
		"status": second(n.Images.ImageStatus(timeout(t), &runtime.ImageStatusRequest{Image: unknownHandler()})),
		"remove": second(n.Images.RemoveImage(timeout(t), &runtime.RemoveImageRequest{Image: unknownHandler()})),
		"list": second(n.Images.ListImages(timeout(t), &runtime.ListImagesRequest{
			Filter: &runtime.ImageFilter{Image: unknownHandler()},
		})),
	} {
		t.Run(name, func(t *testing.T) { wantCode(t, call, codes.InvalidArgument, `runtime_handler is "kata"`) })
	}
}

func unknownHandler() *runtime.ImageSpec {
	return &runtime.ImageSpec{Image: images.Busybox, RuntimeHandler: "kata"}
}

func second[T any](_ T, err error) error { return err }

func TestUlimitsAreTheConfigured(t *testing.T) {
	n := configuredNode(t, "ulimit", "default_ulimits = [\"nofile=300:400\", \"core=0\"]\n")
	p := runHandler(t, n, "")
	c := p.start(t, "c", "sleep 1000")
	const script = "ulimit -Sn; ulimit -Hn; ulimit -c; ulimit -Hs"
	want := "300\n400\n0\n" // and the stack's, which is inherited
	if got := c.exec(t, script); !strings.HasPrefix(got+"\n", want) {
		t.Errorf("limits of an exec: %q, expected %q", got, want)
	}
	if got := p.output(t, "d", script); !strings.HasPrefix(got, want) {
		t.Errorf("limits: %q, expected %q", got, want)
	}
}

// The default asks for more than most machines let: what cannot be had is lowered, not refused.
func TestDefaultUlimitsAreClamped(t *testing.T) {
	out := runPod(t).output(t, "c", "ulimit -Sn; ulimit -Hn")
	limits := strings.Fields(out)
	if len(limits) != 2 || limits[0] != limits[1] || limits[0] == "unlimited" {
		t.Errorf("limits of open files: %q", out)
	}
}

func TestAmbientCapabilitiesReachAnOrdinaryUser(t *testing.T) {
	p := runPod(t)
	caps := func(name string, change func(*runtime.LinuxContainerSecurityContext)) string {
		return strings.TrimSpace(p.output(t, name, "grep -E 'Cap(Amb|Eff|Inh|Prm)' /proc/self/status | sort -u | sed 's/.*\t//' | uniq",
			func(c *runtime.ContainerConfig) {
				sc := c.Linux.SecurityContext
				sc.RunAsUser = &runtime.Int64Value{Value: 1000}
				sc.Capabilities = &runtime.Capability{DropCapabilities: []string{"ALL"}}
				change(sc)
			}))
	}
	wantEqual(t, "all sets without", caps("without", func(*runtime.LinuxContainerSecurityContext) {}), "0000000000000000")
	with := caps("with", func(sc *runtime.LinuxContainerSecurityContext) {
		sc.Capabilities = &runtime.Capability{
			DropCapabilities: []string{"KILL"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"},
		}
	})
	wantEqual(t, "all sets with CAP_NET_BIND_SERVICE", with, "0000000000000400")
}

func TestEnvironmentThatIsNotUTF8IsRefused(t *testing.T) {
	p := runPod(t)
	config := containerConfig("c", "true")
	config.Envs = []*runtime.KeyValue{{Key: "LATIN", Value: []byte{0xfc}}}
	_, err := p.tryCreate(t, config)
	wantCode(t, err, codes.InvalidArgument, `envs[0].key "LATIN"`, "UTF-8")
	out := p.output(t, "d", `printf %s "$A"`, func(c *runtime.ContainerConfig) {
		c.Envs = []*runtime.KeyValue{{Key: "A", Value: []byte("ünï \\ \" \t€")}}
	})
	if out != "ünï \\ \" \t€" && out != "ünï \\ \" \t€\n" {
		t.Errorf("value arrived as %q", out)
	}
}

func TestPinnedImages(t *testing.T) {
	n := configuredNode(t, "pinned", "[image]\npinned_images = [\"registry.test/gantry/pause*\"]\n")
	for ref, want := range map[string]bool{images.Pause: true, images.Busybox: false} {
		id := pull(t, n, ref)
		r, err := n.Images.ImageStatus(timeout(t), &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: id}})
		if err != nil {
			t.Fatal(err)
		}
		wantEqual(t, ref+" is pinned", r.Image.Pinned, want)
	}
}
