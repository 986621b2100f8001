package sandbox

import (
	"context"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestHandlerOfTheSandboxDecides(t *testing.T) {
	r := newRig(t)
	r.config.Handlers = map[string]Handler{"native": {SeccompNativeOnly: true}, "bare": {PrivilegedWithoutHostDevices: true}}
	r.restart()
	ctx := context.Background()
	for name, want := range r.config.Handlers {
		id, err := r.m.Run(ctx, podConfig(name), name)
		if err != nil {
			t.Fatal(err)
		}
		st, err := r.m.Sandbox(id)
		if err != nil {
			t.Fatal(err)
		}
		node, err := r.m.nodeOf(st)
		if err != nil || node.SeccompNativeOnly != want.SeccompNativeOnly || node.NoHostDevices != want.PrivilegedWithoutHostDevices {
			t.Errorf("%s: %+v, %v", name, node, err)
		}
		if _, err := r.m.Run(ctx, podConfig(name), ""); !errdefs.IsAlreadyExists(err) {
			t.Errorf("the same sandbox with another handler: %v", err)
		}
	}
}

func TestUnknownHandlerIsRefused(t *testing.T) {
	r := newRig(t)
	_, err := r.m.Run(context.Background(), podConfig("a"), "kata")
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), `runtime_handler "kata"`) {
		t.Errorf("error %v", err)
	}
}

func TestSandboxOutlivesItsHandler(t *testing.T) {
	r := newRig(t)
	r.config.Handlers = map[string]Handler{"old": {}}
	r.restart()
	id, err := r.m.Run(context.Background(), podConfig("a"), "old")
	if err != nil {
		t.Fatal(err)
	}
	r.config.Handlers = nil
	r.restart()
	st, err := r.m.Sandbox(id)
	if err != nil || st.State != SandboxReady || st.Handler != "old" {
		t.Fatalf("sandbox %+v, %v", st, err)
	}
	_, err = r.m.CreateContainer(context.Background(), id, containerConfig("c"), "sha256:feed", "ref")
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), `"old"`) {
		t.Errorf("container of a handler that is gone: %v", err)
	}
}
