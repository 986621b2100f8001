package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/trace"
)

const (
	// pipeWait is how long the output of a plugin that ended is waited for while a process that it left behind holds
	// the pipe open.
	pipeWait = time.Second
	// maxOutput bounds what is kept of a plugin's output: a result is a few KB.
	maxOutput = 1 << 20
)

// libcni returns libcni over plugins that run by run.
func (n *Network) libcni(run *pluginExec) *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir(n.config.BinDirs, n.config.CacheDir, run)
}

// add runs ADD for an attachment and has each plugin's result recorded.
func (n *Network) add(
	ctx context.Context, held *os.File, rec *record, list *libcni.NetworkConfigList,
) (types.Result, error) {
	run := &pluginExec{held: held, results: &resultLog{held: held}}
	result, err := n.libcni(run).AddNetworkList(ctx, list, rec.runtimeConf(rec.NetNS))
	if err != nil {
		return nil, fmt.Errorf("add to network %q: %w", list.Name, kindOf(err))
	}
	return result, nil
}

// del runs DEL for an attachment: all plugins in reverse, also those that ADD did not come to. libcni drops its cached
// result when all of them succeeded.
func (n *Network) del(ctx context.Context, held *os.File, rec *record, netns string) error {
	list, err := libcni.NetworkConfFromBytes(rec.Config)
	if err != nil {
		return fmt.Errorf("parse recorded network: %w", err)
	}
	prevResult, err := rec.prevResult(list.CNIVersion)
	if err != nil {
		// libcni could not convert it either. The plugins still get the chance to undo what they can without.
		klog.ErrorS(err, "DEL goes without the recorded result", "network", rec.Network, "sandbox", rec.SandboxID)
	}
	run := &pluginExec{held: held, prevResult: prevResult}
	if err := n.libcni(run).DelNetworkList(ctx, list, rec.runtimeConf(netns)); err != nil {
		return fmt.Errorf("delete from network %q: %w", rec.Network, kindOf(err))
	}
	return nil
}

// substitute makes up for a record that cannot be read: from what libcni cached after a complete ADD, else from what is
// configured now. It returns nil when there is neither; then nothing can be undone.
func (n *Network) substitute(sandboxID string, config *runtime.PodSandboxConfig) *record {
	cached, err := n.libcni(&pluginExec{}).GetCachedAttachments(sandboxID)
	if err == nil && len(cached) > 0 {
		a := cached[0]
		return &record{
			SandboxID: sandboxID, Network: a.Network, IfName: a.IfName, NetNS: a.NetNS, Config: a.Config, Args: a.CniArgs,
			CapabilityArgs: a.CapabilityArgs,
		}
	}
	list := n.refresh().list
	if list == nil {
		return nil
	}
	if config == nil {
		config = &runtime.PodSandboxConfig{}
	}
	rec, err := newRecord(sandboxID, "", list, config)
	if err != nil {
		return nil
	}
	return rec
}

// liveNetNS returns path if there is a namespace, else "", which is how CNI says that it is gone: the mount point of a
// namespace outlives a reboot as a plain file, and plugins fail on that.
func liveNetNS(path string) string {
	var fs unix.Statfs_t
	if path == "" || unix.Statfs(path, &fs) != nil || fs.Type != unix.NSFS_MAGIC {
		return ""
	}
	return path
}

// pluginExec runs plugins for libcni. Unlike libcni's own it returns when the context ends, although a process that the
// plugin started holds the plugin's output open, and it kills that process too.
type pluginExec struct {
	version.PluginDecoder
	held *os.File // inherited by the plugin so that the lock outlives this process; may be nil

	results    *resultLog      // is told what each plugin of an ADD printed; nil for other commands
	prevResult json.RawMessage // what the plugins of a DEL are given instead of what libcni has; may be nil
}

var _ invoke.Exec = (*pluginExec)(nil)

// FindInPath implements invoke.Exec.
func (e *pluginExec) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}

// ExecPlugin implements invoke.Exec.
func (e *pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	if e.prevResult != nil {
		var err error
		if stdin, err = withPrevResult(stdin, e.prevResult); err != nil {
			return nil, err
		}
	}
	_, step := trace.Start(ctx, filepath.Base(path))
	printed, err := e.run(ctx, path, stdin, environ)
	step.End()
	if err == nil && e.results != nil {
		err = e.results.note(stdin, printed)
	}
	return printed, err
}

// run executes a plugin and returns what it printed if it ended well.
func (e *pluginExec) run(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	var stdout, stderr boundedBuffer
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = environ
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = pipeWait
	if e.held != nil {
		cmd.ExtraFiles = []*os.File{e.held}
	}
	start := time.Now()
	err := cmd.Run()
	if err == nil || errors.Is(err, exec.ErrWaitDelay) && ctx.Err() == nil {
		return stdout.b.Bytes(), nil
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("plugin %s was killed after %s, %s: %w", filepath.Base(path),
			time.Since(start).Round(time.Millisecond), endOf(ctx.Err()), ctx.Err())
	}
	return nil, pluginError(err, stdout.b.Bytes(), stderr.b.Bytes())
}

func endOf(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "it timed out"
	}
	return "the request was cancelled"
}

// pluginError is what the plugin says about itself on stdout, as the specification wants, else whatever it did say.
func pluginError(err error, stdout, stderr []byte) error {
	var said types.Error
	if json.Unmarshal(stdout, &said) == nil && said.Msg != "" {
		return &said
	}
	text := strings.TrimSpace(string(stderr))
	if text == "" {
		text = strings.TrimSpace(string(stdout))
	}
	if text == "" {
		text = "no message"
	}
	return types.NewError(types.ErrInternal, fmt.Sprintf("%v: %s", err, text), said.Details)
}

// boundedBuffer keeps the first maxOutput bytes and swallows the rest, so that the writer is not blocked.
type boundedBuffer struct{ b bytes.Buffer }

// Write implements io.Writer.
func (w *boundedBuffer) Write(p []byte) (int, error) {
	if room := maxOutput - w.b.Len(); room > 0 {
		w.b.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
