package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/sandbox/keeper"
	"github.com/gantry-cri/gantry/sandbox/keeper/pins"
	"github.com/gantry-cri/gantry/sandbox/namespace"
)

// teardownTimeout bounds the undoing of a sandbox: a CNI DEL of several plugins is the longest part.
const teardownTimeout = 3 * time.Minute

// Stop kills the containers of a sandbox and takes its network down. It is idempotent; an unknown id is no error. When
// a step fails, among them CNI DEL, it returns the error and the next Stop tries again.
func (m *Manager) Stop(ctx context.Context, id string) error {
	s, err := m.findSandbox(id)
	if err != nil {
		if gone(err) {
			return nil
		}
		return err
	}
	if err := s.stop(ctx); err != nil {
		return fmt.Errorf("stop sandbox %s: %w", s.id, err)
	}
	return nil
}

// Remove removes a sandbox with all its containers, stopping it first. It is idempotent; an unknown id is no error.
func (m *Manager) Remove(ctx context.Context, id string) error {
	s, err := m.findSandbox(id)
	if err != nil {
		if gone(err) {
			return nil
		}
		return err
	}
	if err := s.stop(ctx); err != nil {
		return fmt.Errorf("remove sandbox %s: %w", s.id, err)
	}
	err = s.removing.do(ctx, func() error {
		if m.lookupSandbox(s.id) != s {
			return nil // an earlier call was quicker
		}
		if err := s.transition(SandboxRemoving, nil); err != nil {
			return err
		}
		return s.remove()
	})
	if err != nil {
		return fmt.Errorf("remove sandbox %s: %w", s.id, err)
	}
	return nil
}

func (m *Manager) lookupSandbox(id string) *Sandbox {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.sandboxes[id]
}

// stop ends a sandbox that is being made, or takes down one that is ready.
func (s *Sandbox) stop(ctx context.Context) error {
	s.cancelMake()
	_ = s.making.wait(ctx) // its error is for those who asked for the sandbox
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.stopping.do(ctx, s.stopSteps)
}

func (s *Sandbox) stopSteps() error {
	switch s.Status().State {
	case SandboxStopped, SandboxRemoving:
		return nil
	}
	if s.m.lookupSandbox(s.id) != s {
		return nil // it could not be made, and is gone
	}
	unreadable := s.Status().State == SandboxUnknown
	if err := s.transition(SandboxStopping, nil); err != nil {
		return err
	}
	s.m.forget(s)
	_ = s.updating.wait(context.Background()) // it writes the record, as of before the stop
	if !unreadable {
		if err := s.save(s.Status(), true, true); err != nil {
			// A full disk must not keep a pod alive. Without the mark a restarted daemon takes the sandbox for ready until
			// it sees that its namespaces are gone.
			klog.ErrorS(err, "Stop mark could not be written", "sandbox", s.id)
		}
	}
	if err := s.teardown(); err != nil {
		return err
	}
	return s.transition(SandboxStopped, nil)
}

// teardown undoes all that lives: processes, network, namespaces. It is idempotent, safe on a half-made sandbox, tries
// every step and joins the errors.
func (s *Sandbox) teardown() error {
	ctx, cancel := background(teardownTimeout)
	defer cancel()
	errs := []error{s.killContainers(ctx)}
	if s.Status().InitPID != 0 {
		parent := s.Status().CgroupParent
		errs = append(errs, s.m.keeper.delete(ctx, keeper.DeleteRequest{
			ID: s.id, CgroupsPath: s.m.cgroupsPath(parent, s.id), SystemdCgroup: s.m.config.CgroupDriver == DriverSystemd,
		}))
	}
	// The network goes last among what lives, since dying processes may still use it, but also when killing failed: a
	// process in D state must not keep an address for ever.
	errs = append(errs, s.detach(ctx))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	namespace.Withdraw(s.id)
	return namespace.Remove(s.m.pinDir(s.id))
}

func (s *Sandbox) killContainers(ctx context.Context) error {
	members := s.members()
	errs := make([]error, len(members))
	var wg sync.WaitGroup
	for i, c := range members {
		wg.Go(func() { errs[i] = c.stop(ctx, 0) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (s *Sandbox) detach(ctx context.Context) error {
	st := s.Status()
	if hostNetwork(st.Config) {
		return nil
	}
	netns := st.NetNS
	if netns == "" || !pins.Alive(netns) {
		netns = "" // after a reboot; the plugins still have to give the address back
	}
	if err := s.m.config.Network.Detach(ctx, s.id, netns, st.Config); err != nil {
		return fmt.Errorf("detach network: %w", err)
	}
	return nil
}

// remove is the one remover of sandboxes: for a make that failed, for the API and for recovery. It is idempotent and
// safe on half-made sandboxes; it tries every step and deletes the record last, so that what failed can be retried.
func (s *Sandbox) remove() error {
	ctx, cancel := background(teardownTimeout)
	defer cancel()
	errs := []error{s.teardown()}
	for _, c := range s.members() {
		errs = append(errs, c.removing.do(ctx, c.remove))
	}
	if s.ownCgroup {
		errs = append(errs, s.m.keeper.delete(ctx, keeper.DeleteRequest{ID: s.id, CgroupsPath: s.Status().CgroupParent}))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := removeDir(s.m.sandboxDir(s.id), sandboxRecord); err != nil {
		return err
	}
	s.m.forget(s)
	s.m.mu.Lock()
	delete(s.m.sandboxes, s.id)
	s.m.mu.Unlock()
	s.m.releaseLevel(s.Status().SELinuxLevel)
	if s.Status().State == SandboxRemoving { // else it could not be made, and nobody has heard of it
		s.publish(EventDeleted, s.id)
	}
	return nil
}

// removeDir removes a directory, the record in it last, so that an interrupted removal is still listed.
func removeDir(dir, record string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove record directory: %w", err)
	}
	for _, e := range entries {
		if e.Name() == record {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove record directory: %w", err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove record directory: %w", err)
	}
	return nil
}
