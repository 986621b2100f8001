package sandbox

import (
	"testing"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The kernel of most test machines has no SELinux; what then can be seen is that the level is kept and nothing is asked
// of the kernel without it.
func TestSELinuxLevelIsKept(t *testing.T) {
	r := newRig(t)
	if r.m.node.SELinux {
		t.Skip("the kernel has SELinux: the level would be its policy's")
	}
	id := r.run("plain")
	if st, _ := r.m.Sandbox(id); st.SELinuxLevel != "" {
		t.Errorf("level without SELinux: %q", st.SELinuxLevel)
	}
	r.m.node.SELinux = true
	config := podConfig("labelled")
	config.Linux.SecurityContext = &runtime.LinuxSandboxSecurityContext{SelinuxOptions: &runtime.SELinuxOption{Level: "s0:c1,c2"}}
	id, err := r.m.Run(t.Context(), config, "")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if st, _ := r.m.Sandbox(id); st.SELinuxLevel != "s0:c1,c2" {
			t.Errorf("level %q", st.SELinuxLevel)
		}
		r.restart()
	}
	r.m.node.SELinux = true
	bad := podConfig("bad")
	bad.Linux.SecurityContext = &runtime.LinuxSandboxSecurityContext{SelinuxOptions: &runtime.SELinuxOption{Level: "secret"}}
	if _, err := r.m.Run(t.Context(), bad, ""); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad level: %v", err)
	}
	container := containerConfig("c")
	container.Linux.SecurityContext.SelinuxOptions = &runtime.SELinuxOption{Level: "secret"}
	if _, err := r.m.CreateContainer(t.Context(), id, container, "sha256:feed", "ref"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad level of a container: %v", err)
	}
}
