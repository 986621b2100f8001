package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// logLine is what the container writes, with the line's end.
const logLine = "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789\n"

// logScenario lets a container write so many bytes to its standard output as fast as they are taken.
func logScenario(ctx context.Context, t *target, size int) (figures []Figure, err error) {
	lines := size / len(logLine)
	script := fmt.Sprintf("yes %s | head -n %d", logLine[:len(logLine)-1], lines)
	var p pod
	defer func() {
		err = errors.Join(err, t.end(ctx, []pod{p}, 1, &latencies{}))
		if p.logPath != "" {
			err = errors.Join(err, os.RemoveAll(filepath.Dir(p.logPath)))
		}
	}()
	var own []Figure
	used, err := t.account.measure(func() (err error) {
		p, err = t.startPod(ctx, podOptions{host: true, log: true, command: []string{"sh", "-c", script}}, &steps{})
		if err != nil {
			return err
		}
		if own, err = t.logCost(ctx, p.logPath, int64(size)); err != nil {
			return err
		}
		return t.waitExit(ctx, p)
	})
	if err != nil {
		return nil, err
	}
	written, err := logSize(ctx, p.logPath, int64(lines*len(logLine)))
	if err != nil {
		return nil, err
	}
	mb := float64(written) / 1e6
	return append([]Figure{
		{"log: written", mb / used.wall.Seconds(), "MB/s"},
		{"log: CPU of the runtime and the container", milliseconds(used.cpu) / mb, "CPU-ms/MB"},
	}, own...), nil
}

// logCost is what the runtime's processes take for a megabyte of the log, between an eighth and seven eighths of it: the
// writer's own time, which is most of that of its cgroup, is not in it. There is no figure of a log that was whole at the
// first look.
func (t *target) logCost(ctx context.Context, path string, size int64) ([]Figure, error) {
	begin, err := logSize(ctx, path, size/8)
	if err != nil {
		return nil, err
	}
	cpu, err := cpuOfProcesses(t.names)
	if err != nil {
		return nil, err
	}
	end, err := logSize(ctx, path, size*7/8)
	if err != nil || end == begin {
		return nil, err
	}
	after, err := cpuOfProcesses(t.names)
	if err != nil {
		return nil, err
	}
	mb := float64(end-begin) / 1e6
	return []Figure{{"log: CPU of the runtime's processes", milliseconds(after-cpu) / mb, "CPU-ms/MB"}}, nil
}

func (t *target) waitExit(ctx context.Context, p pod) error {
	for {
		r, err := t.runtime.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: p.container})
		if err != nil {
			return err
		}
		if r.GetStatus().GetState() == runtime.ContainerState_CONTAINER_EXITED {
			return nil
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

// logSize is the size of a log that has to have at least so many bytes: a runtime may still be writing when it says that
// the container has ended.
func logSize(ctx context.Context, path string, least int64) (int64, error) {
	for range 2000 {
		info, err := os.Stat(path)
		if err != nil {
			return 0, err
		}
		if info.Size() >= least {
			return info.Size(), nil
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("log %s is shorter than the %d bytes that the container wrote", path, least)
}
