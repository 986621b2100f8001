package stats

import (
	"bytes"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// networks reads the interfaces of network namespaces, given by their paths. Namespaces that cannot be entered are left
// out: they went meanwhile.
//
// It goes there with a thread of its own. A netlink socket for each namespace would be a descriptor for each pod, and
// the files of a process in the namespace are only there where a container runs.
func networks(paths []string) map[string][]Interface {
	result := make(chan map[string][]Interface, 1)
	go func() {
		runtime.LockOSThread()
		found := make(map[string][]Interface, len(paths))
		if readNetworks(paths, found) == nil {
			runtime.UnlockOSThread() // the thread is back; else it ends with this goroutine
		}
		result <- found
	}()
	return <-result
}

// ownNetwork is the network namespace of the calling thread, not of the process.
const ownNetwork = "/proc/thread-self/ns/net"

// readNetworks enters one namespace after the other. It returns an error if the thread could not come back.
func readNetworks(paths []string, found map[string][]Interface) error {
	home, err := unix.Open(ownNetwork, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil // nothing was entered
	}
	defer unix.Close(home)
	r := newReader()
	for _, path := range paths {
		if enterNetwork(path) != nil {
			continue
		}
		if content, err := r.read("/proc/thread-self/net/dev"); err == nil {
			found[path] = parseInterfaces(content)
		}
	}
	if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("leave network namespace: %w", err)
	}
	return nil
}

func enterNetwork(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Setns(fd, unix.CLONE_NEWNET)
}

// parseInterfaces reads /proc/net/dev: two lines of titles, then a name and 16 counters per line. The result is not
// nil.
func parseInterfaces(content []byte) []Interface {
	list := []Interface{}
	for line := range bytes.SplitSeq(content, []byte{'\n'}) {
		name, rest, found := bytes.Cut(line, []byte{':'})
		fields := bytes.Fields(rest)
		if !found || len(fields) < 16 {
			continue
		}
		i := Interface{Name: string(bytes.TrimSpace(name))}
		if i.Name == "lo" {
			continue
		}
		ok := true
		for column, target := range map[int]*uint64{
			0: &i.RxBytes, 1: &i.RxPackets, 2: &i.RxErrors, 3: &i.RxDropped,
			8: &i.TxBytes, 9: &i.TxPackets, 10: &i.TxErrors, 11: &i.TxDropped,
		} {
			var is bool
			*target, is = number(fields[column])
			ok = ok && is
		}
		if ok {
			list = append(list, i)
		}
	}
	return list
}
