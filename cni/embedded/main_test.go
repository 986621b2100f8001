package embedded

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestMain runs the tests in a process with networks of its own, so that the node's stay as they are.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	if os.Getenv("GANTRY_TEST_INNER") != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), "GANTRY_TEST_INNER=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	runtime.LockOSThread() // the death that Pdeathsig is about is that of the thread
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// The main thread, unlike others, does not end with the goroutine that is locked to it, and would keep a namespace
// alive; so the main goroutine keeps it.
func init() { runtime.LockOSThread() }

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func testConfig(t *testing.T) Config {
	t.Helper()
	return Config{
		Enabled: true, Bridge: "gtest0", Subnet: netip.MustParsePrefix("10.231.7.0/24"),
		Subnet6: netip.MustParsePrefix("fd00:231:7::/64"), StateFile: filepath.Join(t.TempDir(), "embedded.json"),
	}
}

// open makes a network and removes it at the end.
func open(t *testing.T, config Config) *Network {
	t.Helper()
	n, err := New(config)
	must(t, err)
	must(t, n.Ensure())
	t.Cleanup(func() {
		if err := n.Remove(); err != nil {
			t.Error(err)
		}
		n.Close()
	})
	return n
}

// reopen is what another daemon finds of an attachment after a kill.
func reopen(t *testing.T, config Config, old *Network, attachments ...*Attachment) (*Network, []*Attachment) {
	t.Helper()
	old.Close()
	n, err := New(config)
	must(t, err)
	var copies []*Attachment
	for _, a := range attachments {
		b, err := json.Marshal(a)
		must(t, err)
		var c Attachment
		must(t, json.Unmarshal(b, &c))
		n.Adopt(&c, true)
		copies = append(copies, &c)
	}
	must(t, n.Ensure())
	return n, copies
}

func attach(t *testing.T, n *Network, id string, ports ...Port) (*Attachment, string) {
	t.Helper()
	a, err := n.Reserve(id, Request{Ports: ports})
	must(t, err)
	netns := newNetNS(t)
	must(t, n.Attach(t.Context(), a, netns))
	return a, netns
}

// traces lists what there is of sandboxes: links, routes to them, elements of the table.
func traces(t *testing.T, n *Network) []string {
	t.Helper()
	var found []string
	links, err := netlink.LinkList()
	if err != nil { // such as that it changed meanwhile
		return []string{err.Error()}
	}
	for _, link := range links {
		if strings.HasPrefix(link.Attrs().Name, n.prefix) {
			found = append(found, "link "+link.Attrs().Name)
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteList(nil, family)
		if err != nil {
			return []string{err.Error()}
		}
		for _, r := range routes {
			if r.Dst != nil && r.Scope == netlink.SCOPE_LINK && n.ranges[0].Contains(addrOf(r.Dst.IP)) {
				found = append(found, "route to "+r.Dst.String())
			}
		}
	}
	for _, f := range families {
		for _, name := range []string{setHairpins, mapPorts, mapAddressPorts} {
			for _, key := range elementsOf(t, n, name+f.suffix) {
				found = append(found, fmt.Sprintf("element %x of %s", key, name+f.suffix))
			}
		}
	}
	return found
}

func addrOf(ip []byte) netip.Addr {
	addr, _ := netip.AddrFromSlice(ip)
	return addr.Unmap()
}

func elementsOf(t *testing.T, n *Network, set string) (keys [][]byte) {
	t.Helper()
	must(t, n.transact(func(conn *nftables.Conn) error {
		elements, err := conn.GetSetElements(&nftables.Set{Table: n.inet(), Name: set})
		for _, e := range elements {
			keys = append(keys, e.Key)
		}
		return err
	}))
	return keys
}

// wantNoTraces waits as long as the kernel and the timer of the links may take.
func wantNoTraces(t *testing.T, n *Network) {
	t.Helper()
	var found []string
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if found = traces(t, n); len(found) == 0 {
			return
		}
	}
	t.Errorf("left behind: %q", found)
}

// newNetNS makes a network namespace and returns the path that pins it.
func newNetNS(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "netns")
	must(t, os.WriteFile(path, nil, 0o600))
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends in the new namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		errs <- err
	}()
	must(t, <-errs)
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	return path
}

// inNetNS runs do in a network namespace.
func inNetNS(t *testing.T, netns string, do func() error) {
	t.Helper()
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // for good
		fd, err := unix.Open(netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			_ = unix.Close(fd)
		}
		if err == nil {
			err = do()
		}
		errs <- err
	}()
	must(t, <-errs)
}
