package main

import (
	"os"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/spec"
)

// pins is where a pod's namespaces are.
const pins = "/run/gantry/pins/default/"

// newSpec makes `ctr oci spec`: what Gantry gives a container that asks for nothing.
func newSpec() *cobra.Command {
	return &cobra.Command{
		Use: "spec", Short: "Print the OCI spec of a container that asks for nothing", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, noV2 := os.Stat("/sys/fs/cgroup/cgroup.controllers")
			built, _, err := spec.Build(spec.Input{
				ID:      "default",
				Sandbox: &cri.PodSandboxConfig{},
				Config: &cri.ContainerConfig{Linux: &cri.LinuxContainerConfig{
					SecurityContext: &cri.LinuxContainerSecurityContext{
						NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
					},
				}},
				Namespaces:  spec.Namespaces{Network: pins + "net", IPC: pins + "ipc", UTS: pins + "uts"},
				Image:       &ocispec.ImageConfig{Cmd: []string{"sh"}},
				Node:        spec.Node{CgroupV2: noV2 == nil, OOMScoreFloor: -1000},
				CgroupsPath: "/default",
			})
			if err != nil {
				return err
			}
			return writeJSON(cmd, built)
		},
	}
}
