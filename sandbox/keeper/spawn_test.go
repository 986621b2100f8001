package keeper

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestSpawnBeginsNothingForADaemonThatEnds: it would have to wait for what it began.
func TestSpawnBeginsNothingForADaemonThatEnds(t *testing.T) {
	dir := t.TempDir()
	program, ran := filepath.Join(dir, "keeper"), filepath.Join(dir, "ran")
	writeScript(t, program, "touch "+ran+"; echo ready >&3")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Spawn(ctx, program, dir, filepath.Join(dir, "log")); !errors.Is(err, context.Canceled) {
		t.Errorf("Spawn with a context that has ended: %v, want %v", err, context.Canceled)
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("the keeper was started all the same")
	}
}

// TestSpawnIsNotCancelled has a daemon told to end while it spawns: it must not kill the keeper half way.
func TestSpawnIsNotCancelled(t *testing.T) {
	dir := t.TempDir()
	program, ran, goOn := filepath.Join(dir, "slow"), filepath.Join(dir, "ran"), filepath.Join(dir, "goon")
	writeScript(t, program, "touch "+ran+"; while [ ! -e "+goOn+" ]; do sleep 0.02; done; echo ready >&3")
	ctx, cancel := context.WithCancel(t.Context())
	spawned := make(chan error, 1)
	go func() { spawned <- Spawn(ctx, program, dir, filepath.Join(dir, "log")) }()
	for _, err := os.Stat(ran); err != nil; _, err = os.Stat(ran) {
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	if err := os.WriteFile(goOn, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := <-spawned; err != nil {
		t.Error(err)
	}
}

func writeScript(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestSpawnIsBoundedWhateverTheContext(t *testing.T) {
	late, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	for _, ctx := range []context.Context{t.Context(), late} {
		if d := untilDeadline(ctx); d > SpawnTimeout {
			t.Errorf("a spawn may take %v, want %v at most", d, SpawnTimeout)
		}
	}
}
