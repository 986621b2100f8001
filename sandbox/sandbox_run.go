package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/sandbox/host"
	"github.com/gantry-cri/gantry/sandbox/namespace"
	"github.com/gantry-cri/gantry/trace"
)

// makeTimeout bounds the making of a sandbox. The kubelet waits 4 minutes for RunPodSandbox (twice its request
// timeout) and then joins by asking again.
const makeTimeout = 4 * time.Minute

// Run makes a sandbox and returns its id. A call with the metadata of a sandbox that is being made joins the running
// job; with the metadata of one that is ready it returns that one's id, or errdefs.ErrAlreadyExists when the rest of
// the configuration differs.
func (m *Manager) Run(ctx context.Context, config *runtime.PodSandboxConfig, handler string) (string, error) {
	if err := checkSandboxConfig(config); err != nil {
		return "", err
	}
	if err := m.checkHandler(handler); err != nil {
		return "", err
	}
	s, fresh := m.reserve(config, handler)
	trace.About(ctx, s.subject())
	if !fresh {
		return m.joinRun(ctx, s, config, handler)
	}
	err := s.making.do(ctx, func() error { return s.make(ctx) })
	if err != nil {
		return "", fmt.Errorf("run sandbox %s/%s: %w",
			config.GetMetadata().GetNamespace(), config.GetMetadata().GetName(), err)
	}
	return s.id, nil
}

// reserve finds the sandbox that answers for the metadata, or enters a new one.
func (m *Manager) reserve(config *runtime.PodSandboxConfig, handler string) (s *Sandbox, fresh bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.running[keyOf(config)]; s != nil {
		return s, false
	}
	s = m.newSandbox(newID(), config, time.Now())
	st := *s.Status()
	st.Handler = handler
	s.status.Store(&st)
	var ctx context.Context
	ctx, s.cancelMake = background(makeTimeout)
	s.makeCtx = ctx
	m.running[keyOf(config)] = s
	m.sandboxes[s.id] = s
	return s, true
}

func (m *Manager) joinRun(
	ctx context.Context, s *Sandbox, config *runtime.PodSandboxConfig, handler string,
) (string, error) {
	creating := s.Status().State == SandboxCreating
	if err := s.making.do(ctx, func() error { return s.make(ctx) }); err != nil {
		return "", err
	}
	// The kubelet may build the configuration anew for a retry; what was given first counts while the job runs. A
	// sandbox that is listed as ready and differs is another matter: whoever asks must not get what it did not ask for.
	if st := s.Status(); st.Handler != handler || !creating && !proto.Equal(st.Config, config) {
		return "", fmt.Errorf("sandbox %s has the same metadata (namespace, name, uid, attempt) and another "+
			"configuration or runtime handler: %w", s.id, errdefs.ErrAlreadyExists)
	}
	return s.id, nil
}

// forget ends the sandbox's answering for its metadata, so that the next Run with it makes a new one.
func (m *Manager) forget(s *Sandbox) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if key := keyOf(s.Status().Config); m.running[key] == s {
		delete(m.running, key)
	}
}

// make does what Run asked for, once; a later call finds it done. Of caller it takes the timeline only.
func (s *Sandbox) make(caller context.Context) error {
	switch s.Status().State {
	case SandboxReady:
		return nil
	case SandboxCreating:
	default:
		return fmt.Errorf("sandbox %s is %s: %w", s.id, s.Status().State, errdefs.ErrFailedPrecondition)
	}
	defer s.cancelMake()
	err := s.makeSteps(trace.With(s.makeCtx, caller))
	if err == nil {
		return nil
	}
	if context.Cause(s.makeCtx) == context.Canceled {
		err = fmt.Errorf("sandbox was stopped while it was made: %w", errdefs.ErrFailedPrecondition)
	}
	s.m.forget(s)
	if rmErr := s.remove(); rmErr != nil {
		// It stays listed, not ready, and the kubelet's Stop and Remove try again.
		klog.ErrorS(rmErr, "Sandbox that could not be made could not be removed either", "sandbox", s.id)
		_ = s.transition(SandboxStopping, nil)
		err = errors.Join(err, fmt.Errorf("undo: %w", rmErr))
	}
	return err
}

// makeSteps is the story of a sandbox: record, files, namespaces, network. Whatever it leaves, remove undoes.
func (s *Sandbox) makeSteps(ctx context.Context) error {
	s.m.keeper.expect()
	steps := trace.Steps(ctx)
	defer steps.End()
	config := s.Status().Config
	steps.Next("check configuration")
	opts, err := s.namespaceOptions(config)
	if err != nil {
		return err
	}
	steps.Next("write record")
	if err := s.makeRecord(config, opts); err != nil {
		return err
	}
	steps.Next("write hosts and resolv.conf")
	if err := writeFiles(s.m.sandboxDir(s.id), opts.Hostname, config.GetDnsConfig()); err != nil {
		return err
	}
	if err := giveFiles(s.m.sandboxDir(s.id), opts.User); err != nil {
		return err
	}
	steps.Next("make namespaces")
	if err := namespace.Make(s.m.pinDir(s.id), opts); err != nil {
		return err
	}
	var ips []string
	if opts.Net {
		s.findNetNS()
		namespace.Announce(s.id, s.Status().NetNS)
		if ips, err = s.attach(steps.Next("attach network"), config); err != nil {
			return err
		}
	}
	steps.Next("write record")
	return s.makeReady(ips)
}

func (s *Sandbox) makeReady(ips []string) error {
	st := *s.Status()
	st.IPs = ips
	if err := s.save(&st, true, false); err != nil {
		return err
	}
	return s.transition(SandboxReady, func(st *SandboxStatus) { st.IPs = ips })
}

// findNetNS tells where the network namespace is, now that it is there.
func (s *Sandbox) findNetNS() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setLocked(func(st *SandboxStatus) { st.NetNS = s.m.netns(s.id) })
}

// makeRecord writes down what is about to be made.
func (s *Sandbox) makeRecord(config *runtime.PodSandboxConfig, opts namespace.Options) error {
	parent, own, err := s.m.cgroupParent(s.id, config.GetLinux().GetCgroupParent())
	if err != nil {
		return err
	}
	var level string
	if s.m.node.SELinux {
		if level, err = host.ChooseLevel(config.GetLinux().GetSecurityContext().GetSelinuxOptions()); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.ownCgroup = own
	s.setLocked(func(st *SandboxStatus) {
		st.CgroupParent, st.SELinuxLevel = parent, level
		if opts.Net {
			st.NetNS = filepath.Join(s.m.pinDir(s.id), namespace.Net)
		}
	})
	s.mu.Unlock()
	if err := os.MkdirAll(filepath.Join(s.m.sandboxDir(s.id), containersDir), 0o700); err != nil {
		return fmt.Errorf("make record directory: %w", err)
	}
	return s.save(s.Status(), false, false)
}

func (s *Sandbox) attach(ctx context.Context, config *runtime.PodSandboxConfig) ([]string, error) {
	netns := s.Status().NetNS
	if netns == "" {
		return nil, nil
	}
	ips, err := s.m.config.Network.Attach(ctx, s.id, netns, config)
	if err != nil {
		return nil, fmt.Errorf("attach network: %w", err)
	}
	if len(ips) == 0 {
		// The kubelet takes a sandbox without an address for a broken one and makes it anew, for ever.
		return nil, fmt.Errorf("attach network: the plugins gave no address")
	}
	return ips, nil
}

// unprivilegedDefaults let a process without capabilities bind low ports and ping inside its own network namespace, as
// other runtimes do. They are safe: the namespace is the sandbox's.
var unprivilegedDefaults = map[string]string{
	"net.ipv4.ip_unprivileged_port_start": "0",
	"net.ipv4.ping_group_range":           "0 2147483647",
}

// namespaceOptions says which namespaces the sandbox has of its own. A UTS namespace goes with the network's: a pod on
// the host's network has the host's name.
func (s *Sandbox) namespaceOptions(config *runtime.PodSandboxConfig) (namespace.Options, error) {
	ns := config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	opts := namespace.Options{
		Net: ns.GetNetwork() != runtime.NamespaceMode_NODE, NetInTable: s.m.config.Plugins,
		InTable: s.m.keeper.tablePins.Load(),
		IPC:     ns.GetIpc() != runtime.NamespaceMode_NODE,
	}
	opts.UTS = opts.Net
	var err error
	if opts.User, err = s.m.userOptionsOf(config); err != nil {
		return opts, err
	}
	if opts.Hostname, err = hostnameOf(config); err != nil {
		return opts, err
	}
	sysctls := config.GetLinux().GetSysctls()
	if err := namespace.CheckSysctls(sysctls, opts.Net, opts.IPC); err != nil {
		return opts, err
	}
	opts.Sysctls = map[string]string{}
	if opts.Net {
		maps.Copy(opts.Sysctls, unprivilegedDefaults)
	}
	maps.Copy(opts.Sysctls, sysctls)
	return opts, nil
}
