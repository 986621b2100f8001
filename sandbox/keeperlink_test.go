package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/sandbox/keeper"
	"github.com/gantry-cri/gantry/sandbox/keeper/pins"
	"github.com/gantry-cri/gantry/sandbox/namespace"
)

// TestPinsAreWhereTheKeeperLooks runs a sandbox with a keeper of an older build, and then with its successor.
func TestPinsAreWhereTheKeeperLooks(t *testing.T) {
	r := newRig(t)
	inTable := func(id string) (kinds string) {
		for _, kind := range []string{namespace.Net, namespace.IPC, namespace.UTS, namespace.Shm} {
			if pins.InTable(filepath.Join(r.m.pinDir(id), kind)) {
				kinds += kind + " "
			}
		}
		return kinds
	}
	older := r.keeper.hello
	older.Protocol, older.Build, older.Live = keeper.ProtocolTablePins, "older", 1
	r.keeper.behave(func() { r.keeper.hello, older = older, r.keeper.hello })
	r.restart()
	old := r.run("old")
	if got := inTable(old); got != "net ipc uts shm " {
		t.Errorf("an older keeper finds %q", got)
	}
	r.keeper.behave(func() { r.keeper.hello = older })
	r.restart()
	if st, err := r.m.Sandbox(old); err != nil || st.State != SandboxReady || !pins.Alive(st.NetNS) {
		t.Errorf("the sandbox of before is %+v, %v", st, err)
	}
	if got := inTable(r.run("new")); got != "" {
		t.Errorf("the node's table has %q of a keeper that does not look there", got)
	}
}

// TestEachKeeperIsToldOfTheDefaultProfile whenever the daemon joins it: it may be a new one.
func TestEachKeeperIsToldOfTheDefaultProfile(t *testing.T) {
	r := newRig(t)
	told := func() (n int) {
		r.keeper.behave(func() { n = r.keeper.profiles })
		return n
	}
	eventually(t, "the keeper is told", func() bool { return told() == 1 })
	r.restart()
	eventually(t, "the keeper is told by the next daemon", func() bool { return told() == 2 })
}

// TestIdleKeeperOfAnotherBuildIsReplaced: what lives goes on in the keeper that it has, whatever the build.
func TestIdleKeeperOfAnotherBuildIsReplaced(t *testing.T) {
	for name, other := range map[string]keeper.HelloReply{
		"older":                   {Protocol: keeper.ProtocolTablePins, Build: "other"},
		"same protocol":           {Protocol: keeper.ProtocolVersion, Build: "other"},
		"newer":                   {Protocol: keeper.ProtocolVersion + 1, Build: "other"},
		"same build":              {Protocol: keeper.ProtocolVersion, Build: "fake"},
		"older, not idle":         {Protocol: keeper.ProtocolTablePins, Build: "other", Live: 1},
		"same protocol, not idle": {Protocol: keeper.ProtocolVersion, Build: "other", Live: 1},
		"newer, not idle":         {Protocol: keeper.ProtocolVersion + 1, Build: "other", Live: 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.close()
			other.PID, other.Settled = os.Getpid(), true
			spawned := filepath.Join(t.TempDir(), "spawned")
			r.config.Keeper = filepath.Join(filepath.Dir(spawned), "keeper")
			script := "#!/bin/sh\ntouch " + spawned + "\necho ready >&3\n"
			if err := os.WriteFile(r.config.Keeper, []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			own := r.keeper.hello
			r.keeper.behave(func() {
				r.keeper.hello, r.keeper.shutdown = other, func() { r.keeper.hello = own }
			})
			m, err := Open(context.Background(), r.config)
			var refused *keeper.VersionError
			if errors.As(err, &refused) {
				if name != "newer, not idle" || !strings.Contains(err.Error(), "newer") || refused.Live != 1 {
					t.Error(err)
				}
				r.keeper.behave(func() { r.keeper.hello = own })
				r.open()
			} else if err != nil || name == "newer, not idle" {
				t.Fatalf("Open with a keeper that is %s: %v", name, err)
			} else {
				r.m = m
			}
			_, err = os.Stat(spawned)
			if replaced, idle := err == nil, other.Live == 0 && other.Build != own.Build; replaced != idle {
				t.Errorf("replaced %v, expected %v", replaced, idle)
			}
		})
	}
}
