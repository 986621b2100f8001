package imageservice

import (
	"crypto/rand"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
)

func TestStoreSurvivesRestart(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "app:1", small(t, "a"))
	s := open(t)
	pullOK(t, s, r.host+"/app:1")
	before := s.List(nil)
	eventually(t, "the usage is summed up", func() bool { return s.FsInfo().UsedBytes.Value > 0 })
	check(t, s.Close())
	again := open(t, at(s.config.Root))
	if after := again.List(nil); !reflect.DeepEqual(before, after) {
		t.Errorf("before %v, after %v", before, after)
	}
	if got := again.FsInfo().UsedBytes.Value; got == 0 {
		t.Error("usage is zero after restart")
	}
	if _, err := again.Pull(t.Context(), PullRequest{Ref: r.host + "/app:1"}); err != nil {
		t.Error(err)
	}
}

func TestOpenRemovesWhatADeadProcessLeft(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "keep:1", small(t, "keep"))
	r.push(t, "app:1", small(t, "a"))
	s := open(t)
	pullOK(t, s, r.host+"/keep:1")
	check(t, s.collect(scope(t.Context())))
	before := inventory(t, s)
	// As a process that is killed during a pull: a lease, blobs without a name, an unpacked layer, an unfinished
	// download, directories that no database knows.
	ctx, _, err := s.store.lease(scope(t.Context()))
	check(t, err)
	registry := s.newRegistry(ctx, nil)
	target, err := registry.resolve(ctx, r.host+"/app:1")
	check(t, err)
	fetcher, err := registry.fetcher(ctx, &pull{ref: r.host + "/app:1"})
	check(t, err)
	check(t, s.fetchAndUnpack(ctx, fetcher, target))
	writer, err := s.store.content.Writer(ctx, contentRef("half"))
	check(t, err)
	_, err = writer.Write([]byte("half"))
	check(t, err)
	writer.Close()
	check(t, os.MkdirAll(filepath.Join(s.config.Root, "snapshots", "snapshots", "new-123"), 0o700))
	check(t, os.MkdirAll(filepath.Join(s.uses.dir, "new-123", "fs"), 0o700))
	// And one that died after the rename of a layer's directory and before the commit of its number, whichever that is.
	for id := 1; id < 100; id++ {
		err := os.Mkdir(filepath.Join(s.config.Root, "snapshots", "snapshots", strconv.Itoa(id)), 0o700)
		if err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	if got := inventory(t, s); got.blobs <= before.blobs || got.layers <= before.layers || got.leases == 0 {
		t.Fatalf("setting up: %+v, before %+v", got, before)
	}
	check(t, s.Close())
	again := open(t, at(s.config.Root))
	if after := inventory(t, again); after != before {
		t.Errorf("after %+v, before %+v", after, before)
	}
	if _, ok := again.Status(named(r.host + "/app:1")); ok {
		t.Error("half-pulled image is visible")
	}
	if found, _ := filepath.Glob(filepath.Join(s.uses.dir, "*")); len(found) != 0 {
		t.Errorf("left %v", found)
	}
}

// TestPullInAnotherProcess is not a test: TestKillDuringPullLeavesNothing runs it in a process that it kills.
func TestPullInAnotherProcess(t *testing.T) {
	root, ref := os.Getenv("IMAGESERVICE_TEST_ROOT"), os.Getenv("IMAGESERVICE_TEST_REF")
	if root == "" {
		t.Skip("only runs inside of TestKillDuringPullLeavesNothing")
	}
	pullOK(t, open(t, at(root)), ref)
}

func TestKillDuringPullLeavesNothing(t *testing.T) {
	needRoot(t)
	r := newRegistry(t)
	img := small(t, "a")
	r.push(t, "app:1", img)
	layers, err := img.Layers()
	check(t, err)
	last, err := layers[2].Digest()
	check(t, err)
	// The last layer does not come before the others are unpacked.
	reached := make(chan struct{})
	var once sync.Once
	r.intercept(func(_ http.ResponseWriter, q *http.Request) bool {
		if strings.HasSuffix(q.URL.Path, last.String()) {
			once.Do(func() { close(reached) })
			<-q.Context().Done()
		}
		return false
	})
	s := open(t)
	before := inventory(t, s)
	check(t, s.Close())
	process := exec.Command(os.Args[0], "-test.run=^TestPullInAnotherProcess$")
	// The killed process cannot remove its temporary files; with TMPDIR they go with this test.
	process.Env = append(os.Environ(), "TMPDIR="+t.TempDir(),
		"IMAGESERVICE_TEST_ROOT="+s.config.Root, "IMAGESERVICE_TEST_REF="+r.host+"/app:1")
	check(t, process.Start())
	<-reached
	eventually(t, "the first layers are unpacked", func() bool {
		found, _ := filepath.Glob(filepath.Join(s.config.Root, "snapshots", "snapshots", "*", "fs", "etc", "content"))
		return len(found) > 0
	})
	check(t, process.Process.Kill())
	process.Wait()
	r.intercept(nil)
	again := open(t, at(s.config.Root))
	if after := inventory(t, again); after != before || len(again.List(nil)) != 0 {
		t.Errorf("after %+v, before %+v", after, before)
	}
	pullOK(t, again, r.host+"/app:1")
}

func TestDamagedDatabaseIsReplaced(t *testing.T) {
	for _, name := range []string{"meta.db", "snapshots/metadata.db"} {
		for _, damage := range []struct {
			name string
			do   func([]byte) []byte
		}{
			{"zeroes", func(b []byte) []byte { return make([]byte, len(b)) }},
			{"removed", nil},
			{"truncated", func(b []byte) []byte { return b[:len(b)/3] }},
			{"overwritten pages", func(b []byte) []byte {
				for i := 2 * os.Getpagesize(); i < len(b); i++ {
					b[i] = 0xa5
				}
				return b
			}},
			{"noise", func(b []byte) []byte { rand.Read(b); return b }},
		} {
			t.Run(name+" "+damage.name, func(t *testing.T) {
				r := newRegistry(t)
				r.push(t, "app:1", small(t, "a"))
				s := open(t)
				pullOK(t, s, r.host+"/app:1")
				check(t, s.Close())
				path := filepath.Join(s.config.Root, name)
				raw, err := os.ReadFile(path)
				check(t, err)
				check(t, os.Remove(path))
				if damage.do != nil {
					check(t, os.WriteFile(path, damage.do(raw), 0o600))
				}
				again := open(t, at(s.config.Root))
				if n := len(again.List(nil)); n != 0 {
					t.Errorf("%d images", n)
				}
				pullOK(t, again, r.host+"/app:1")
				aside, _ := filepath.Glob(filepath.Join(s.config.Root, "damaged-*"))
				lostNames := damage.do == nil && name == "meta.db" // then the rest is sound, and is collected
				if len(aside) != 1 && !lostNames {
					t.Errorf("moved aside: %v", aside)
				}
			})
		}
	}
}

func TestOpenRefusesASecondProcess(t *testing.T) {
	s := open(t)
	if _, err := Open(t.Context(), s.config); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("error %v", err)
	}
	if _, err := Open(t.Context(), Config{Root: "relative"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("relative root: %v", err)
	}
}

func TestMissingLayerMakesImageForgotten(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "app:1", small(t, "a"))
	s := open(t)
	pullOK(t, s, r.host+"/app:1")
	check(t, s.Close())
	dirs, err := filepath.Glob(filepath.Join(s.config.Root, "snapshots", "snapshots", "*"))
	check(t, err)
	check(t, os.RemoveAll(dirs[0]))
	again := open(t, at(s.config.Root))
	if n := len(again.List(nil)); n != 0 {
		t.Errorf("%d images", n)
	}
}
