package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Files that a sandbox gives its containers.
const (
	hostnameFile = "hostname"
	hostsFile    = "hosts"
	resolvFile   = "resolv.conf"
)

// maxHostname is the kernel's limit (uname(2): __NEW_UTS_LEN).
const maxHostname = 64

// hostnameOf is the sandbox's host name: the configuration's, or the node's where that is empty.
func hostnameOf(config *runtime.PodSandboxConfig) (string, error) {
	if name := config.GetHostname(); name != "" {
		return name, nil
	}
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("read the node's hostname: %w", err)
	}
	return name, nil
}

func checkHostname(name string) error {
	if len(name) > maxHostname {
		return invalidf("config.hostname %q: %d bytes, expected at most %d", name, len(name), maxHostname)
	}
	if strings.ContainsFunc(name, unicode.IsControl) {
		return invalidf("config.hostname %q: expected a name without control characters", name)
	}
	return nil
}

// writeFiles writes hostname, hosts and resolv.conf into the sandbox's directory.
func writeFiles(dir, hostname string, dns *runtime.DNSConfig) error {
	resolv, err := resolvConf(dns)
	if err != nil {
		return err
	}
	hosts, err := readHostFile("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		hostnameFile: []byte(hostname + "\n"), hostsFile: hosts, resolvFile: resolv,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

// resolvConf is the sandbox's resolv.conf: that of the node when dns is nil, else what dns says, be it nothing.
func resolvConf(dns *runtime.DNSConfig) ([]byte, error) {
	if dns == nil {
		return readHostFile("/etc/resolv.conf", "")
	}
	var b strings.Builder
	if len(dns.GetSearches()) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(dns.GetSearches(), " "))
	}
	for _, s := range dns.GetServers() {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(dns.GetOptions()) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(dns.GetOptions(), " "))
	}
	return []byte(b.String()), nil
}

func readHostFile(path, fallback string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return []byte(fallback), nil
	}
	if err != nil {
		return nil, fmt.Errorf("copy the node's %s: %w", path, err)
	}
	return b, nil
}
