// Command ctr stands in for containerd's programs on a node whose tools know no other runtime, such as kind's: under the
// name ctr it answers the calls about images that kind and minikube make, under the name containerd it is the daemon and
// says what kind reads of its configuration, under the name runc it tells minikube that no container is paused. It is a
// translation into the gantry command and no client of containerd; what it does not know is an error.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

// version is set by the linker (-X main.version=v1.2.3).
var version = "v0.0.0-unknown"

const (
	// address is where both the CRI and the operator's service are on such a node.
	address = "unix:///run/containerd/containerd.sock"
	// daemonName is gantryd under containerd's name: kind looks for the process by it.
	daemonName = "/usr/lib/gantry/kind/containerd"
	gantry     = "/usr/bin/gantry"
)

func main() {
	command := newCtr()
	switch filepath.Base(os.Args[0]) {
	case "containerd":
		command = newContainerd()
	case "runc":
		command = newRunc()
	}
	command.SilenceUsage, command.SilenceErrors = true, true
	command.CompletionOptions.DisableDefaultCmd = true
	if err := command.Execute(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", command.Name(), err)
		os.Exit(1)
	}
}

// group makes a command that only has others.
func group(use, short string, aliases []string, children ...*cobra.Command) *cobra.Command {
	command := &cobra.Command{Use: use, Short: short, Aliases: aliases, Args: cobra.NoArgs}
	command.RunE = func(*cobra.Command, []string) error {
		return fmt.Errorf("%s: expected a command of it", command.CommandPath())
	}
	command.AddCommand(children...)
	return command
}
