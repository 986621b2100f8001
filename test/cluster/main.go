// Command cluster is a Kubernetes cluster on one machine, for tests and to try: etcd, the control plane and nodes,
// each an unmodified kubelet, gantryd and kube-proxy in namespaces and cgroups of their own. `make cluster` builds and
// runs it. Nothing of it is on the machine's own network. It is a harness around the built programs, no part of the
// product and no way to install a cluster.
//
//	gantry-cluster up [-nodes 3] [-metrics]  start it in the background and wait until all nodes are ready
//	gantry-cluster run COMMAND ...           run a command on the cluster's network, with KUBECONFIG
//	gantry-cluster node NAME kill|start|reboot
//	gantry-cluster down                      end it and say what it left behind, which is an error
//
// It is run from the top of the tree, and remembers the cluster in .work/cluster. The tests beside it (tag e2e) start
// one of their own unless there is one.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/gantry-cri/gantry/test/e2e/node"
)

const usage = "usage: gantry-cluster up [-nodes N] [-metrics] | run COMMAND ... | node NAME kill|start|reboot | down"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := dispatch(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func dispatch(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	top, err := filepath.Abs(".")
	if err != nil {
		return err
	}
	switch command, args := args[0], args[1:]; {
	case command == "supervise" || command == "be-node": // run by up, and by supervise
		return isolated(ctx, command, args)
	case command == "up":
		return up(ctx, top, args)
	}
	c, err := open(top)
	if err != nil {
		return err
	}
	switch command, args := args[0], args[1:]; {
	case command == "run" && len(args) > 0:
		return c.enter(args)
	case command == "node" && len(args) == 2:
		return c.control(ctx, args[0], args[1])
	case command == "down":
		return c.down()
	}
	return errors.New(usage)
}

// isolated runs the parts of the cluster, which are this program in namespaces of its own.
func isolated(ctx context.Context, part string, args []string) error {
	inner, code := node.Isolate()
	if !inner {
		os.Exit(code)
	}
	if part == "be-node" {
		return beNode(ctx)
	}
	return supervise(ctx, args)
}

func up(ctx context.Context, top string, args []string) error {
	flags := flag.NewFlagSet("up", flag.ContinueOnError)
	var o options
	flags.IntVar(&o.Nodes, "nodes", 3, "number of nodes")
	flags.BoolVar(&o.Metrics, "metrics", false, "run a metrics-server, which make cluster builds")
	if err := flags.Parse(args); err != nil {
		return err
	}
	began := time.Now()
	c, err := start(ctx, top, o)
	if err != nil {
		return err
	}
	fmt.Printf(`%d nodes are ready after %.0f s. Type next:
  .work/bin/gantry-cluster run .work/bin/kubectl get nodes
  .work/bin/gantry-cluster run bash     # a shell on the cluster's network; kubectl is in its PATH
  make cluster-test                     # try it all
  make cluster-down                     # end it
Logs are in %s
`, o.Nodes, time.Since(began).Seconds(), c.Dir)
	return nil
}
