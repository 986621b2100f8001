package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// listedPod is a pod as `pods -o json` prints it.
type listedPod struct {
	ID        string    `json:"id"`
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	UID       string    `json:"uid"`
	Attempt   uint32    `json:"attempt"`
	State     string    `json:"state"`
	Created   time.Time `json:"created"`
	// IPs are the addresses, the primary one first; empty on the host network.
	IPs        []string          `json:"ips"`
	Containers []listedContainer `json:"containers"`
}

// listedContainer is a container of a listedPod.
type listedContainer struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Attempt uint32    `json:"attempt"`
	State   string    `json:"state"`
	Image   string    `json:"image"`
	Created time.Time `json:"created"`
}

// newPodsCommand makes `gantry pods`.
func newPodsCommand(c *connector) *cobra.Command {
	cmd := &cobra.Command{Use: "pods", Short: "List pods and their containers", Args: cobra.NoArgs}
	output := addFormat(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return c.with(cmd.Context(), func(d *daemonClient) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			defer cancel()
			pods, err := d.pods(ctx)
			if err != nil {
				return err
			}
			if *output == formatJSON {
				return printJSON(cmd.OutOrStdout(), pods)
			}
			header := []string{"POD / CONTAINER", "ID", "STATE", "IP", "AGE"}
			return printTable(cmd.OutOrStdout(), header, podRows(pods, time.Now()))
		})
	}
	return cmd
}

// pods returns the pods, ordered by namespace, name and age, with their containers, oldest first.
func (d *daemonClient) pods(ctx context.Context) ([]listedPod, error) {
	sandboxes, err := d.runtime.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	containers, err := d.runtime.ListContainers(ctx, &runtime.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	bySandbox := map[string][]listedContainer{}
	for _, c := range containers.GetContainers() {
		bySandbox[c.GetPodSandboxId()] = append(bySandbox[c.GetPodSandboxId()], listedContainer{
			ID:      c.GetId(),
			Name:    c.GetMetadata().GetName(),
			Attempt: c.GetMetadata().GetAttempt(),
			State:   strings.ToLower(strings.TrimPrefix(c.GetState().String(), "CONTAINER_")),
			Image:   c.GetImage().GetImage(),
			Created: time.Unix(0, c.GetCreatedAt()),
		})
	}
	pods := make([]listedPod, 0, len(sandboxes.GetItems()))
	for _, s := range sandboxes.GetItems() {
		ips, err := d.podIPs(ctx, s.GetId())
		if err != nil {
			return nil, err
		}
		own := append([]listedContainer{}, bySandbox[s.GetId()]...)
		slices.SortStableFunc(own, func(a, b listedContainer) int { return a.Created.Compare(b.Created) })
		m := s.GetMetadata()
		pods = append(pods, listedPod{
			ID: s.GetId(), Namespace: m.GetNamespace(), Name: m.GetName(), UID: m.GetUid(), Attempt: m.GetAttempt(),
			State:   strings.ToLower(strings.TrimPrefix(s.GetState().String(), "SANDBOX_")),
			Created: time.Unix(0, s.GetCreatedAt()), IPs: ips, Containers: own,
		})
	}
	slices.SortStableFunc(pods, comparePods)
	return pods, nil
}

func comparePods(a, b listedPod) int {
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	if c := strings.Compare(a.Name, b.Name); c != 0 {
		return c
	}
	return a.Created.Compare(b.Created)
}

// podIPs returns a pod's addresses; none for one that was removed since it was listed.
func (d *daemonClient) podIPs(ctx context.Context, id string) ([]string, error) {
	ips := []string{}
	reply, err := d.runtime.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: id})
	if status.Code(err) == codes.NotFound {
		return ips, nil
	}
	if err != nil {
		return nil, err
	}
	network := reply.GetStatus().GetNetwork()
	if network.GetIp() != "" {
		ips = append(ips, network.GetIp())
	}
	for _, more := range network.GetAdditionalIps() {
		ips = append(ips, more.GetIp())
	}
	return ips, nil
}

// podRows gives every pod a row and every container one below it.
func podRows(pods []listedPod, now time.Time) [][]string {
	var rows [][]string
	for _, p := range pods {
		ip := "host"
		if len(p.IPs) > 0 {
			ip = strings.Join(p.IPs, ",")
		} else if p.State != "ready" {
			ip = "-"
		}
		rows = append(rows, []string{p.Namespace + "/" + p.Name, shortID(p.ID), p.State, ip, humanAge(now.Sub(p.Created))})
		for _, c := range p.Containers {
			name := c.Name
			if c.Attempt > 0 {
				name = fmt.Sprintf("%s (attempt %d)", name, c.Attempt)
			}
			rows = append(rows, []string{"  " + name, shortID(c.ID), c.State, "", humanAge(now.Sub(c.Created))})
		}
	}
	return rows
}
