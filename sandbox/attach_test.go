package sandbox

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCanAttach(t *testing.T) {
	status := func(state ContainerState, tty, stdin bool) *ContainerStatus {
		return &ContainerStatus{State: state, Config: &runtime.ContainerConfig{Tty: tty, Stdin: stdin}}
	}
	for name, test := range map[string]struct {
		status     *ContainerStatus
		tty, stdin bool
		want       error
	}{
		"outputs":              {status(ContainerRunning, false, false), false, false, nil},
		"outputs beside input": {status(ContainerRunning, false, true), false, false, nil},
		"terminal with input":  {status(ContainerRunning, true, true), true, true, nil},
		"terminal as none":     {status(ContainerRunning, true, true), false, true, errdefs.ErrInvalidArgument},
		"none as terminal":     {status(ContainerRunning, false, true), true, true, errdefs.ErrInvalidArgument},
		"input without":        {status(ContainerRunning, false, false), false, true, errdefs.ErrInvalidArgument},
		"not started":          {status(ContainerCreated, false, false), false, false, errdefs.ErrFailedPrecondition},
		"exited":               {status(ContainerExited, false, false), false, false, errdefs.ErrFailedPrecondition},
	} {
		if err := test.status.CanAttach(test.tty, test.stdin); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, expected %v", name, err, test.want)
		}
	}
}

func TestAttachWithAnOlderKeeperSaysSo(t *testing.T) {
	r := newRig(t) // whose keeper does not know the verb
	id := r.create(r.run("web"), "c")
	r.start(id)
	err := r.m.Attach(context.Background(), id, AttachOptions{Stdout: &strings.Builder{}})
	if !errors.Is(err, errdefs.ErrNotImplemented) || !strings.Contains(err.Error(), "older build") {
		t.Errorf("got %v", err)
	}
	err = r.m.Attach(context.Background(), "none", AttachOptions{Stdout: &strings.Builder{}})
	if !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("unknown container: %v", err)
	}
}

func TestInputsOfAllClientsEnd(t *testing.T) {
	var inputs attachInputs
	file := func() *os.File {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	first, gone, late := file(), file(), file()
	inputs.add(first)
	inputs.add(gone)
	inputs.remove(gone)
	inputs.end()
	inputs.add(late)
	for name, f := range map[string]*os.File{"first": first, "late": late} {
		if err := f.Close(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: was not closed: %v", name, err)
		}
	}
	if err := gone.Close(); err != nil {
		t.Errorf("of a client that had left: %v", err)
	}
}
