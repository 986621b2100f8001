package cni

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
)

// lastPlugin stands behind the fake one in a list and does in ADD what a test wants.
const lastPlugin = `#!/bin/sh
dir=%s
cat > "$dir/last.$CNI_COMMAND.stdin"
echo "$CNI_COMMAND|last" >> "$dir/log"
[ "$CNI_COMMAND" = ADD ] || exit 0
%s
`

// newChain is a bench whose network is the fake plugin and one more, whose ADD is body.
func newChain(t *testing.T, version, body string) *bench {
	t.Helper()
	b := newBench(t, fmt.Sprintf(`{"cniVersion":%q,"name":"chain","plugins":[{"type":"fake"},{"type":"last"}]}`, version))
	writeScript(t, filepath.Join(b.config.BinDirs[0], "last"), fmt.Sprintf(lastPlugin, b.dir, body))
	return b
}

// wantDel checks that DEL ran for the whole list in reverse, each with the result of the fake plugin.
func (b *bench) wantDel(t *testing.T, version string) {
	t.Helper()
	var order []string
	for _, call := range b.calls(t) {
		if f := strings.Split(call, "|"); f[0] == "DEL" {
			order = append(order, f[1])
		}
	}
	if want := []string{"last", "fake"}; !reflect.DeepEqual(order, want) {
		t.Errorf("DEL ran for %v, want %v", order, want)
	}
	var want map[string]any
	must(t, json.Unmarshal([]byte(fakeResult), &want))
	want["cniVersion"] = version
	for _, command := range []string{"DEL", "last.DEL"} {
		if got := b.stdin(t, command)["prevResult"]; !reflect.DeepEqual(got, any(want)) {
			t.Errorf("%s got prevResult\n%v, want\n%v", command, got, want)
		}
	}
	if got := b.recorded(t); got != nil {
		t.Errorf("records are left: %v", got)
	}
	if left, _ := os.ReadDir(filepath.Join(b.config.CacheDir, "results")); len(left) != 0 {
		t.Errorf("results are left: %v", left)
	}
}

func TestAddThatStopsHalfWayIsUndoneByTheResultSoFar(t *testing.T) {
	for name, body := range map[string]string{
		"failing":         `echo '{"code":100,"msg":"out of luck"}'; exit 1`,
		"failing late":    `cat "$dir/result"; exit 1`,
		"hanging":         `touch "$dir/hangs"; sleep 300`,
		"hanging late":    `cat "$dir/result"; touch "$dir/hangs"; sleep 300`,
		"garbage":         "echo no json",
		"nothing":         "",
		"half a result":   `echo '{"cniVersion":"1.0.0","ips":['`,
		"unknown version": `echo '{"cniVersion":"7.0.0","ips":[]}'`,
		"empty result":    "echo '{}'",
		"null":            "echo null",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for how, detach := range map[string]func(b *bench) error{
				"at once": func(b *bench) error { return b.Detach(t.Context(), "s1", "/ns", nil) },
				"after a restart": func(b *bench) error {
					b.Close()
					b.open(t)
					return b.Retain(t.Context(), nil)
				},
			} {
				b := newChain(t, "1.0.0", body)
				if ips, err := b.Attach(untilItHangs(t, b), "s1", "/ns", sandboxConfig()); err == nil {
					t.Fatalf("Attach = %v, want an error", ips)
				}
				if err := detach(b); err != nil {
					t.Fatalf("%s: %v", how, err)
				}
				b.wantDel(t, "1.0.0")
			}
		})
	}
}

// untilItHangs is a context that ends once the plugin has said that it hangs.
func untilItHangs(t *testing.T, b *bench) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		for ctx.Err() == nil {
			if _, err := os.Stat(filepath.Join(b.dir, "hangs")); err == nil {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	t.Cleanup(cancel)
	return ctx
}

// TestAddOfAKilledDaemonIsUndoneByTheResultSoFar kills a process, which is this test again, in the middle of an ADD.
func TestAddOfAKilledDaemonIsUndoneByTheResultSoFar(t *testing.T) {
	if dir := os.Getenv("GANTRY_TEST_ATTACH"); dir != "" {
		n, err := Open(Config{ConfDir: dir + "/net.d", BinDirs: []string{dir + "/bin"}, CacheDir: dir + "/cache"})
		must(t, err)
		n.loopback = func(string) error { return nil }
		ips, err := n.Attach(t.Context(), "s1", "/ns", sandboxConfig())
		t.Fatalf("Attach = %v, %v; want to be killed before it returns", ips, err)
	}
	b := newChain(t, "1.0.0", `n=0; until [ -e "$dir/go" ] || [ $((n += 1)) -gt 600 ]; do sleep 0.1; done; sleep 0.5; cat "$dir/result"`)
	b.Close()
	daemon := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+t.Name()+"$")
	daemon.Env = append(os.Environ(), "GANTRY_TEST_ATTACH="+b.dir)
	must(t, daemon.Start())
	eventually(t, "the last plugin runs", func() bool {
		_, err := os.Stat(filepath.Join(b.dir, "last.ADD.stdin"))
		return err == nil
	})
	must(t, daemon.Process.Kill())
	if err := daemon.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the daemon ended by itself: %v", err)
	}
	b.open(t)
	b.write(t, "go", "") // Retain waits for the plugin
	must(t, b.Retain(t.Context(), nil))
	b.wantDel(t, "1.0.0")
}

// TestDelThatFailsKeepsTheResult also lets libcni's copy go, as a kill does after the last DEL.
func TestDelThatFailsKeepsTheResult(t *testing.T) {
	b := newChain(t, "1.0.0", `cat "$dir/result"`)
	_, err := b.Attach(t.Context(), "s1", "/ns", sandboxConfig())
	must(t, err)
	b.write(t, "fail.DEL", "not now")
	if err := b.Detach(t.Context(), "s1", "/ns", nil); err == nil {
		t.Fatal("Detach succeeded although DEL failed")
	}
	b.calls(t)
	b.remove(t, "fail.DEL")
	b.remove(t, "cache/results/chain-s1-eth0")
	must(t, b.Detach(t.Context(), "s1", "/ns", nil))
	b.wantDel(t, "1.0.0")
}

func TestResultIsGivenInTheVersionOfTheConfiguration(t *testing.T) {
	unversioned := strings.Replace(fakeResult, `"cniVersion":"1.0.0",`, "", 1)
	for _, test := range []struct{ name, version, printed string }{
		{"none printed", "1.0.0", unversioned},
		{"older printed", "1.1.0", fakeResult},
		{"newer printed", "1.0.0", strings.Replace(fakeResult, "1.0.0", "1.1.0", 1)},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newChain(t, test.version, "exit 1")
			b.write(t, "result", test.printed)
			if _, err := b.Attach(t.Context(), "s1", "/ns", sandboxConfig()); err == nil {
				t.Fatal("Attach succeeded")
			}
			must(t, b.Detach(t.Context(), "s1", "/ns", nil))
			b.wantDel(t, test.version)
		})
	}
	t.Run("without prevResult", func(t *testing.T) {
		b := newChain(t, "0.3.1", "exit 1")
		b.write(t, "result", `{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.1.2.3/24"}]}`)
		if _, err := b.Attach(t.Context(), "s1", "/ns", sandboxConfig()); err == nil {
			t.Fatal("Attach succeeded")
		}
		must(t, b.Detach(t.Context(), "s1", "/ns", nil))
		if got, there := b.stdin(t, "DEL")["prevResult"]; there {
			t.Errorf("DEL of version 0.3.1 got prevResult %v", got)
		}
	})
}

func TestTornResultIsPassedOver(t *testing.T) {
	good, torn := `{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.1/24"}]}`, `{"cniVersion":"1.0.0","ips":[{"addr`
	better := strings.Replace(good, "0.1/", "0.2/", 1)
	for _, test := range []struct{ name, lines, want string }{
		{"no line", "", ""},
		{"one", good, "10.0.0.1"},
		{"the last counts", good + "\n" + better, "10.0.0.2"},
		{"torn at the end", good + "\n" + torn, "10.0.0.1"},
		{"torn before", torn + "\n" + better, "10.0.0.2"},
		{"torn alone", torn, ""},
		{"empty lines", "\n\n" + good + "\n\n", "10.0.0.1"},
	} {
		var got string
		if result := lastResult([]byte(test.lines)); result != nil {
			ips, err := addresses(result)
			must(t, err)
			got = ips[0]
		}
		if got != test.want {
			t.Errorf("%s: result is of %q, want %q", test.name, got, test.want)
		}
	}
}

// TestNoPluginRunsAfterAResultThatIsNotRecorded uses a full device for a full disk.
func TestNoPluginRunsAfterAResultThatIsNotRecorded(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	must(t, err)
	defer full.Close()
	b := newChain(t, "1.0.0", `cat "$dir/result"`)
	rec, err := newRecord("s1", "/ns", b.refresh().list, sandboxConfig())
	must(t, err)
	list, err := libcni.NetworkConfFromBytes(rec.Config)
	must(t, err)
	if _, err := b.add(t.Context(), full, rec, list); err == nil || !strings.Contains(err.Error(), "record result") {
		t.Errorf("add = %v, want that the result cannot be recorded", err)
	}
	if got := b.calls(t); len(got) != 1 || !strings.HasPrefix(got[0], "ADD|fake|") {
		t.Errorf("calls are %q, want ADD of the first plugin alone", got)
	}
}

func TestDetachFindsTheNamespaceThatAttachRecorded(t *testing.T) {
	live := fmt.Sprintf("/proc/%d/ns/net", os.Getpid())
	for _, test := range []struct{ name, recorded, given, boot, want string }{
		{"not given", live, "", bootID(), live},
		{"given one is gone", live, "/does/not/exist", bootID(), live},
		{"given one is no namespace", live, "/etc", bootID(), live},
		{"given one lives", "/does/not/exist", live, bootID(), live},
		{"recorded one is gone", "/does/not/exist", "", bootID(), ""},
		{"recorded one is of another boot", live, "", "another", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t, conflist("net", "1.0.0", ""))
			rec, err := newRecord("s1", test.recorded, b.refresh().list, sandboxConfig())
			must(t, err)
			rec.BootID = test.boot
			held, err := b.records.create(rec)
			must(t, err)
			must(t, held.Close())
			must(t, b.Detach(t.Context(), "s1", test.given, nil))
			want := []string{"DEL|fake|s1|" + test.want + "|eth0|" + fakeArgs}
			if got := b.calls(t); !reflect.DeepEqual(got, want) {
				t.Errorf("calls\n%q, want\n%q", got, want)
			}
		})
	}
}
