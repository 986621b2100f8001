// Command gantry is the operator's command at the node: images, pods, and what is wrong. It speaks with gantryd over
// its socket and does nothing by itself; it is not needed for the node to work.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

const (
	// defaultAddress is that of gantryd's own configuration.
	defaultAddress = "unix:///run/gantry/gantry.sock"
	// addressVariable is the environment variable that replaces it.
	addressVariable = "GANTRY_ADDRESS"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "gantry:", describe(err))
		os.Exit(1)
	}
}

// newCommand makes the command line.
func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "gantry",
		Short:         "gantry shows and changes what gantryd keeps on this node",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	address := os.Getenv(addressVariable)
	if address == "" {
		address = defaultAddress
	}
	c := &connector{}
	root.PersistentFlags().StringVar(&c.address, "address", address, "socket of gantryd; also $"+addressVariable)
	root.AddCommand(newImageCommand(c), newPodsCommand(c), newTraceCommand(c), newDoctorCommand(c), newVersionCommand(c))
	return root
}
