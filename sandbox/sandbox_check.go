package sandbox

import (
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/spec"
)

// maxPort is the highest port number.
const maxPort = 65535

func invalidf(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// checkSandboxConfig refuses what can be seen to be wrong before anything is made.
func checkSandboxConfig(config *runtime.PodSandboxConfig) error {
	md := config.GetMetadata()
	for _, f := range []struct{ field, value string }{
		{"name", md.GetName()}, {"namespace", md.GetNamespace()}, {"uid", md.GetUid()},
	} {
		if f.value == "" {
			return invalidf("config.metadata.%s is empty", f.field)
		}
	}
	if err := checkHostname(config.GetHostname()); err != nil {
		return err
	}
	if dir := config.GetLogDirectory(); dir != "" && !filepath.IsAbs(dir) {
		return invalidf("config.log_directory %q: expected an absolute path", dir)
	}
	for i, mapping := range config.GetPortMappings() {
		if port := mapping.GetHostPort(); port < 0 || port > maxPort {
			return invalidf("config.port_mappings[%d].host_port is %d, expected 0 to %d", i, port, maxPort)
		}
		if port := mapping.GetContainerPort(); port < 0 || port > maxPort {
			return invalidf("config.port_mappings[%d].container_port is %d, expected 0 to %d", i, port, maxPort)
		}
	}
	return checkLinuxConfig(config.GetLinux())
}

func checkLinuxConfig(linux *runtime.LinuxPodSandboxConfig) error {
	if err := spec.CheckPodResources("config.linux.overhead", linux.GetOverhead()); err != nil {
		return err
	}
	if err := spec.CheckPodResources("config.linux.resources", linux.GetResources()); err != nil {
		return err
	}
	sec := linux.GetSecurityContext()
	if sec.GetRunAsGroup() != nil && sec.GetRunAsUser() == nil {
		return invalidf("linux.security_context.run_as_group is set without run_as_user")
	}
	ns := sec.GetNamespaceOptions()
	for _, f := range []struct {
		field string
		mode  runtime.NamespaceMode
	}{{"network", ns.GetNetwork()}, {"ipc", ns.GetIpc()}} {
		if f.mode != runtime.NamespaceMode_POD && f.mode != runtime.NamespaceMode_NODE {
			return invalidf("linux.security_context.namespace_options.%s %s: expected POD or NODE", f.field, f.mode)
		}
	}
	if _, ok := runtime.NamespaceMode_name[int32(ns.GetPid())]; !ok || ns.GetPid() == runtime.NamespaceMode_TARGET {
		return invalidf("linux.security_context.namespace_options.pid %s: expected POD, CONTAINER or NODE", ns.GetPid())
	}
	return checkUserns(ns)
}
