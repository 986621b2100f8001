package keeperd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// impatient calls what has to give up by itself. Its time is not real: the caller would wait for a minute.
func impatient(t *testing.T, call func(context.Context) error) (took time.Duration, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin := time.Now()
		err = call(ctx)
		took = time.Since(begin)
	})
	return took, err
}

// A thread looks like an init that has not come to its command: it has executed nothing, and is this program.
func TestACheckpointDoesNotWaitForACommandForever(t *testing.T) {
	thread, end := make(chan int), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		thread <- unix.Gettid()
		<-end
	}()
	c := &container{id: "c", pid: <-thread}
	defer close(end)
	if c.pid == os.Getpid() {
		t.Skip("the goroutine is on the first thread, which has executed this program")
	}
	took, err := impatient(t, c.awaitCommand)
	if !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "has not begun to execute its command") {
		t.Errorf("got %v", err)
	}
	if took < freezePatience || took > 2*freezePatience {
		t.Errorf("it took %v, expected %v", took, freezePatience)
	}
	if took, err := impatient(t, (&container{id: "c", pid: os.Getpid()}).awaitCommand); err != nil || took != 0 {
		t.Errorf("with a command: %v after %v", err, took)
	}
}

// What a process that the kernel cannot stop is in never becomes frozen. Here it is a directory that is no cgroup.
func TestACheckpointDoesNotWaitForTheFreezerForever(t *testing.T) {
	cgroups.TestMode = true
	defer func() { cgroups.TestMode = false }()
	dir := t.TempDir()
	for _, file := range []string{"freezer.state", "cgroup.freeze", "cgroup.events"} {
		if err := os.Symlink(os.DevNull, filepath.Join(dir, file)); err != nil {
			t.Fatal(err)
		}
	}
	took, err := impatient(t, func(ctx context.Context) error { return freezeTree(ctx, dir) })
	if !errors.Is(err, errTimeout) {
		t.Errorf("got %v, expected %v", err, errTimeout)
	}
	if took < freezePatience || took > 2*freezePatience {
		t.Errorf("it took %v, expected %v", took, freezePatience)
	}
}
