package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
)

const (
	// statusEvery is how often plugins are asked for STATUS, statusTimeout how long all of them together may take.
	statusEvery   = 10 * time.Second
	statusTimeout = 10 * time.Second
	// settleTime is the age from which the time stamps of a file are believed: a file that was changed twice within
	// the granularity of its time stamp looks as if it was changed once.
	settleTime = 100 * time.Millisecond
)

// bridgeName is narrower than what the kernel takes, because the name is also that of an nftables table.
var bridgeName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,14}$`)

// state is the network configuration as it was found. It is immutable.
type state struct {
	list *libcni.NetworkConfigList // nil when there is none, and for the embedded network; its Bytes hold every plugin
	err  error                     // why no sandbox can be attached now

	loadErr   error  // the part of err that stays until the files change
	signature string // of the files that list was made from
	settled   bool   // the signature is to be believed
}

// probe is what the plugins of a configuration answered to STATUS.
type probe struct {
	config string
	err    error
}

func (c Config) withDefaults() (Config, error) {
	if c.CacheDir == "" {
		return c, fmt.Errorf("CNI cache directory is empty, expected a path: %w", errdefs.ErrInvalidArgument)
	}
	setDefault(&c.ConfDir, "/etc/cni/net.d")
	setDefault(&c.EmbeddedName, "gantry-default")
	setDefault(&c.EmbeddedBridge, "gantry0")
	setDefault(&c.EmbeddedSubnet, "10.85.0.0/16")
	setDefault(&c.EmbeddedSubnet6, autoSubnet6)
	setDefault(&c.AddTimeout, time.Minute)
	setDefault(&c.DelTimeout, time.Minute)
	setDefault(&c.Poll, 2*time.Second)
	if len(c.BinDirs) == 0 {
		c.BinDirs = []string{"/opt/cni/bin"}
	}
	if !c.Embedded {
		return c, nil
	}
	if err := utils.ValidateNetworkName(c.EmbeddedName); err != nil {
		return c, fmt.Errorf("embedded network name %q: %s: %w", c.EmbeddedName, err.Msg, errdefs.ErrInvalidArgument)
	}
	if !bridgeName.MatchString(c.EmbeddedBridge) {
		return c, fmt.Errorf("embedded bridge %q: expected a letter and up to 14 more of [A-Za-z0-9_.-]: %w",
			c.EmbeddedBridge, errdefs.ErrInvalidArgument)
	}
	if p, err := netip.ParsePrefix(c.EmbeddedSubnet); err != nil || !p.Addr().Is4() || p.Bits() > 30 {
		return c, fmt.Errorf("embedded subnet %q: expected an IPv4 prefix of at most 30 bits: %w",
			c.EmbeddedSubnet, errdefs.ErrInvalidArgument)
	}
	for _, r := range c.EmbeddedClusterRanges {
		if _, err := netip.ParsePrefix(r); err != nil {
			return c, fmt.Errorf("embedded cluster range %q: expected a prefix: %w", r, errdefs.ErrInvalidArgument)
		}
	}
	if c.EmbeddedSubnet6 == autoSubnet6 || c.EmbeddedSubnet6 == noSubnet6 {
		return c, nil
	}
	p, err := netip.ParsePrefix(c.EmbeddedSubnet6)
	if err != nil || !p.Addr().Is6() || p.Addr().Is4In6() || p.Bits() > 126 {
		return c, fmt.Errorf("embedded IPv6 subnet %q: expected auto, none or an IPv6 prefix of at most 126 bits: %w",
			c.EmbeddedSubnet6, errdefs.ErrInvalidArgument)
	}
	return c, nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Status returns nil when sandboxes can be attached, else an error whose text is the reason, fit for the kubelet's
// NetworkReady condition. It reads memory only.
func (n *Network) Status() error {
	s := n.current.Load()
	if s.err != nil {
		return s.err
	}
	if p := n.probed.Load(); p != nil && p.config == string(s.list.Bytes) {
		return p.err
	}
	return nil
}

// usable returns the configuration for one attachment, or errdefs.ErrUnavailable.
func (n *Network) usable() (*libcni.NetworkConfigList, error) {
	s := n.refresh()
	if s.err != nil {
		return nil, fmt.Errorf("network is not ready: %w: %w", s.err, errdefs.ErrUnavailable)
	}
	return s.list, nil
}

// refresh brings the state up to date with the files. It runs no plugin.
func (n *Network) refresh() *state {
	n.loading.Lock()
	defer n.loading.Unlock()
	if n.config.Embedded {
		s := &state{err: n.embeddedReady()}
		n.current.Store(s)
		return s
	}
	old := n.current.Load()
	var s state
	s.signature, s.settled = signature(n.config.ConfDir)
	if old != nil && old.settled && s.settled && old.signature == s.signature {
		s = *old
	} else {
		s.list, s.loadErr = loadDir(n.config.ConfDir)
	}
	s.err = s.loadErr
	if s.err == nil {
		// Looked at every time: installers may put the plugins in place after the configuration.
		s.err = n.config.missingPlugin(s.list)
	}
	n.current.Store(&s)
	return &s
}

// watch keeps the state fresh for Status. It polls, because a directory that does not exist yet, an edit in place, a
// rename and a symbolic link that is swapped all look the same to stat, and none of them do to inotify.
func (n *Network) watch(ctx context.Context) {
	ticker := time.NewTicker(n.config.Poll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			n.refresh()
		}
	}
}

// probeStatus asks the plugins whether they are ready. It is apart from watch because a plugin may hang.
func (n *Network) probeStatus(ctx context.Context) {
	ticker := time.NewTicker(n.config.Poll)
	defer ticker.Stop()
	var last time.Time
	for {
		s, p := n.current.Load(), n.probed.Load()
		due := p == nil || s.list != nil && p.config != string(s.list.Bytes) || time.Since(last) >= statusEvery
		if due && s.err == nil && atLeast(s.list.CNIVersion, "1.1.0") {
			last = time.Now()
			n.probed.Store(&probe{config: string(s.list.Bytes), err: n.askStatus(ctx, s.list)})
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (n *Network) askStatus(ctx context.Context, list *libcni.NetworkConfigList) error {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	if err := n.libcni(&pluginExec{}).GetStatusNetworkList(ctx, list); err != nil {
		return fmt.Errorf("network %q is not ready: %w", list.Name, err)
	}
	return nil
}

// confFiles returns the configuration files of a directory in lexical order.
func confFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read CNI configuration directory: %w", err)
	}
	var files []string
	for _, entry := range entries {
		name := entry.Name()
		switch filepath.Ext(name) {
		case ".conflist", ".conf", ".json":
			if !entry.IsDir() && !strings.HasPrefix(name, ".") { // editors and installers write hidden ones first
				files = append(files, filepath.Join(dir, name))
			}
		}
	}
	return files, nil
}

// signature is a text that changes when a file of the directory or of one of its sub-directories does. It is settled
// when the youngest change is old enough to be told from the next.
func signature(dir string) (text string, settled bool) {
	var b strings.Builder
	settled = true
	add := func(path string) {
		info, err := os.Stat(path)
		if err != nil {
			fmt.Fprintf(&b, "%s %v\n", path, err)
			return
		}
		fmt.Fprintf(&b, "%s %d %d %s\n", path, info.ModTime().UnixNano(), info.Size(), info.Mode())
		settled = settled && time.Since(info.ModTime()) > settleTime
	}
	add(dir)
	// A list may take plugins from the directory of its name.
	for _, pattern := range []string{"*", "*/*.conf"} {
		paths, _ := filepath.Glob(filepath.Join(dir, pattern)) // the only error is a bad pattern
		for _, path := range paths {
			add(path)
		}
	}
	return b.String(), settled
}

// loadDir loads the first configuration of a directory. It does not go on to the next when the first is wrong: which
// network a sandbox gets must not depend on who is just editing a file.
func loadDir(dir string) (*libcni.NetworkConfigList, error) {
	files, err := confFiles(dir)
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no CNI configuration in %s", dir)
	}
	list, err := loadFile(files[0])
	if err != nil {
		return nil, fmt.Errorf("CNI configuration %s: %w", files[0], err)
	}
	return list, nil
}

func loadFile(file string) (*libcni.NetworkConfigList, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	// What a file is depends on its content: programs write lists into .conf and .json as well.
	var shape struct {
		Type    string          `json:"type"`
		Plugins json.RawMessage `json:"plugins"`
	}
	if err := json.Unmarshal(b, &shape); err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	var list *libcni.NetworkConfigList
	if shape.Plugins == nil && shape.Type != "" {
		list, err = listOfOne(b)
	} else {
		list, err = libcni.NetworkConfFromFile(file)
	}
	if err != nil {
		return nil, err
	}
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return nil, fmt.Errorf("name %q: %s", list.Name, err.Msg)
	}
	return inlined(list)
}

// listOfOne makes a list of a configuration from before there were lists.
func listOfOne(plugin []byte) (*libcni.NetworkConfigList, error) {
	var head struct {
		Name       string `json:"name"`
		CNIVersion string `json:"cniVersion"`
	}
	if err := json.Unmarshal(plugin, &head); err != nil {
		return nil, err
	}
	b, err := json.Marshal(map[string]any{
		"name": head.Name, "cniVersion": head.CNIVersion, "plugins": []json.RawMessage{plugin},
	})
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(b)
}

// inlined returns the same list with Bytes that need no other file, so that they can be recorded.
func inlined(list *libcni.NetworkConfigList) (*libcni.NetworkConfigList, error) {
	plugins := make([]json.RawMessage, len(list.Plugins))
	for i, plugin := range list.Plugins {
		plugins[i] = plugin.Bytes
	}
	b, err := json.Marshal(map[string]any{
		"cniVersion": list.CNIVersion, "name": list.Name, "disableCheck": list.DisableCheck, "disableGC": list.DisableGC,
		"loadOnlyInlinedPlugins": true, "plugins": plugins,
	})
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(b)
}

// missingPlugin returns an error that names the first program which the list needs and which is not there.
func (c Config) missingPlugin(list *libcni.NetworkConfigList) error {
	for _, plugin := range list.Plugins {
		for _, name := range []string{plugin.Network.Type, plugin.Network.IPAM.Type} {
			if name == "" {
				continue
			}
			if _, err := invoke.FindInPath(name, c.BinDirs); err != nil {
				return fmt.Errorf("CNI plugin %q of network %q is missing in %s",
					name, list.Name, strings.Join(c.BinDirs, ", "))
			}
		}
	}
	return nil
}

func atLeast(cniVersion, wanted string) bool {
	ok, err := version.GreaterThanOrEqualTo(cniVersion, wanted)
	return err == nil && ok
}
