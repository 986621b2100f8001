package main

import (
	"fmt"
	"io"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox"
)

// HandlerConfig is about the pods of a runtime handler, which a RuntimeClass names. What is left out is as for the
// default handler.
type HandlerConfig struct {
	SeccompNativeOnly            *bool `toml:"seccomp_native_only,omitempty"`
	PrivilegedWithoutHostDevices bool  `toml:"privileged_without_host_devices"`
}

// handlerName is what Kubernetes takes for RuntimeClass.handler: a DNS label.
var handlerName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

func (c *Config) handlerChecks() []check {
	var checks []check
	for _, name := range slices.Sorted(maps.Keys(c.RuntimeHandlers)) {
		checks = append(checks, check{valueError{"runtime_handlers." + name, name,
			"a name of at most 63 lower-case letters, digits and hyphens"}, handlerName.MatchString(name)})
	}
	return checks
}

// handlers are the runtime handlers as the sandboxes know them, with the default one.
func (c *Config) handlers() map[string]sandbox.Handler {
	handlers := map[string]sandbox.Handler{"": {SeccompNativeOnly: c.Seccomp.NativeOnly}}
	for name, h := range c.RuntimeHandlers {
		handler := handlers[""]
		handler.PrivilegedWithoutHostDevices = h.PrivilegedWithoutHostDevices
		if h.SeccompNativeOnly != nil {
			handler.SeccompNativeOnly = *h.SeccompNativeOnly
		}
		handlers[name] = handler
	}
	return handlers
}

// handlerNames are the names of the runtime handlers besides the default one.
func (c *Config) handlerNames() []string { return slices.Sorted(maps.Keys(c.RuntimeHandlers)) }

// printMap writes, as a comment, a table of tables that has none by default.
func printMap(w io.Writer, key string, field reflect.Value) {
	fmt.Fprintln(w)
	for _, l := range wrap(keyDocs[key], 100) {
		fmt.Fprintln(w, "# "+l)
	}
	fmt.Fprintf(w, "# [%s.NAME]\n", key)
	table := field.Type().Elem()
	for i := range table.NumField() {
		name, _, _ := strings.Cut(table.Field(i).Tag.Get("toml"), ",")
		fmt.Fprintf(w, "# %s = false\n", name)
	}
}

// ulimitNames are the resources that default_ulimits may name, as in the kernel less RLIMIT_.
var ulimitNames = []string{
	"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
	"rttime", "sigpending", "stack",
}

// rlimits are the default_ulimits as the OCI has them. Those that are wrong, which checks refuses, are left out.
func (c *Config) rlimits() []specs.POSIXRlimit {
	var limits []specs.POSIXRlimit
	for _, text := range c.DefaultUlimits {
		if limit, ok := parseUlimit(text); ok {
			limits = append(limits, limit)
		}
	}
	return limits
}

// parseUlimit reads name=soft:hard, or name=both.
func parseUlimit(text string) (limit specs.POSIXRlimit, ok bool) {
	name, values, ok := strings.Cut(text, "=")
	if !ok || !slices.Contains(ulimitNames, name) {
		return limit, false
	}
	soft, hard, two := strings.Cut(values, ":")
	if !two {
		hard = soft
	}
	limit.Type = "RLIMIT_" + strings.ToUpper(name)
	var softOK, hardOK bool
	limit.Soft, softOK = parseLimit(soft)
	limit.Hard, hardOK = parseLimit(hard)
	return limit, softOK && hardOK && limit.Soft <= limit.Hard
}

func parseLimit(text string) (limit uint64, ok bool) {
	if text == "unlimited" {
		return unix.RLIM_INFINITY, true
	}
	limit, err := strconv.ParseUint(text, 10, 63)
	return limit, err == nil
}

func (c *Config) ulimitCheck() check {
	named := map[string]bool{}
	for _, text := range c.DefaultUlimits {
		limit, ok := parseUlimit(text)
		if !ok || named[limit.Type] {
			const expected = "each resource once, as name=soft:hard such as \"nofile=1024:4096\""
			return check{valueError{"default_ulimits", text, expected}, false}
		}
		named[limit.Type] = true
	}
	return check{ok: true}
}
