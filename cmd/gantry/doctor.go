package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/cri/operator"
)

// doctorTimeout bounds the questions to the daemon.
const doctorTimeout = 10 * time.Second

// level says how bad a finding is.
type level string

// The levels. Only fail makes the doctor's exit code 1.
const (
	levelOK   level = "ok"
	levelWarn level = "warn"
	levelFail level = "fail"
)

// finding is what one check found: level, what was looked at, and what to know or do.
type finding struct {
	level level
	what  string
	text  string
}

func ok(what, format string, args ...any) finding {
	return finding{levelOK, what, fmt.Sprintf(format, args...)}
}

func warn(what, format string, args ...any) finding {
	return finding{levelWarn, what, fmt.Sprintf(format, args...)}
}

func fail(what, format string, args ...any) finding {
	return finding{levelFail, what, fmt.Sprintf(format, args...)}
}

// newDoctorCommand makes `gantry doctor`.
func newDoctorCommand(c *connector) *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Check the daemon and the node; the exit code is 1 if something is wrong",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), doctorTimeout)
			defer cancel()
			return report(cmd.OutOrStdout(), diagnose(ctx, c))
		},
	}
}

// report prints the findings; one that fails makes it an error.
func report(w io.Writer, findings []finding) error {
	failed := 0
	for _, f := range findings {
		if f.level == levelFail {
			failed++
		}
		fmt.Fprintf(w, "%-4s  %-16s %s\n", f.level, f.what, f.text)
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d checks failed", failed, len(findings))
	}
	return nil
}

// diagnose makes all checks. Without a daemon it still looks at the node, where the defaults say.
func diagnose(ctx context.Context, c *connector) []finding {
	info := &operator.InfoResponse{
		Root: "/var/lib/gantry", CniConfDir: "/etc/cni/net.d", CniBinDir: "/opt/cni/bin",
	}
	var findings []finding
	err := c.with(ctx, func(d *daemonClient) error {
		answer, err := d.operator.Info(ctx, &operator.InfoRequest{})
		if err != nil {
			return err
		}
		info = answer
		findings = append(findings, ok("daemon", "gantryd %s, pid %d, up %s, %d pods, %d containers", info.GetVersion(),
			info.GetPid(), humanAge(time.Since(time.Unix(0, info.GetStarted()))), info.GetSandboxes(), info.GetContainers()))
		findings = append(findings, checkKeeper(info))
		status, err := d.runtime.Status(ctx, &runtime.StatusRequest{})
		if err != nil {
			return err
		}
		findings = append(findings, checkConditions(status.GetStatus().GetConditions())...)
		return nil
	})
	if err != nil {
		findings = append(findings, fail("daemon", "%s", describe(err)))
	}
	return append(findings, checkNode(info)...)
}

// checkKeeper looks at what the daemon says of its keeper.
func checkKeeper(info *operator.InfoResponse) finding {
	k := info.GetKeeper()
	switch {
	case k.GetError() != "":
		return fail("keeper", "%s (binary %s)", k.GetError(), k.GetPath())
	case k.GetBuild() != info.GetVersion():
		return warn("keeper", "build %s, pid %d, not the daemon's %s: it goes on until no container lives",
			k.GetBuild(), k.GetPid(), info.GetVersion())
	}
	return ok("keeper", "build %s, pid %d, keeps %d processes", k.GetBuild(), k.GetPid(), k.GetLive())
}

// checkConditions looks at what the kubelet is told. A condition that is false makes the node NotReady.
func checkConditions(conditions []*runtime.RuntimeCondition) []finding {
	seen := map[string]bool{}
	var findings []finding
	for _, c := range conditions {
		seen[c.GetType()] = true
		switch {
		case c.GetStatus():
			findings = append(findings, ok(c.GetType(), "true"))
		case c.GetType() == runtime.RuntimeReady || c.GetType() == runtime.NetworkReady:
			findings = append(findings, fail(c.GetType(), "%s", reason(c)))
		default:
			findings = append(findings, warn(c.GetType(), "%s", reason(c)))
		}
	}
	for _, required := range []string{runtime.RuntimeReady, runtime.NetworkReady} {
		if !seen[required] {
			findings = append(findings, fail(required, "the daemon does not tell"))
		}
	}
	return findings
}

func reason(c *runtime.RuntimeCondition) string {
	if c.GetMessage() == "" {
		return c.GetReason()
	}
	if c.GetReason() == "" {
		return c.GetMessage()
	}
	return c.GetReason() + ": " + c.GetMessage()
}
