package spec

import (
	"fmt"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// addDevices adds the device nodes and the rules of the device cgroup; the few that every container has (null, zero,
// tty and so on) are libcontainer's. CDI devices are not among them: what those are is in files. Follows addResources.
func (b *builder) addDevices() error {
	resources := b.spec.Linux.Resources
	all := b.privileged && !b.in.Node.NoHostDevices
	resources.Devices = []specs.LinuxDeviceCgroup{{Allow: all, Access: "rwm"}}
	var devices []specs.LinuxDevice
	if all {
		devices = append(devices, b.in.Host.AllDevices...)
	}
	for i, d := range b.in.Config.GetDevices() {
		nodes, err := b.deviceNodes(fmt.Sprintf("devices[%d]", i), d)
		if err != nil {
			return err
		}
		devices = append(devices, nodes...)
		for _, node := range nodes {
			if !all {
				resources.Devices = append(resources.Devices, deviceRule(node, d.GetPermissions()))
			}
		}
	}
	b.spec.Linux.Devices = lastOfEachPath(devices)
	return nil
}

// deviceNodes are the nodes of one entry, with their paths in the container.
func (b *builder) deviceNodes(field string, d *runtime.Device) ([]specs.LinuxDevice, error) {
	hostPath, containerPath := d.GetHostPath(), d.GetContainerPath()
	if containerPath == "" {
		containerPath = hostPath
	}
	if !path.IsAbs(containerPath) || path.Clean(containerPath) == "/" {
		return nil, invalid(field+".container_path", containerPath, "an absolute path")
	}
	if p := d.GetPermissions(); p == "" || strings.Trim(p, "rwm") != "" {
		return nil, invalid(field+".permissions", p, "one or more of r, w and m")
	}
	found := b.in.Host.Devices[hostPath]
	if len(found) == 0 {
		return nil, invalid(field+".host_path", hostPath, "a device or a directory of devices")
	}
	var nodes []specs.LinuxDevice
	for _, node := range found {
		below := strings.TrimPrefix(path.Clean(node.Path), path.Clean(hostPath))
		node.Path = path.Join(containerPath, below)
		nodes = append(nodes, node)
	}
	return nodes, nil
}

func deviceRule(node specs.LinuxDevice, access string) specs.LinuxDeviceCgroup {
	return specs.LinuxDeviceCgroup{
		Allow: true, Type: node.Type, Major: &node.Major, Minor: &node.Minor, Access: access,
	}
}

// lastOfEachPath drops the devices that a later one of the same path replaces.
func lastOfEachPath(devices []specs.LinuxDevice) []specs.LinuxDevice {
	last := make(map[string]int)
	for i, d := range devices {
		last[d.Path] = i
	}
	var kept []specs.LinuxDevice
	for i, d := range devices {
		if last[d.Path] == i {
			kept = append(kept, d)
		}
	}
	return kept
}
