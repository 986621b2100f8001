//go:build seccomp

package stage

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestAProfileIsCompiledOnce(t *testing.T) {
	var programs Programs
	var wg sync.WaitGroup
	got := make([]*Program, 8)
	for i := range got {
		wg.Go(func() {
			p, err := programs.Compile(t.Context(), profile("read", specs.ActAllow))
			if err != nil {
				t.Error(err)
			}
			got[i] = p
		})
	}
	wg.Wait()
	for _, p := range got {
		if p == nil || p != got[0] {
			t.Fatalf("programs %p and %p", p, got[0])
		}
	}
	other, err := programs.Compile(t.Context(), profile("write", specs.ActAllow))
	if err != nil || slices.Equal(other.filter, got[0].filter) {
		t.Errorf("another profile: the same program, %v", err)
	}
	for name, p := range map[string]*specs.LinuxSeccomp{"no profile": nil, "empty profile": {}} {
		if p, err := programs.Compile(t.Context(), p); p != nil || err != nil {
			t.Errorf("%s: %v, %v", name, p, err)
		}
	}
}

func TestABadProfileIsAnErrorEveryTime(t *testing.T) {
	var programs Programs
	for range 2 {
		_, err := programs.Compile(t.Context(), profile("read", "SCMP_ACT_NOTHING"))
		if err == nil || !strings.Contains(err.Error(), "SCMP_ACT_NOTHING") {
			t.Errorf("got %v", err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	if _, err := programs.Compile(ctx, profile("close", specs.ActAllow)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
