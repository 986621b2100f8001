package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// target is a runtime that is measured.
type target struct {
	name, endpoint string
	// image has sleep, true and yes in it; pause is what the runtime would pull for its first pod.
	image, pause string
	// parent is the cgroup that the pods' cgroups are made in, in cgroupfs form.
	parent  string
	account account
	// names are the comm of the runtime's processes whose memory counts: daemon, keeper, shims, pauses.
	names []string
	// restart kills the daemon by SIGKILL and starts it again; nil for a daemon that somebody else started.
	restart func(context.Context) error
	// logs is a directory for pods' logs.
	logs string

	conn    *grpc.ClientConn
	runtime runtime.RuntimeServiceClient
	images  runtime.ImageServiceClient
	made    atomic.Uint32
}

// connect makes the clients and pulls the image.
func (t *target) connect(ctx context.Context) error {
	conn, err := grpc.NewClient(t.endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return err
	}
	t.conn, t.runtime, t.images = conn, runtime.NewRuntimeServiceClient(conn), runtime.NewImageServiceClient(conn)
	for _, image := range []string{t.image, t.pause} {
		if image == "" {
			continue
		}
		_, err := t.images.PullImage(ctx, &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: image}}, grpc.WaitForReady(true))
		if err != nil {
			return fmt.Errorf("%s: pull %s: %w", t.name, image, err)
		}
	}
	return nil
}

// pod is one that runs.
type pod struct{ sandbox, container, cgroup, logPath string }

// steps are the latencies of the three calls that start a pod, and of all three.
type steps struct{ run, create, start, total latencies }

// podOptions say what a pod is like.
type podOptions struct {
	host    bool     // on the host's network
	command []string // of its container; default sleep
	log     bool
}

// startPod starts a pod as the kubelet does. One that could not be started whole is removed.
func (t *target) startPod(ctx context.Context, o podOptions, s *steps) (p pod, err error) {
	sandbox, container := t.configs(o)
	p.cgroup = sandbox.GetLinux().GetCgroupParent()
	err = s.total.time(func() error {
		return errors.Join(s.run.time(func() error {
			r, err := t.runtime.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: sandbox})
			p.sandbox = r.GetPodSandboxId()
			return err
		}), t.startContainer(ctx, &p, &runtime.CreateContainerRequest{Config: container, SandboxConfig: sandbox}, s))
	})
	if container.LogPath != "" {
		p.logPath = sandbox.LogDirectory + "/" + container.LogPath
	}
	if err != nil {
		return p, errors.Join(fmt.Errorf("%s: start pod: %w", t.name, err), t.endPod(ctx, p))
	}
	return p, nil
}

func (t *target) startContainer(ctx context.Context, p *pod, request *runtime.CreateContainerRequest, s *steps) error {
	if p.sandbox == "" {
		return nil // it could not be made
	}
	request.PodSandboxId = p.sandbox
	err := s.create.time(func() error {
		r, err := t.runtime.CreateContainer(ctx, request)
		p.container = r.GetContainerId()
		return err
	})
	if err != nil {
		return err
	}
	return s.start.time(func() error {
		_, err := t.runtime.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: p.container})
		return err
	})
}

// configs are those of a pod with one container, with the seccomp profile and PID namespaces that the kubelet asks for.
func (t *target) configs(o podOptions) (*runtime.PodSandboxConfig, *runtime.ContainerConfig) {
	n := t.made.Add(1)
	name := fmt.Sprintf("bench-%d", n)
	options := &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER}
	seccomp := &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}
	sandbox := &runtime.PodSandboxConfig{
		Metadata: &runtime.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: name},
		Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent:    fmt.Sprintf("%s/%s", t.parent, name),
			SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: options, Seccomp: seccomp},
		},
	}
	if o.host {
		options.Network = runtime.NamespaceMode_NODE
	} else {
		sandbox.Hostname = name
	}
	if o.command == nil {
		o.command = []string{"sleep", "1000000"}
	}
	container := &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: "c"},
		Image:    &runtime.ImageSpec{Image: t.image, UserSpecifiedImage: t.image},
		Command:  o.command,
		Linux: &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{
			NamespaceOptions: options, Seccomp: seccomp,
		}},
	}
	if o.log {
		sandbox.LogDirectory, container.LogPath = t.logs+"/"+name, "c.log"
	}
	return sandbox, container
}

// exec runs true in the container.
func (t *target) exec(ctx context.Context, p pod) error {
	r, err := t.runtime.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: p.container, Cmd: []string{"true"}, Timeout: 120})
	if err == nil && r.GetExitCode() != 0 {
		err = fmt.Errorf("exit code %d: %s", r.GetExitCode(), r.GetStderr())
	}
	if err != nil {
		return fmt.Errorf("%s: exec: %w", t.name, err)
	}
	return nil
}

// endPod stops and removes a pod as the kubelet does: first the container, and without a grace. CRI-O gives a pod that is
// stopped as a whole ten seconds.
func (t *target) endPod(ctx context.Context, p pod) error {
	if p.sandbox == "" {
		return nil
	}
	if p.container != "" {
		if _, err := t.runtime.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: p.container}); err != nil {
			return fmt.Errorf("%s: stop container: %w", t.name, err)
		}
	}
	if _, err := t.runtime.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.sandbox}); err != nil {
		return fmt.Errorf("%s: stop pod: %w", t.name, err)
	}
	if _, err := t.runtime.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.sandbox}); err != nil {
		return fmt.Errorf("%s: remove pod: %w", t.name, err)
	}
	return nil
}

// removeCgroup removes what is the kubelet's to remove: the pod's cgroup.
func removeCgroup(p pod) {
	if p.cgroup == "" {
		return
	}
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + p.cgroup)
	for _, dir := range append(dirs, "/sys/fs/cgroup"+p.cgroup) {
		_ = os.Remove(dir)
	}
}

// pods starts n pods, so many at a time, and returns those that run also when there is an error.
func (t *target) pods(ctx context.Context, n, concurrency int, o podOptions, s *steps) ([]pod, error) {
	pods := make([]pod, n)
	err := parallel(n, concurrency, func(i int) (err error) {
		pods[i], err = t.startPod(ctx, o, s)
		if err != nil {
			pods[i] = pod{}
		}
		return err
	})
	return pods, err
}

// end ends pods, trying all of them.
func (t *target) end(ctx context.Context, pods []pod, concurrency int, l *latencies) error {
	errs := make([]error, len(pods))
	_ = parallel(len(pods), concurrency, func(i int) error {
		errs[i] = l.time(func() error { return t.endPod(ctx, pods[i]) })
		removeCgroup(pods[i])
		return nil
	})
	return errors.Join(errs...)
}

// parallel calls action for 0 to n-1, so many at a time; after an error none that has not begun. It joins the errors.
func parallel(n, concurrency int, action func(i int) error) error {
	var next atomic.Int64
	var failed atomic.Bool
	errs := make([]error, n)
	var workers sync.WaitGroup
	for range min(n, max(concurrency, 1)) {
		workers.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n || failed.Load() {
					return
				}
				if errs[i] = action(i); errs[i] != nil {
					failed.Store(true)
				}
			}
		})
	}
	workers.Wait()
	return errors.Join(errs...)
}
