package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestUnfinishedCheckpointsAreDiscarded has what a killed daemon leaves. The intent of a pod's checkpoint must not go before
// what it tells of: the daemon may be killed again.
func TestUnfinishedCheckpointsAreDiscarded(t *testing.T) {
	m := &Manager{config: Config{Root: t.TempDir()}}
	out := t.TempDir()
	partial, foreign := filepath.Join(out, "c1"), filepath.Join(out, "other")
	for _, dir := range []string{m.checkpointsDir(), filepath.Join(m.checkpointsDir(), "container-1"), partial, foreign} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3000 { // for the removal to take a while
		if err := os.WriteFile(filepath.Join(partial, fmt.Sprint(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := writeRecord(m.checkpointsDir(), podIntents+"1", &podIntent{Path: out, Containers: []string{"c1"}}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.checkpointsDir(), podIntents+"torn"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.discardCheckpoints(); err != nil {
		t.Fatal(err)
	}
	gone := func(path string) bool { _, err := os.Lstat(path); return errors.Is(err, fs.ErrNotExist) }
	for _, name := range []string{"container-1", podIntents + "torn"} {
		if !gone(filepath.Join(m.checkpointsDir(), name)) {
			t.Errorf("%s is there", name)
		}
	}
	for end := time.Now().Add(time.Minute); !gone(filepath.Join(m.checkpointsDir(), podIntents+"1")); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the intent is there still")
		}
	}
	if !gone(partial) {
		t.Error("the intent went before what it tells of")
	}
	if gone(foreign) {
		t.Error("what no checkpoint wrote was removed")
	}
	if err := m.discardCheckpoints(); err != nil {
		t.Errorf("again: %v", err)
	}
}
