// Command gantryd is the daemon of Gantry: it serves the CRI to the kubelet and wires the packages that do the work.
// It is not the parent of any container (that is gantry-keeper) and may be killed and restarted at any moment.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/spf13/cobra"
)

// The main thread is the one of /proc/self. Work that moves a thread to other namespaces, which then is thrown away,
// must not get this one: it cannot be.
func init() { runtime.LockOSThread() }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "gantryd:", err)
		os.Exit(1)
	}
}

// newCommand makes the command line.
func newCommand() *cobra.Command {
	fromFlags := defaultConfig()
	var file string
	root := &cobra.Command{
		Use:           "gantryd",
		Short:         "gantryd serves the Kubernetes CRI",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&file, "config", defaultConfigFile,
		"configuration file; conf.d beside it is read too")
	addConfigFlags(root.PersistentFlags(), fromFlags)

	load := func(cmd *cobra.Command) (*Config, error) {
		return loadConfig(file, cmd.Flags().Changed("config"), cmd.Flags(), fromFlags)
	}
	root.RunE = func(cmd *cobra.Command, _ []string) error {
		config, err := load(cmd)
		if err != nil {
			return err
		}
		return serve(cmd.Context(), config)
	}
	root.AddCommand(newConfigCommand(load), newNetworkCommand(load), newVersionCommand())
	return root
}

// newConfigCommand makes `gantryd config`.
func newConfigCommand(load func(*cobra.Command) (*Config, error)) *cobra.Command {
	config := &cobra.Command{Use: "config", Short: "Show or check the configuration", Args: cobra.NoArgs}
	config.AddCommand(&cobra.Command{
		Use:   "default",
		Short: "Print the default configuration, every option documented",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return printConfig(cmd.OutOrStdout(), defaultConfig())
		},
	}, &cobra.Command{
		Use:   "check",
		Short: "Check the configuration files and flags, and exit",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := load(cmd); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "the configuration is valid")
			return nil
		},
	})
	return config
}

// newVersionCommand makes `gantryd version`.
func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintln(cmd.OutOrStdout(), "gantryd", buildVersion())
		},
	}
}
