//go:build e2e

package e2e

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// variant is a configuration that differs in one field from a good one.
type variant struct {
	field   string
	message proto.Message
}

// variants gives copies of a message in which change has changed one field each, wherever it can; change reports
// whether the field is one for it. Fields of Windows are left out.
func variants(base proto.Message, change func(protoreflect.Message, protoreflect.FieldDescriptor) bool) []variant {
	var paths [][]protoreflect.FieldDescriptor
	var collect func(m protoreflect.Message, path []protoreflect.FieldDescriptor)
	collect = func(m protoreflect.Message, path []protoreflect.FieldDescriptor) {
		fields := m.Descriptor().Fields()
		for i := range fields.Len() {
			f := fields.Get(i)
			here := append(path[:len(path):len(path)], f)
			if f.Name() == "windows" {
				continue
			}
			paths = append(paths, here)
			switch {
			case f.IsMap() || f.Message() == nil || !m.Has(f):
			case f.IsList():
				collect(m.Get(f).List().Get(0).Message(), here)
			default:
				collect(m.Get(f).Message(), here)
			}
		}
	}
	collect(base.ProtoReflect(), nil)
	var all []variant
	for _, path := range paths {
		changed := proto.Clone(base)
		m, names := changed.ProtoReflect(), []string{}
		for i, f := range path {
			names = append(names, string(f.Name()))
			switch {
			case i == len(path)-1:
				if change(m, f) {
					all = append(all, variant{strings.Join(names, "."), changed})
				}
			case f.IsList():
				m = m.Get(f).List().Get(0).Message()
			default:
				m = m.Get(f).Message()
			}
		}
	}
	return all
}

// oddEnum gives an enumeration a value that the API does not define.
func oddEnum(m protoreflect.Message, f protoreflect.FieldDescriptor) bool {
	if f.Enum() == nil || f.IsList() {
		return false
	}
	m.Set(f, protoreflect.ValueOfEnum(77))
	return true
}

// noMessage takes a message away.
func noMessage(m protoreflect.Message, f protoreflect.FieldDescriptor) bool {
	if f.Message() == nil || !m.Has(f) {
		return false
	}
	m.Clear(f)
	return true
}

// fullPod has a message in every place where there can be one.
func fullPod(t *testing.T) *runtime.PodSandboxConfig {
	t.Helper()
	config := podConfig(t, shared, "")
	config.PortMappings = []*runtime.PortMapping{{ContainerPort: 80, HostPort: 23099}}
	config.Linux.Overhead, config.Linux.Resources = &runtime.LinuxContainerResources{}, &runtime.LinuxContainerResources{}
	s := config.Linux.SecurityContext
	s.RunAsUser, s.RunAsGroup = &runtime.Int64Value{Value: 1000}, &runtime.Int64Value{Value: 1000}
	s.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}
	s.Apparmor = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}
	s.SelinuxOptions = &runtime.SELinuxOption{}
	s.NamespaceOptions.UsernsOptions = &runtime.UserNamespace{Mode: runtime.NamespaceMode_NODE}
	return config
}

// fullContainer likewise.
func fullContainer(t *testing.T) *runtime.ContainerConfig {
	t.Helper()
	config := shellConfig(t, "c", "sleep 1000")
	config.Mounts = []*runtime.Mount{{ContainerPath: "/m", HostPath: "/etc"}}
	config.Devices = []*runtime.Device{{ContainerPath: "/dev/null2", HostPath: "/dev/null", Permissions: "rw"}}
	config.Envs = []*runtime.KeyValue{{Key: "K", Value: []byte("v")}}
	config.Linux.Resources = &runtime.LinuxContainerResources{CpuShares: 2}
	s := config.Linux.SecurityContext
	s.RunAsUser, s.RunAsGroup = &runtime.Int64Value{Value: 0}, &runtime.Int64Value{Value: 0}
	s.Capabilities = &runtime.Capability{AddCapabilities: []string{"SYS_TIME"}}
	s.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}
	s.Apparmor = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}
	s.SelinuxOptions = &runtime.SELinuxOption{}
	s.NamespaceOptions.UsernsOptions = &runtime.UserNamespace{Mode: runtime.NamespaceMode_NODE}
	return config
}

// tryPod runs a sandbox of the configuration, removes it again and returns the error of the run.
func tryPod(t *testing.T, config *runtime.PodSandboxConfig) error {
	t.Helper()
	response, err := shared.Runtime.RunPodSandbox(timeout(t), &runtime.RunPodSandboxRequest{Config: config})
	if err == nil {
		(&pod{node: shared, id: response.PodSandboxId}).remove(t)
	}
	return err
}

// tryContainer creates and starts a container, removes it again and returns the first error.
func (p *pod) tryContainer(t *testing.T, config *runtime.ContainerConfig) error {
	t.Helper()
	response, err := p.node.Runtime.CreateContainer(timeout(t), p.createRequest(config))
	if err != nil {
		return err
	}
	c := &container{pod: p, id: response.ContainerId}
	err = c.start(t)
	_, removeErr := p.node.Runtime.RemoveContainer(timeout(t), &runtime.RemoveContainerRequest{ContainerId: c.id})
	if removeErr != nil {
		t.Errorf("remove container: %v", removeErr)
	}
	return err
}

// wantRefused checks that a value that nothing defines is refused by the name of its field.
func wantRefused(t *testing.T, field string, err error) {
	t.Helper()
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), field[strings.LastIndex(field, ".")+1:]) {
		t.Errorf("%s with an undefined value: %v; expected InvalidArgument with the field's name", field, err)
	}
}

func TestUndefinedEnumValuesAreRefused(t *testing.T) {
	t.Parallel()
	pods := variants(fullPod(t), oddEnum)
	containers := variants(fullContainer(t), oddEnum)
	if len(pods) < 8 || len(containers) < 9 {
		t.Errorf("only %d and %d enumerations were found", len(pods), len(containers))
	}
	// A sandbox has no process of its own to which these could apply.
	ignored := []string{"supplemental_groups_policy", "seccomp.profile_type", "apparmor.profile_type"}
	for _, v := range pods {
		if slices.Contains(ignored, strings.TrimPrefix(v.field, "linux.security_context.")) {
			continue
		}
		t.Run("pod "+v.field, func(t *testing.T) {
			wantRefused(t, v.field, tryPod(t, v.message.(*runtime.PodSandboxConfig)))
		})
	}
	p := runPod(t)
	for _, v := range containers {
		t.Run("container "+v.field, func(t *testing.T) {
			wantRefused(t, v.field, p.tryContainer(t, v.message.(*runtime.ContainerConfig)))
		})
	}
}

// What is missing has a default or is refused; it is never an internal error.
func TestMissingMessages(t *testing.T) {
	t.Parallel()
	required := map[string]string{"metadata": "metadata", "image": "image", "linux.security_context.run_as_user": "run_as_group"}
	check := func(t *testing.T, field string, err error) {
		t.Helper()
		if word := required[field]; word != "" {
			wantCode(t, err, codes.InvalidArgument, word)
		} else if err != nil {
			t.Errorf("without %s: %v", field, err)
		}
	}
	if err := tryPod(t, fullPod(t)); err != nil {
		t.Errorf("the full configuration: %v", err)
	}
	for _, v := range variants(fullPod(t), noMessage) {
		t.Run("pod "+v.field, func(t *testing.T) { check(t, v.field, tryPod(t, v.message.(*runtime.PodSandboxConfig))) })
	}
	p := runPod(t)
	if err := p.tryContainer(t, fullContainer(t)); err != nil {
		t.Errorf("the full configuration: %v", err)
	}
	for _, v := range variants(fullContainer(t), noMessage) {
		t.Run("container "+v.field, func(t *testing.T) {
			check(t, v.field, p.tryContainer(t, v.message.(*runtime.ContainerConfig)))
		})
	}
	for name, request := range map[string]*runtime.CreateContainerRequest{
		"no config":         {PodSandboxId: p.id, SandboxConfig: p.config},
		"no sandbox":        {Config: shellConfig(t, "none", "true")},
		"nothing":           {},
		"image without ref": {PodSandboxId: p.id, Config: &runtime.ContainerConfig{Metadata: &runtime.ContainerMetadata{Name: "n"}, Image: &runtime.ImageSpec{}}},
	} {
		_, err := shared.Runtime.CreateContainer(timeout(t), request)
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The sandbox's own configuration in the request is for runtimes that do not remember it.
	config := shellConfig(t, "no-sandbox-config", "true")
	if _, err := shared.Runtime.CreateContainer(timeout(t), &runtime.CreateContainerRequest{PodSandboxId: p.id, Config: config}); err != nil {
		t.Errorf("no sandbox_config: %v", err)
	}
}
