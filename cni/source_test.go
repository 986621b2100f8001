package cni

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func (b *bench) statusHas(t *testing.T, want string) {
	t.Helper()
	eventually(t, "status has "+want, func() bool {
		err := b.Status()
		return err == nil && want == "" || err != nil && want != "" && strings.Contains(err.Error(), want)
	})
}

func TestStatusTellsWhyThereIsNoNetwork(t *testing.T) {
	b := newBench(t, "")
	b.statusHas(t, "no CNI configuration in "+b.config.ConfDir)
	if _, err := b.Attach(t.Context(), "s1", "/ns", sandboxConfig()); !errdefs.IsUnavailable(err) {
		t.Errorf("Attach without configuration = %v, want Unavailable", err)
	}
	b.write(t, "net.d/10-a.conflist", `{"cniVersion":`)
	b.statusHas(t, "10-a.conflist: parse: unexpected end of JSON input")
	b.write(t, "net.d/10-a.conflist", `{"cniVersion":"1.0.0","plugins":[{"type":"fake"}]}`)
	b.statusHas(t, "no name")
	b.write(t, "net.d/10-a.conflist",
		`{"name":"a","cniVersion":"1.0.0","plugins":[{"type":"fake","ipam":{"type":"pool"}}]}`)
	b.statusHas(t, `CNI plugin "pool" of network "a" is missing in `+b.config.BinDirs[0])
	b.plugin(t, "pool")
	b.statusHas(t, "")
	must(t, os.RemoveAll(b.config.ConfDir))
	b.statusHas(t, "no CNI configuration")
	must(t, os.Mkdir(b.config.ConfDir, 0o700))
	b.write(t, "net.d/10-a.conflist", conflist("again", "1.0.0", ""))
	b.statusHas(t, "")
	if got := b.recorded(t); got != nil {
		t.Errorf("records are %v", got)
	}
}

func TestFirstFileInLexicalOrderCounts(t *testing.T) {
	b := newBench(t, conflist("list", "1.0.0", "")) // 10-fake.conflist
	used := func() string {
		t.Helper()
		_, err := b.Attach(t.Context(), "s1", "/ns", sandboxConfig())
		must(t, err)
		must(t, b.Detach(t.Context(), "s1", "/ns", nil))
		return b.stdin(t, "ADD")["name"].(string)
	}
	expect := func(want string) {
		t.Helper()
		if got := used(); got != want {
			t.Errorf("network is %q, want %q", got, want)
		}
	}
	expect("list")
	b.write(t, "net.d/05-plain.conf", `{"cniVersion":"1.0.0","name":"plain","type":"fake"}`)
	expect("plain")
	b.write(t, "net.d/01-list-as-json.json", conflist("json", "1.0.0", ""))
	expect("json")
	b.write(t, "net.d/.00-hidden.conflist", conflist("hidden", "1.0.0", ""))
	b.write(t, "net.d/00-other.conflist.bak", conflist("other", "1.0.0", ""))
	expect("json")
	// An edit in place that keeps the size.
	b.write(t, "net.d/01-list-as-json.json", conflist("josn", "1.0.0", ""))
	expect("josn")
	b.remove(t, "net.d/01-list-as-json.json")
	b.remove(t, "net.d/05-plain.conf")
	expect("list")
}

func TestPluginsFromTheDirectoryOfTheListAreRecorded(t *testing.T) {
	b := newBench(t, `{"cniVersion":"1.1.0","name":"split"}`)
	b.write(t, "result", strings.Replace(fakeResult, "1.0.0", "1.1.0", 1))
	b.statusHas(t, "no plugin configs found")
	must(t, os.Mkdir(filepath.Join(b.config.ConfDir, "split"), 0o700))
	b.write(t, "net.d/split/10.conf", `{"type":"fake","tag":"from the directory"}`)
	_, err := b.Attach(t.Context(), "s1", "/ns", sandboxConfig())
	must(t, err)
	must(t, os.RemoveAll(b.config.ConfDir))
	must(t, b.Detach(t.Context(), "s1", "/ns", nil))
	if got := b.stdin(t, "DEL")["tag"]; got != "from the directory" {
		t.Errorf("DEL got tag %v", got)
	}
}

func TestStatusAsksPluginsOfVersion110(t *testing.T) {
	b := newBench(t, "")
	b.write(t, "fail.STATUS", `{"code":50,"msg":"the controller is starting"}`)
	b.write(t, "net.d/10-a.conflist", conflist("a", "1.1.0", ""))
	b.statusHas(t, "the controller is starting")
	b.write(t, "net.d/10-a.conflist", conflist("b", "1.0.0", ""))
	b.statusHas(t, "")
	b.remove(t, "fail.STATUS")
	b.write(t, "net.d/10-a.conflist", conflist("c", "1.1.0", ""))
	b.statusHas(t, "")
}

func TestOpenRefusesConfigsThatCannotWork(t *testing.T) {
	dir := t.TempDir()
	for name, config := range map[string]Config{
		"no cache":    {},
		"name":        {CacheDir: dir, Embedded: true, EmbeddedName: "a/b"},
		"bridge":      {CacheDir: dir, Embedded: true, EmbeddedBridge: "much-too-long-name"},
		"subnet":      {CacheDir: dir, Embedded: true, EmbeddedSubnet: "10.0.0.0"},
		"range":       {CacheDir: dir, Embedded: true, EmbeddedClusterRanges: []string{"10.0.0.0"}},
		"IPv6 subnet": {CacheDir: dir, Embedded: true, EmbeddedSubnet6: "10.0.0.0/16"},
		"tiny subnet": {CacheDir: dir, Embedded: true, EmbeddedSubnet: "10.0.0.0/31"},
	} {
		if n, err := Open(config); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: Open = %v, %v; want InvalidArgument", name, n, err)
		}
	}
}

func TestParseQuantity(t *testing.T) {
	for text, want := range map[string]float64{
		"1000": 1000, "10k": 1e4, "1.5M": 1.5e6, "2e6": 2e6, "2E6": 2e6, "1Gi": 1 << 30, "4Ki": 4096, "500m": 0.5, "3E": 3e18,
	} {
		if got, err := parseQuantity(text); err != nil || got != want {
			t.Errorf("parseQuantity(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "M", "10MB", "10 M", "0x10", "1_000", "inf", "NaN", "ten"} {
		if got, err := parseQuantity(text); err == nil {
			t.Errorf("parseQuantity(%q) = %v, want an error", text, got)
		}
	}
}

func TestLoopbackComesUp(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a network namespace")
	}
	path := newNetNS(t)
	start := time.Now()
	must(t, loopbackUp(path))
	t.Logf("loopback up in %v", time.Since(start))
	serveHTTP(t, path, "127.0.0.1:80", "up")
	if body, err := get(path, "127.0.0.1:80"); err != nil || body != "up" {
		t.Errorf("GET over loopback = %q, %v", body, err)
	}
	if err := loopbackUp(filepath.Join(t.TempDir(), "gone")); err == nil {
		t.Error("loopbackUp succeeded without a namespace")
	}
}
