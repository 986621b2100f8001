package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

// newRunc makes the program that has the name of containerd's OCI runtime: minikube asks it which containers are paused
// whenever it lists them. None ever is.
func newRunc() *cobra.Command {
	root := &cobra.Command{Use: "runc", Short: "Gantry's containers under the name of an OCI runtime", Version: version}
	root.PersistentFlags().String("root", "", "accepted, without effect")
	refuse := func(*cobra.Command, []string) error {
		return errors.New("containers cannot be paused: the CRI has no such state, and nothing would tell the kubelet")
	}
	root.AddCommand(newRuncList(),
		&cobra.Command{Use: "pause ID", Short: "Not possible", Args: cobra.ExactArgs(1), RunE: refuse},
		&cobra.Command{Use: "resume ID", Short: "Not possible", Args: cobra.ExactArgs(1), RunE: refuse})
	return root
}

// listed is a container as `runc list -f json` prints it.
type listed struct {
	ID      string    `json:"id"`
	Status  string    `json:"status"`
	Created time.Time `json:"created"`
}

func newRuncList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List containers", Args: cobra.NoArgs}
	format := cmd.Flags().StringP("format", "f", "table", "must be json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *format != "json" {
			return fmt.Errorf("format %q, expected json", *format)
		}
		out, err := runGantry("pods", "-o", "json")
		if err != nil {
			return err
		}
		var pods []struct {
			Containers []struct {
				ID, State string
				Created   time.Time
			}
		}
		if err := json.Unmarshal([]byte(out), &pods); err != nil {
			return fmt.Errorf("read the list of pods: %w", err)
		}
		containers := []listed{}
		for _, pod := range pods {
			for _, c := range pod.Containers {
				if c.State == "running" || c.State == "created" { // runc knows of no others
					containers = append(containers, listed{ID: c.ID, Status: c.State, Created: c.Created})
				}
			}
		}
		return writeJSON(cmd, containers)
	}
	return cmd
}
