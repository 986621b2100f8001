package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
)

// newNetworkCommand makes `gantryd network`.
func newNetworkCommand(load func(*cobra.Command) (*Config, error)) *cobra.Command {
	network := &cobra.Command{Use: "network", Short: "Take the embedded network away", Args: cobra.NoArgs}
	network.AddCommand(&cobra.Command{
		Use:   "cleanup",
		Short: "Remove what the embedded network has on the node",
		Long: "Remove the bridge, the firewall table and the routes of the embedded network. The daemon must not run,\n" +
			"and no pod be attached. Where no embedded network is configured there is nothing to do. The next start of\n" +
			"the daemon makes all of it again.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := load(cmd)
			if err != nil {
				return err
			}
			return cleanupNetwork(cmd.Context(), config)
		},
	})
	return network
}

// cleanupNetwork removes what the embedded network shares among all pods, unless a daemon runs or a pod is attached.
func cleanupNetwork(ctx context.Context, config *Config) (err error) {
	if !config.EmbeddedNetwork.Enabled {
		return nil
	}
	locked, err := lockDirs(config.Root, config.State)
	if err != nil {
		return err
	}
	defer locked.release()
	d := &daemon{config: config}
	err = d.openNetwork(ctx)
	if err == nil {
		err = d.network.Cleanup(ctx)
		d.network.Close()
	}
	if err != nil {
		return fmt.Errorf("clean the embedded network up: %w", err)
	}
	return nil
}
