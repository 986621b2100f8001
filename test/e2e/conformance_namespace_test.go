//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Every combination of the modes of network, pid and ipc: whose namespace each of two containers has, and that the
// status tells the modes.
func TestEveryCombinationOfNamespaces(t *testing.T) {
	t.Parallel()
	const node, inPod, own = runtime.NamespaceMode_NODE, runtime.NamespaceMode_POD, runtime.NamespaceMode_CONTAINER
	for _, network := range []runtime.NamespaceMode{inPod, node} {
		for _, pid := range []runtime.NamespaceMode{inPod, own, node} {
			for _, ipc := range []runtime.NamespaceMode{inPod, node} {
				t.Run(fmt.Sprintf("net %s pid %s ipc %s", network, pid, ipc), func(t *testing.T) {
					t.Parallel()
					combination(t, &runtime.NamespaceOption{Network: network, Pid: pid, Ipc: ipc})
				})
			}
		}
	}
}

func combination(t *testing.T, options *runtime.NamespaceOption) {
	p := runPod(t, func(c *runtime.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions = options })
	if got := p.status(t).GetLinux().GetNamespaces().GetOptions(); !proto.Equal(got, options) {
		t.Errorf("namespaces in status are %v, expected %v", got, options)
	}
	wantEqual(t, "whether there is an address", p.status(t).GetNetwork().GetIp() != "", options.Network == runtime.NamespaceMode_POD)
	theSame := security(func(s *runtime.LinuxContainerSecurityContext) { s.NamespaceOptions = options })
	first, second := p.start(t, "first", "sleep 1000", theSame), p.start(t, "second", "sleep 1000", theSame)
	for name, mode := range map[string]runtime.NamespaceMode{
		"net": options.Network, "pid": options.Pid, "ipc": options.Ipc, "uts": options.Network,
		"mnt": runtime.NamespaceMode_CONTAINER,
	} {
		host, err := os.Readlink("/proc/self/ns/" + name)
		if err != nil {
			t.Fatal(err)
		}
		read := "readlink /proc/self/ns/" + name
		a, b := first.exec(t, read), second.exec(t, read)
		wantEqual(t, name+" is the host's", a == host, mode == runtime.NamespaceMode_NODE)
		wantEqual(t, name+" is shared", a == b, mode != runtime.NamespaceMode_CONTAINER)
	}
	if options.Pid == runtime.NamespaceMode_CONTAINER {
		eventually(t, "the first process is that of the configuration", func() bool { // the shell becomes it
			return first.exec(t, "tr '\\0' ' ' < /proc/1/cmdline") == "sleep 1000"
		})
	}
	hostShm, podShm := "/dev/shm/"+first.id, "echo > /dev/shm/"+first.id
	first.exec(t, podShm)
	defer os.Remove(hostShm)
	_, err := os.Stat(hostShm)
	wantEqual(t, "/dev/shm is the host's", err == nil, options.Ipc == runtime.NamespaceMode_NODE)
	if err := first.stop(t, 0); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "exec in the other container", second.exec(t, "echo alive"), "alive")
}

// A container has the pod's network and ipc: one that asks for others than its pod has is refused or gets the pod's.
func TestContainerCannotLeaveItsPodsNamespaces(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	reference := p.start(t, "reference", "sleep 1000")
	for _, name := range []string{"net", "ipc"} {
		config := shellConfig(t, "wants-"+name, "sleep 1000")
		options := config.Linux.SecurityContext.NamespaceOptions
		if name == "net" {
			options.Network = runtime.NamespaceMode_NODE
		} else {
			options.Ipc = runtime.NamespaceMode_NODE
		}
		response, err := p.node.Runtime.CreateContainer(timeout(t), p.createRequest(config))
		if err != nil {
			if !strings.Contains(err.Error(), "namespace_options") {
				t.Errorf("refused without naming the field: %v", err)
			}
			continue
		}
		c := &container{pod: p, id: response.ContainerId}
		if err := c.start(t); err != nil {
			t.Fatal(err)
		}
		read := "readlink /proc/self/ns/" + name
		wantEqual(t, name+" namespace", c.exec(t, read), reference.exec(t, read))
	}
}
