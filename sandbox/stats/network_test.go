package stats

import (
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

const netDev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0: 1000       10    2    1    0     0          0         0     2000      20    4    3    0     0       0          0
net1:7 6 5 4 0 0 0 0 3 2 1 0 0 0 0 0
 torn: 1 2 3
 bad: x 6 5 4 0 0 0 0 3 2 1 0 0 0 0 0
`

func TestInterfacesAreReadWithoutTheLoopback(t *testing.T) {
	want := []Interface{
		{Name: "eth0", RxBytes: 1000, RxPackets: 10, RxErrors: 2, RxDropped: 1,
			TxBytes: 2000, TxPackets: 20, TxErrors: 4, TxDropped: 3},
		{Name: "net1", RxBytes: 7, RxPackets: 6, RxErrors: 5, RxDropped: 4, TxBytes: 3, TxPackets: 2, TxErrors: 1},
	}
	if got := parseInterfaces([]byte(netDev)); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if got := parseInterfaces(nil); got == nil || len(got) != 0 {
		t.Errorf("got %v of nothing, want an empty list that is not nil", got)
	}
}

func TestNetworksAreReadInTheirNamespaces(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	other := otherNamespace(t)
	missing := filepath.Join(t.TempDir(), "missing")
	got := networks([]string{missing, other})
	if list, ok := got[other]; !ok || list == nil || len(list) != 0 {
		t.Errorf("a namespace with only the loopback has %v (%t)", list, ok)
	}
	if _, ok := got[missing]; ok {
		t.Error("a namespace that is not there has interfaces")
	}
	if len(got) != 1 {
		t.Errorf("got %v", got)
	}
}

// otherNamespace makes a network namespace that lives as long as the test's thread, and gives its path.
func otherNamespace(t *testing.T) string {
	t.Helper()
	path := make(chan string)
	end := make(chan struct{})
	t.Cleanup(func() { close(end) })
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
		}
		link, err := os.Readlink("/proc/thread-self")
		if err != nil {
			t.Error(err)
		}
		path <- filepath.Join("/proc", link, "ns/net")
		<-end
	}()
	return <-path
}

// BenchmarkNetworks is the price of one namespace per period.
func BenchmarkNetworks(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root to enter a network namespace")
	}
	paths := make([]string, 100)
	for i := range paths {
		paths[i] = "/proc/self/ns/net"
	}
	for b.Loop() {
		if len(networks(paths)) != 1 {
			b.Fatal("no interfaces")
		}
	}
}
