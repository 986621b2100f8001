package keeperd

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// fakeCounter is a cgroup directory of version 2 with its count of kills.
func fakeCounter(t *testing.T, dir string, kills int) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("low 0\nhigh 3\nmax 9\noom 2\noom_kill %d\noom_group_kill 0\n", kills)
	if err := os.WriteFile(filepath.Join(dir, "memory.events"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func wantKills(t *testing.T, what string, got, want uint64) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %d kills, expected %d", what, got, want)
	}
}

func TestOOMKillsOfACgroupThatStands(t *testing.T) {
	slice := fakeCounter(t, t.TempDir(), 5)
	a := fakeCounter(t, filepath.Join(slice, "a"), 0)
	var l oomLedger
	l.open(a)
	fakeCounter(t, a, 2)
	fakeCounter(t, slice, 7)
	wantKills(t, "close", l.close(a), 2)
	wantKills(t, "second close", l.close(a), 0)
	if len(l.accounts) > 0 {
		t.Errorf("accounts are left: %v", l.accounts)
	}
}

func TestOOMKillsOfACgroupThatIsGone(t *testing.T) {
	slice := fakeCounter(t, t.TempDir(), 5)
	a, b, c := filepath.Join(slice, "a"), filepath.Join(slice, "b"), filepath.Join(slice, "c")
	var l oomLedger
	l.open(a) // before it is made
	fakeCounter(t, a, 0)
	l.open(b)
	fakeCounter(t, b, 3) // its own three
	fakeCounter(t, slice, 8+1)
	if err := os.RemoveAll(a); err != nil {
		t.Fatal(err)
	}
	l.open(c) // while the end of a is not settled
	wantKills(t, "one that is gone", l.close(a), 1)
	wantKills(t, "one that was not killed", l.close(c), 0)
	if err := os.RemoveAll(b); err != nil {
		t.Fatal(err)
	}
	wantKills(t, "the one that had its own", l.close(b), 3)
}

func TestOOMKillsOfBeforeAreNobodys(t *testing.T) {
	slice := fakeCounter(t, t.TempDir(), 5)
	a := filepath.Join(slice, "a")
	var l oomLedger
	l.open(fakeCounter(t, filepath.Join(slice, "other"), 1))
	fakeCounter(t, slice, 9) // something else of the slice was killed
	l.open(a)
	wantKills(t, "a new one", l.close(a), 0)
}

func TestOOMKillsWithoutACgroup(t *testing.T) {
	var l oomLedger
	l.open("")
	wantKills(t, "none", l.close(""), 0)
	gone := filepath.Join(t.TempDir(), "slice", "scope")
	l.open(gone)
	wantKills(t, "no parent", l.close(gone), 0)
}
