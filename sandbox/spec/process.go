package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"
)

// defaultPath is PATH when neither image nor configuration has one.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// addArgs: command replaces ENTRYPOINT and drops CMD, args replaces CMD only.
func (b *builder) addArgs() error {
	command, args := b.in.Config.GetCommand(), b.in.Config.GetArgs()
	for _, list := range []struct {
		field  string
		values []string
	}{{"command", command}, {"args", args}} {
		for i, value := range list.values {
			if strings.IndexByte(value, 0) >= 0 {
				return invalid(fmt.Sprintf("%s[%d]", list.field, i), value, "no NUL byte")
			}
		}
	}
	if len(command) == 0 {
		command = b.image.Entrypoint
		if len(args) == 0 {
			args = b.image.Cmd
		}
	}
	b.spec.Process.Args = slices.Concat(command, args)
	if len(b.spec.Process.Args) == 0 {
		return invalid("command", "", "a command here, in args or in the image")
	}
	return nil
}

// addEnv lays the configuration's environment over the image's, over the defaults; of the same name the last wins, at
// the place of the first.
func (b *builder) addEnv() error {
	env := newEnviron(defaultPath)
	if b.in.Config.GetTty() {
		env.set("TERM", "xterm")
	}
	// The pod's own name is empty on the host network only.
	if name := b.in.Sandbox.GetHostname(); name != "" {
		env.set("HOSTNAME", name)
	} else if b.in.Node.Hostname != "" {
		env.set("HOSTNAME", b.in.Node.Hostname)
	}
	for _, entry := range b.image.Env {
		// An image with a malformed entry runs everywhere else too; the process could not see the entry anyway.
		if name, value, ok := strings.Cut(entry, "="); ok && name != "" && strings.IndexByte(entry, 0) < 0 {
			env.set(name, value)
		}
	}
	for i, kv := range b.in.Config.GetEnvs() {
		if name := kv.GetKey(); name == "" || strings.ContainsAny(name, "=\x00") {
			return invalid(fmt.Sprintf("envs[%d].key", i), name, "a name without '=' and NUL")
		}
		// Not the value in the text: it may be a secret.
		if slices.Contains(kv.GetValue(), 0) {
			return invalid(fmt.Sprintf("envs[%d].key", i), kv.GetKey(), "a value without NUL")
		}
		// libcontainer hands the environment to its init as JSON, which has no other strings; they would be changed.
		if !utf8.Valid(kv.GetValue()) {
			return invalid(fmt.Sprintf("envs[%d].key", i), kv.GetKey(), "a value in UTF-8")
		}
		env.set(kv.GetKey(), string(kv.GetValue()))
	}
	b.spec.Process.Env = env.entries
	return nil
}

// environ is a list of NAME=value that knows where each name is.
type environ struct {
	entries []string
	at      map[string]int
}

func newEnviron(entries ...string) *environ {
	e := &environ{at: make(map[string]int)}
	for _, entry := range entries {
		name, value, _ := strings.Cut(entry, "=")
		e.set(name, value)
	}
	return e
}

func (e *environ) set(name, value string) {
	entry := name + "=" + value
	if i, ok := e.at[name]; ok {
		e.entries[i] = entry
		return
	}
	e.at[name] = len(e.entries)
	e.entries = append(e.entries, entry)
}

func (b *builder) addCwd() error {
	cwd := b.in.Config.GetWorkingDir()
	if cwd == "" {
		// An image's relative directory is meant from the root.
		b.spec.Process.Cwd = path.Join("/", b.image.WorkingDir)
		return nil
	}
	if !path.IsAbs(cwd) || strings.IndexByte(cwd, 0) >= 0 {
		return invalid("working_dir", cwd, "an absolute path")
	}
	b.spec.Process.Cwd = path.Clean(cwd)
	return nil
}
