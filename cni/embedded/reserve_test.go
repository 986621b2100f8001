package embedded

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// offline is a network for which nothing is done.
func offline(t *testing.T, subnets ...string) *Network {
	t.Helper()
	config := testConfig(t)
	config.Subnet, config.Subnet6 = netip.MustParsePrefix(subnets[0]), netip.Prefix{}
	if len(subnets) > 1 {
		config.Subnet6 = netip.MustParsePrefix(subnets[1])
	}
	n, err := New(config)
	must(t, err)
	return n
}

func reserve(t *testing.T, n *Network, id string) *Attachment {
	t.Helper()
	a, err := n.Reserve(id, Request{})
	must(t, err)
	return a
}

func TestHostPortOfAFamilyThatTheSandboxLacksIsRefused(t *testing.T) {
	n := offline(t, "10.0.0.0/29", "fd00::/64")
	ports := []Port{port("::1", 80)}
	if _, err := n.Reserve("s1", Request{Ports: ports, NoIPv6: true}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Reserve = %v, want a failed precondition", err)
	}
	if n.Held("s1") != nil || len(n.used) != 0 || len(n.ports) != 0 {
		t.Error("a failed Reserve holds something")
	}
	if _, err := n.Reserve("s1", Request{Ports: ports}); err != nil {
		t.Error(err)
	}
	if _, err := n.Reserve("s2", Request{Ports: []Port{port("", 81)}, NoIPv6: true}); err != nil {
		t.Error(err)
	}
}

func TestAddressesAreGivenOnceAndRest(t *testing.T) {
	n := offline(t, "10.0.0.0/29", "fd00::/64") // .2 to .6
	var all []*Attachment
	for i := range 5 {
		a := reserve(t, n, fmt.Sprint("s", i))
		want := fmt.Sprintf("10.0.0.%d fd00::%d", i+2, i+2)
		if got := a.Addresses[0].IP.String() + " " + a.Addresses[1].IP.String(); got != want {
			t.Errorf("addresses are %s, want %s", got, want)
		}
		if a.Addresses[0].Gateway.String() != "10.0.0.1" || a.Addresses[1].Gateway.String() != "fd00::1" {
			t.Errorf("gateways of %v", a.Addresses)
		}
		all = append(all, a)
	}
	_, err := n.Reserve("s5", Request{})
	const full = "no free address in 10.0.0.0/29: sandboxes have 5 of 5"
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), full) {
		t.Errorf("one too many: %v", err)
	}
	if n.Held("s5") != nil || len(n.used) != 10 {
		t.Error("a failed Reserve holds something")
	}
	n.Release(all[3])
	n.Release(all[1])
	for i, want := range []string{"10.0.0.3", "10.0.0.5"} { // from where the search ended
		if got := reserve(t, n, fmt.Sprint("again", i)).Addresses[0].IP.String(); got != want {
			t.Errorf("address is %s, want %s", got, want)
		}
	}
	n.Release(all[1]) // once more, although another has its address now
	if !n.used[all[1].Addresses[0].IP] {
		t.Error("the second Release gave away the address of another")
	}
}

func TestAddressesOfOthersAreLeftOut(t *testing.T) {
	n := offline(t, "10.0.0.0/24")
	n.config.Taken = func(ip netip.Addr) bool { return ip.As4()[3] < 200 }
	if got := reserve(t, n, "s").Addresses[0].IP.String(); got != "10.0.0.200" {
		t.Errorf("address is %s", got)
	}
	n.Adopt(&Attachment{SandboxID: "old", Addresses: []Address{{IP: netip.MustParseAddr("10.0.0.201")}}}, false)
	if got := reserve(t, n, "t").Addresses[0].IP.String(); got != "10.0.0.202" {
		t.Errorf("address is %s, want the one after that of the other boot", got)
	}
}

func TestSandboxHoldsOneAttachment(t *testing.T) {
	n := offline(t, "10.0.0.0/24")
	reserve(t, n, "s")
	if _, err := n.Reserve("s", Request{}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second Reserve = %v", err)
	}
}

func port(host string, number uint16) Port {
	p := Port{Protocol: "tcp", HostPort: number, ContainerPort: 80}
	if host != "" {
		p.HostIP = netip.MustParseAddr(host)
	}
	return p
}

func TestHostPortsConflict(t *testing.T) {
	for _, test := range []struct {
		first, second Port
		conflict      bool
	}{
		{port("", 80), port("", 80), true},
		{port("", 80), port("", 81), false},
		{port("", 80), port("127.0.0.1", 80), true},
		{port("", 80), port("::1", 80), true},
		{port("0.0.0.0", 80), port("127.0.0.1", 80), true},
		{port("0.0.0.0", 80), port("::", 80), false},
		{port("::", 80), port("fd00::1", 80), true},
		{port("127.0.0.1", 80), port("127.0.0.2", 80), false},
		{port("127.0.0.1", 80), port("127.0.0.1", 80), true},
		{port("", 80), Port{Protocol: "udp", HostPort: 80, ContainerPort: 80}, false},
	} {
		for _, pair := range [][2]Port{{test.first, test.second}, {test.second, test.first}} {
			n := offline(t, "10.0.0.0/24", "fd00::/64")
			first, err := n.Reserve("first", Request{Ports: pair[:1]})
			must(t, err)
			_, err = n.Reserve("second", Request{Ports: pair[1:]})
			if got := errors.Is(err, ErrHostPort); got != test.conflict {
				t.Errorf("%v and %v: %v, want conflict %v", pair[0], pair[1], err, test.conflict)
			}
			if test.conflict && (!strings.Contains(err.Error(), "sandbox first has "+pair[0].String()) ||
				!errdefs.IsFailedPrecondition(err)) {
				t.Errorf("error is %v", err)
			}
			n.Release(first)
			if _, err := n.Reserve("third", Request{Ports: pair[1:]}); test.conflict && err != nil {
				t.Errorf("%v is taken after its release: %v", pair[1], err)
			}
		}
	}
}

func TestOneSandboxNamesAHostPortTwice(t *testing.T) {
	n := offline(t, "10.0.0.0/24")
	a, err := n.Reserve("same", Request{Ports: []Port{port("", 80), port("", 80)}})
	if err != nil || len(a.Ports) != 1 {
		t.Errorf("the same twice: %v, %v", a, err)
	}
	other := port("", 90)
	other.ContainerPort = 81
	if _, err := n.Reserve("other", Request{Ports: []Port{port("", 90), other}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("to two ports: %v", err)
	}
}

func TestPortsOfAnotherBootAreFree(t *testing.T) {
	n := offline(t, "10.0.0.0/24")
	n.Adopt(&Attachment{SandboxID: "old", Ports: []Port{port("", 80)}}, false)
	if _, err := n.Reserve("new", Request{Ports: []Port{port("", 80)}}); err != nil {
		t.Error(err)
	}
}
