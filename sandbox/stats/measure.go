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
	// catchUpTimeout bounds the wait for a measurement of all layers.
	catchUpTimeout = 5 * time.Second
	// noticed is the part of the free space whose coming or going makes a measurement worth its while, scarceBelow that of
	// the filesystem below which it matters at all: the kubelet evicts when 15 % are left, unless told otherwise.
	noticed     = 128
	scarceBelow = 4
)

// measureRounds measures everything at once and then once per period.
func (s *Sampler) measureRounds(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case s.measuring <- struct{}{}:
		case <-ctx.Done():
			return
		}
		s.measureAll(ctx)
		<-s.measuring
		sleep(ctx, max(s.period, measurePeriod))
	}
}

// CatchUp measures the layers if their filesystem is nearly full and much was written to it, or deleted, since they were
// last measured, and waits until what they take is in the samples, but no longer than ctx and some seconds. Otherwise
// it costs a look at the filesystem. It comes before a list of containers: a kubelet that finds the disk full evicts the
// pod that takes most of it, and by the figures of a minute before it would be another.
//
// One look or measurement is under way at a time, and who comes meanwhile is content with that one; who comes long after it
// began waits no more: a disk that hangs, or is slow, holds up some lists and not all.
func (s *Sampler) CatchUp(ctx context.Context) {
	c := s.catchUp()
	if c == nil {
		return
	}
	patience := time.NewTimer(time.Until(c.began.Add(catchUpTimeout)))
	defer patience.Stop()
	select {
	case <-c.done:
	case <-patience.C:
	case <-ctx.Done():
	}
}

// catchUp joins what is under way, or begins anew. It returns nil while the disk is left alone.
func (s *Sampler) catchUp() *catching {
	s.catching.Lock()
	defer s.catching.Unlock()
	if s.catching.now == nil && time.Now().After(s.catching.restUntil) {
		c := &catching{began: time.Now(), done: make(chan struct{})}
		s.catching.now = c
		go func() {
			s.measureIfMoved()
			s.caughtUp(c)
		}()
	}
	return s.catching.now
}

// caughtUp ends what was under way. After one that nobody had the patience for, the disk rests for as long as that took.
func (s *Sampler) caughtUp(c *catching) {
	s.catching.Lock()
	defer s.catching.Unlock()
	s.catching.now = nil
	if took := time.Since(c.began); took > catchUpTimeout {
		s.catching.restUntil = time.Now().Add(took)
	}
	close(c.done)
}

// measureIfMoved measures to the end, for the next who asks, whatever the patience of those who asked now.
func (s *Sampler) measureIfMoved() {
	if !s.moved() {
		return
	}
	select {
	case s.measuring <- struct{}{}:
	case <-s.ctx.Done():
		return
	}
	defer func() { <-s.measuring }()
	if !s.moved() {
		return // another measured meanwhile
	}
	s.measureAll(s.ctx)
	if s.ctx.Err() == nil {
		s.sampleAll()
	}
}

// space is what is free of a filesystem.
type space struct{ bytes, inodes uint64 }

// space looks at the filesystem that all layers are on, and gives its size, too.
func (s *Sampler) space() (free, all space) {
	var fs unix.Statfs_t
	if err := unix.Statfs(s.images.FsInfo().GetFsId().GetMountpoint(), &fs); err != nil {
		return space{}, space{}
	}
	block := uint64(fs.Bsize)
	return space{bytes: fs.Bavail * block, inodes: fs.Ffree}, space{bytes: fs.Blocks * block, inodes: fs.Files}
}

// moved reports whether the free space is scarce, and another than when the layers were measured.
func (s *Sampler) moved() bool {
	then := s.measured.Load()
	free, all := s.space()
	scarce := free.bytes < all.bytes/s.scarceBelow || free.inodes < all.inodes/s.scarceBelow
	return scarce && then != nil && free.differs(*then)
}

func (s space) differs(then space) bool {
	differ := func(now, then uint64) bool { return max(now, then)-min(now, then) > then/noticed }
	return differ(s.bytes, then.bytes) || differ(s.inodes, then.inodes)
}

// measureAll measures every running container, one after the other: a walk through a large layer must not take more
// than one processor. The caller holds the token of s.measuring.
func (s *Sampler) measureAll(ctx context.Context) {
	now, _ := s.space() // before, so that what is written meanwhile is noticed
	s.measured.Store(&now)
	s.findLayers()
	for _, st := range s.source.Containers() {
		if ctx.Err() != nil {
			return
		}
		if st.State == sandbox.ContainerRunning {
			s.measure(ctx, st, measureTimeout)
		}
	}
}

// findLayers looks at the filesystem that all layers are on: once for all, since the kernel's list of mounts can be
// long.
func (s *Sampler) findLayers() Layer {
	layer := filesystem(s.images.FsInfo().GetFsId().GetMountpoint())
	s.layers.Store(&layer)
	return layer
}

// measure measures a container's layer and open files. They are in its next sample.
func (s *Sampler) measure(ctx context.Context, st *sandbox.ContainerStatus, timeout time.Duration) {
	e := s.entry(st.ID)
	r := s.readers.Get().(*reader)
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
	var layer Layer
	if known := s.layers.Load(); known != nil {
		layer = *known
	} else {
		layer = s.findLayers()
	}
	layer.Time, layer.Bytes, layer.InodesUsed = time.Now(), bytes, inodes
	e.layer.Store(&layer)
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
