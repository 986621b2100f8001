package stats

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/sandbox"
)

const (
	// measurePeriod is the time between two measurements of what is expensive: layers and open files.
	measurePeriod = time.Minute
	// measureTimeout bounds the walk through one writable layer.
	measureTimeout = time.Minute
	// freshTimeout bounds that of a container that was just started, whose layer is all but empty.
	freshTimeout = time.Second
	// measureAnyway is how often a container is measured at least, though nothing in it has run.
	measureAnyway = 10 * measurePeriod
)

// measureRounds measures everything at once and then once per period.
func (s *Sampler) measureRounds(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case s.measuring <- struct{}{}:
		case <-ctx.Done():
			return
		}
		s.measureAll(ctx, false)
		<-s.measuring
		sleep(ctx, max(s.period, measurePeriod))
	}
}

// measureAll measures every running container, one after the other: a walk through a large layer must not take more
// than one processor. What has not run since it was measured has written nothing, and is left out unless all are to be
// measured. The caller holds the token of s.measuring.
func (s *Sampler) measureAll(ctx context.Context, all bool) {
	now, _ := s.space() // before, so that what is written meanwhile is noticed
	s.disk.measured.Store(&now)
	s.findLayers()
	for _, st := range s.source.Containers() {
		if ctx.Err() != nil {
			return
		}
		if st.State == sandbox.ContainerRunning && (all || !s.renewLayer(s.entry(st.ID), st)) {
			s.measure(ctx, st, measureTimeout)
		}
	}
}

// renewLayer makes the last measurement of a container one of now, if nothing in it has run since.
func (s *Sampler) renewLayer(e *entry, st *sandbox.ContainerStatus) bool {
	then, layer := e.ran.Load(), e.layer.Load()
	if then == nil || layer == nil || time.Since(then.at) > measureAnyway {
		return false
	}
	r := s.readers.Get().(*reader)
	defer s.readers.Put(r)
	if now := s.cgroups.ran(r, st.CgroupPath); now == nil || now.cpu != then.cpu {
		return false
	}
	e.layer.Store(s.layers.Load().measured(layer.Bytes, layer.InodesUsed))
	return true
}

// findLayers looks at the filesystem that all layers are on: once for all, since the kernel's list of mounts can be
// long.
func (s *Sampler) findLayers() *Layer {
	layer := filesystem(s.images.FsInfo().GetFsId().GetMountpoint())
	s.layers.Store(&layer)
	return &layer
}

// measure measures a container's layer and open files. They are in its next sample.
func (s *Sampler) measure(ctx context.Context, st *sandbox.ContainerStatus, timeout time.Duration) {
	e := s.entry(st.ID)
	r := s.readers.Get().(*reader)
	before := s.cgroups.ran(r, st.CgroupPath) // what runs meanwhile is measured again
	if files := s.cgroups.files(r, st.CgroupPath); files != nil {
		e.files.Store(files)
	}
	s.readers.Put(r)

	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	bytes, inodes, err := s.images.Usage(ctx, st.ID)
	if err != nil {
		if !errdefs.IsNotFound(err) && !errors.Is(err, context.Canceled) {
			klog.ErrorS(err, "Writable layer could not be measured", "container", st.ID)
		}
		return
	}
	layer := s.layers.Load()
	if layer == nil {
		layer = s.findLayers()
	}
	e.layer.Store(layer.measured(bytes, inodes))
	e.ran.Store(before)
}

// measured is the layer of a container on this filesystem, with what was measured of it just now.
func (l *Layer) measured(bytes, inodes uint64) *Layer {
	layer := *l
	layer.Time, layer.Bytes, layer.InodesUsed = time.Now(), bytes, inodes
	return &layer
}

// hear samples and measures what was just started, so that the next list has it complete.
func (s *Sampler) hear(ctx context.Context) {
	for ctx.Err() == nil {
		events, cancel := s.source.Subscribe()
		s.hearEvents(ctx, events)
		cancel()
	}
}

// hearEvents returns when ctx ends, or when the events came faster than they were heard: the next period finds what was
// missed.
func (s *Sampler) hearEvents(ctx context.Context, events <-chan sandbox.Event) {
	for {
		select {
		case <-ctx.Done():
			return
		case event, ok := <-events:
			if !ok {
				return
			}
			if event.Type != sandbox.EventStarted {
				continue
			}
			for _, st := range event.Containers {
				if st.ID == event.ContainerID && st.State == sandbox.ContainerRunning {
					s.measure(ctx, st, freshTimeout)
					s.Container(ctx, st, 0)
				}
			}
		}
	}
}

// filesystem gives a Layer with what is known of the filesystem that dir is on.
func filesystem(dir string) Layer {
	layer := Layer{Mountpoint: dir}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return layer
	}
	layer.Limit = fs.Blocks * uint64(fs.Bsize)
	layer.InodesTotal, layer.InodesFree = fs.Files, fs.Ffree
	layer.Device = mountSource(dir)
	return layer
}

// mountSource gives the device that is mounted where dir is, as the kernel's list of mounts has it.
func mountSource(dir string) string {
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(dir))
	if err != nil {
		return ""
	}
	source, longest := "", -1
	for _, m := range mounts {
		// Of several mounts at one place the last is the visible one.
		if len(m.Mountpoint) >= longest && strings.HasPrefix(dir, m.Mountpoint) {
			source, longest = m.Source, len(m.Mountpoint)
		}
	}
	return source
}
