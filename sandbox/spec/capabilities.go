package spec

import (
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// knownCapabilities are the capabilities of Linux, in the order of their numbers.
var knownCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
	"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
	"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
	"CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// defaultCapabilities are what images expect of any runtime.
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SYS_CHROOT", "CAP_MKNOD", "CAP_AUDIT_WRITE", "CAP_SETFCAP",
}

const allCapabilities = "ALL"

// capabilityLists are the lists of the configuration with the names in one spelling.
type capabilityLists struct{ add, drop, ambient []string }

// addCapabilities gives the process what was asked for, as far as the daemon itself may give it: a node without some
// capability runs what it can. Inheritable stays empty but for the ambient ones: an inheritable capability would let a
// file with inheritable bits raise what the user was meant not to have.
func (b *builder) addCapabilities() error {
	lists, err := b.capabilityLists()
	if err != nil {
		return err
	}
	all := b.in.Node.Capabilities
	if b.privileged {
		set := ordered(all)
		b.spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: set, Effective: set, Permitted: set}
		return nil
	}
	ambient := lists.ambient
	if slices.Contains(ambient, allCapabilities) {
		ambient = all
	}
	ambient = without(intersect(ambient, all), lists.drop)
	set := slices.Concat(lists.regular(all), ambient)
	set = ordered(set)
	ambient = ordered(ambient)
	b.spec.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding: set, Effective: set, Permitted: set, Inheritable: ambient, Ambient: ambient,
	}
	return nil
}

// regular is the set without the ambient ones: add ALL, drop ALL, add, drop, in this order.
func (l capabilityLists) regular(all []string) []string {
	set := defaultCapabilities
	if slices.Contains(l.add, allCapabilities) {
		set = all
	}
	if slices.Contains(l.drop, allCapabilities) {
		set = nil
	}
	return without(intersect(slices.Concat(set, l.add), all), l.drop)
}

func (b *builder) capabilityLists() (lists capabilityLists, err error) {
	c := b.security.GetCapabilities()
	if lists.add, err = capabilityNames("add_capabilities", c.GetAddCapabilities()); err != nil {
		return lists, err
	}
	if lists.drop, err = capabilityNames("drop_capabilities", c.GetDropCapabilities()); err != nil {
		return lists, err
	}
	lists.ambient, err = capabilityNames("add_ambient_capabilities", c.GetAddAmbientCapabilities())
	return lists, err
}

// capabilityNames allows names with and without CAP_, in any case, and ALL.
func capabilityNames(field string, names []string) ([]string, error) {
	var known []string
	for i, name := range names {
		upper := strings.ToUpper(name)
		if upper != allCapabilities && !strings.HasPrefix(upper, "CAP_") {
			upper = "CAP_" + upper
		}
		if upper != allCapabilities && !slices.Contains(knownCapabilities, upper) {
			field := securityField(fmt.Sprintf("capabilities.%s[%d]", field, i))
			return nil, invalid(field, name, "the name of a capability or ALL")
		}
		known = append(known, upper)
	}
	return known, nil
}

// ordered returns the set once each, in the order of the numbers, so that equal sets are equal slices.
func ordered(set []string) []string { return intersect(knownCapabilities, set) }

// intersect returns those of a that are in b, in a's order.
func intersect(a, b []string) []string {
	var both []string
	for _, name := range a {
		if slices.Contains(b, name) {
			both = append(both, name)
		}
	}
	return both
}

// without returns those of a that are not in b, in a's order.
func without(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(name string) bool { return slices.Contains(b, name) })
}
