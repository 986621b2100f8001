package main

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"time"
)

// criuTimeout bounds asking CRIU whether it gets on with the kernel.
const criuTimeout = 10 * time.Second

// checkCRIU looks for the program that checkpoints need. The daemon looks in its own PATH, which may be another one.
func checkCRIU() finding {
	ctx, cancel := context.WithTimeout(context.Background(), criuTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, "criu", "check").CombinedOutput()
	return criuFinding(string(out), err)
}

func criuFinding(out string, err error) finding {
	const what = "criu"
	lines := strings.Split(strings.TrimSpace(out), "\n")
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return warn(what, "not found in PATH: checkpoints are refused; install the criu package")
	case err != nil:
		return warn(what, "does not get on with this kernel, checkpoints may fail: %v: %s", err, lines[0])
	}
	return ok(what, "%s", lines[len(lines)-1])
}
