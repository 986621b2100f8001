package main

import (
	"fmt"
	"os"
	"syscall"

	"github.com/spf13/cobra"
)

// configuration is what kind reads of `containerd config dump`: the version, which says where the snapshotter stands,
// and the snapshotter, which it passes to `ctr images import`. The image of a pause container is named for kind's sake
// only: Gantry has none.
const configuration = `version = 3

[plugins]
  [plugins.'io.containerd.cri.v1.images']
    snapshotter = 'overlayfs'

    [plugins.'io.containerd.cri.v1.images'.pinned_images]
      sandbox = 'registry.k8s.io/pause:3.10'
`

// newContainerd makes the program that has the daemon's name. Without arguments it becomes the daemon.
func newContainerd() *cobra.Command {
	root := &cobra.Command{
		Use:     "containerd",
		Short:   "Gantry's daemon under containerd's name",
		Version: version,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return syscall.Exec(daemonName, []string{daemonName}, os.Environ())
		},
	}
	// Four words, as minikube counts them.
	root.SetVersionTemplate("containerd github.com/gantry-cri/gantry {{.Version}} gantry\n")
	root.AddCommand(group("config", "Show the configuration", nil, &cobra.Command{
		Use:   "dump",
		Short: "Print what containerd's configuration would say of this node",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprint(cmd.OutOrStdout(), configuration)
			return err
		},
	}))
	return root
}
