package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// serve runs handlers below a new state directory whose path is longer than a socket address may be.
func serve(t *testing.T, handlers map[Verb]Handler) *Client {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 100))
	if err := os.MkdirAll(Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); Serve(l, handlers, func(err error) { t.Log(err) }) }()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return New(dir)
}

func TestErrorsKeepTheirKind(t *testing.T) {
	for kind, want := range map[Kind]error{
		KindNotFound: errdefs.ErrNotFound, KindInvalid: errdefs.ErrInvalidArgument,
		KindState: errdefs.ErrFailedPrecondition, KindStart: ErrStart, KindInternal: errdefs.ErrInternal,
	} {
		c := serve(t, map[Verb]Handler{VerbKill: func(context.Context, *Call) error {
			return fmt.Errorf("kill: %w", Errorf(kind, "because"))
		}})
		err := c.Kill(t.Context(), KillRequest{})
		if !errors.Is(err, want) || err.Error() != "kill: because" {
			t.Errorf("%s: got %v", kind, err)
		}
	}
}

func TestUnknownVerbsAndPanicsAreErrors(t *testing.T) {
	c := serve(t, map[Verb]Handler{VerbKill: func(context.Context, *Call) error { panic("oh") }})
	if err := c.Settle(t.Context()); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("unknown verb: %v", err)
	}
	if err := c.Kill(t.Context(), KillRequest{}); !errors.Is(err, errdefs.ErrInternal) {
		t.Errorf("panic: %v", err)
	}
}

func TestGivingUpIsSeenByTheKeeper(t *testing.T) {
	asked, seen := make(chan struct{}), make(chan struct{})
	c := serve(t, map[Verb]Handler{VerbKill: func(ctx context.Context, _ *Call) error {
		close(asked)
		<-ctx.Done()
		close(seen)
		return ctx.Err()
	}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { <-asked; cancel() }()
	if err := c.Kill(ctx, KillRequest{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	select {
	case <-seen:
	case <-time.After(time.Minute):
		t.Error("the keeper did not see it")
	}
}

func TestDeadKeeperIsUnavailable(t *testing.T) {
	c := serve(t, map[Verb]Handler{VerbKill: func(_ context.Context, call *Call) error {
		return call.conn.Close()
	}})
	if err := c.Kill(t.Context(), KillRequest{}); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("reset: %v", err)
	}
	if err := New(t.TempDir()).Settle(t.Context()); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("no keeper: %v", err)
	}
}

func TestConnectRefusesAnotherProtocol(t *testing.T) {
	says := func(protocol int) *Client {
		return serve(t, map[Verb]Handler{VerbHello: func(_ context.Context, call *Call) error {
			return call.Reply(HelloReply{Protocol: protocol, Build: "other", PID: 42})
		}})
	}
	for protocol := ProtocolTablePins; protocol <= ProtocolVersion; protocol++ {
		c := says(protocol)
		if _, got, err := Connect(t.Context(), c.stateDir, "mine"); err != nil || got.Build != "other" {
			t.Errorf("another build: %+v, %v", got, err)
		}
	}
	for protocol, age := range map[int]string{ProtocolVersion + 1: "newer", ProtocolTablePins - 1: "older"} {
		c := says(protocol)
		_, _, err := Connect(t.Context(), c.stateDir, "mine")
		var version *VersionError
		if !errors.As(err, &version) || version.PID != 42 || !errors.Is(err, errdefs.ErrFailedPrecondition) ||
			!strings.Contains(err.Error(), "is "+age+" than this daemon") {
			t.Errorf("got %v", err)
		}
	}
}

func TestSpawnTellsWhy(t *testing.T) {
	dir := t.TempDir()
	script := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	log := filepath.Join(dir, "log")
	if err := os.WriteFile(log, []byte("of long ago\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		binary, want, not string
		patience          time.Duration
	}{
		{filepath.Join(dir, "nosuch"), "no such file", "", time.Minute},
		{script("plain", "exit 0", 0o644), "permission denied", "", time.Minute},
		{script("dies", "echo broken >&2; exit 3", 0o755), "exit status 3: it printed: broken", "of long ago", time.Minute},
		{script("hangs", "echo thinking; sleep 1000", 0o755), "not ready in time", "", 500 * time.Millisecond},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), c.patience)
		err := Spawn(ctx, c.binary, filepath.Join(dir, "state"), log)
		cancel()
		if err == nil || !strings.Contains(err.Error(), c.want) || (c.not != "" && strings.Contains(err.Error(), c.not)) {
			t.Errorf("%s: got %v, want %s", c.binary, err, c.want)
		}
	}
}

func TestStatusRoundTrip(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadStatus(dir); !os.IsNotExist(err) {
		t.Errorf("got %v", err)
	}
	want := Status{PID: 7, StartTime: 9, ExitCode: 137, OOMKilled: true, Finished: time.Now().UTC().Round(0)}
	if err := WriteStatus(dir, &want); err != nil {
		t.Fatal(err)
	}
	got, err := ReadStatus(dir)
	if err != nil || !got.Exited() || got.ExitCode != 137 || !got.OOMKilled || got.BootID == "" ||
		!got.Finished.Equal(want.Finished) {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(dir, StatusFile), []byte(`{"version":99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadStatus(dir); err == nil {
		t.Error("a status of another version was read")
	}
}
