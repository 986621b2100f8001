package main

import (
	"context"
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/cri/operator"
)

// version is set by the linker for a release (-X main.version=v1.2.3).
var version string

// buildVersion returns the version of this binary.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "unknown"
}

// newVersionCommand makes `gantry version`.
func newVersionCommand(c *connector) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the versions of this command, the daemon and the keeper",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintln(cmd.OutOrStdout(), "gantry         ", buildVersion())
			return c.with(cmd.Context(), func(d *daemonClient) error {
				ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
				defer cancel()
				info, err := d.operator.Info(ctx, &operator.InfoRequest{})
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "gantryd         %s (pid %d)\n", info.GetVersion(), info.GetPid())
				keeper := info.GetKeeper()
				if keeper.GetBuild() == "" {
					return fmt.Errorf("ask keeper: %s", keeper.GetError())
				}
				fmt.Fprintf(cmd.OutOrStdout(), "gantry-keeper   %s (pid %d)\n", keeper.GetBuild(), keeper.GetPid())
				return nil
			})
		},
	}
}
