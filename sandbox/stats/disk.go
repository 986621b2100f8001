package stats

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lookPeriod is the time between two looks at the filesystem while lists are asked for. A list is content with one that
	// began lookFresh before: it may be late, where the machine has much to do.
	lookPeriod = time.Second
	lookFresh  = 2 * lookPeriod
	// lookPatience bounds the wait for a look, and for the measurement of all layers that may follow from it.
	lookPatience = 5 * time.Second
	// noticed is the part of the free space whose coming or going makes a measurement worth its while, scarceBelow that of
	// the filesystem below which it matters at all: the kubelet evicts when 15 % are left, unless told otherwise.
	noticed     = 128
	scarceBelow = 4
)

// sprint is more than is written within lookFresh.
var sprint = space{bytes: 16 << 30, inodes: 1 << 20}

// disk is what is known of the filesystem that all layers are on.
type disk struct {
	// scarceBelow is the constant, outside tests.
	scarceBelow atomic.Uint64
	// measured is what was free when the last measurement of all layers began.
	measured atomic.Pointer[space]
	// listed is when somebody last asked for a list, in nanoseconds since 1970.
	listed atomic.Int64
	// begun has the look that is to be made.
	begun chan *look

	mu sync.Mutex
	// now is the look that is under way, if there is one.
	now *look
	// looked is when the last one began that is over, and roomy whether there was so much space that it cannot have become
	// scarce within lookFresh.
	looked time.Time
	roomy  bool
	// restUntil is until when there is to be none.
	restUntil time.Time
}

// look is one look at the filesystem, with what follows from it.
type look struct {
	began time.Time
	done  chan struct{}
}

// CatchUp sees to it that the samples have the layers as they are now, if their filesystem is nearly full. It comes
// before a list of containers: a kubelet that finds the disk full evicts the pod that takes most of it, and by the figures
// of a minute before it would be another.
//
// The sampler looks at the filesystem by itself, once per lookPeriod while lists are asked for. If much was written to
// it, or deleted, since the layers were last measured, it measures them all. Where there was room enough a moment ago
// CatchUp is a read of memory; otherwise it waits for a look, but no longer than ctx and some seconds.
//
// One look is under way at a time, and who comes meanwhile is content with that one; who comes long after it began waits no
// more: a disk that hangs, or is slow, holds up some lists and not all.
func (s *Sampler) CatchUp(ctx context.Context) {
	s.disk.listed.Store(time.Now().UnixNano())
	if s.disk.hasRoom() {
		return
	}
	l := s.disk.look()
	if l == nil {
		return
	}
	patience := time.NewTimer(time.Until(l.began.Add(lookPatience)))
	defer patience.Stop()
	select {
	case <-l.done:
	case <-patience.C:
	case <-ctx.Done():
	case <-s.ctx.Done():
	}
}

// hasRoom reports whether there is no need to look: what is known is fresh, and there is space enough.
func (d *disk) hasRoom() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.roomy && time.Since(d.looked) <= lookFresh
}

// look joins what is under way, or begins anew. It returns nil while the disk is left alone.
func (d *disk) look() *look {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.now == nil && time.Now().After(d.restUntil) {
		d.now = &look{began: time.Now(), done: make(chan struct{})}
		d.begun <- d.now // there is room for the only one
	}
	return d.now
}

// over ends a look. After one that nobody had the patience for, the disk rests for as long as that took.
func (d *disk) over(l *look, roomy bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now, d.looked, d.roomy = nil, l.began, roomy
	if took := time.Since(l.began); took > lookPatience {
		d.restUntil = time.Now().Add(took)
	}
	close(l.done)
}

// looks looks at the filesystem when somebody waits for it, and once per period while lists are asked for.
func (s *Sampler) looks(ctx context.Context) {
	for {
		var next <-chan time.Time
		if s.listsComeIn(time.Now()) {
			next = time.After(lookPeriod)
		}
		select {
		case l := <-s.disk.begun:
			s.disk.over(l, s.measureIfMoved())
		case <-next:
			s.disk.look()
		case <-ctx.Done():
			return
		}
	}
}

// listsComeIn reports whether lists are asked for these days. If not, nobody looks at the filesystem for them.
func (s *Sampler) listsComeIn(now time.Time) bool {
	return now.Sub(time.Unix(0, s.disk.listed.Load())) < restAfter*s.period
}

// measureIfMoved measures to the end, for the next who asks, whatever the patience of those who asked now. It reports
// whether there is so much space that no list has to wait for the next look.
func (s *Sampler) measureIfMoved() (roomy bool) {
	moved, roomy := s.moved()
	if !moved {
		return roomy
	}
	select {
	case s.measuring <- struct{}{}:
	case <-s.ctx.Done():
		return false
	}
	defer func() { <-s.measuring }()
	if moved, roomy = s.moved(); !moved {
		return roomy // another measured meanwhile
	}
	s.measureAll(s.ctx, true)
	if s.ctx.Err() == nil {
		s.sampleAll(true)
	}
	return roomy
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

// moved looks at the filesystem. It reports whether the free space is scarce, and another than when the layers were
// measured, and whether there is too much of it to become scarce soon.
func (s *Sampler) moved() (moved, roomy bool) {
	then := s.disk.measured.Load()
	free, all := s.space()
	scarce, roomy := free.judge(all, s.disk.scarceBelow.Load())
	return scarce && then != nil && free.differs(*then), roomy
}

// judge tells whether the free space of a filesystem is less than a part of all, and whether it is so much more that it
// cannot be less soon. A filesystem need not count its inodes.
func (s space) judge(all space, below uint64) (scarce, roomy bool) {
	limit := all.part(below)
	roomy = s.bytes > limit.bytes+sprint.bytes && (all.inodes == 0 || s.inodes > limit.inodes+sprint.inodes)
	return s.bytes < limit.bytes || s.inodes < limit.inodes, roomy
}

func (s space) part(n uint64) space { return space{bytes: s.bytes / n, inodes: s.inodes / n} }

func (s space) differs(then space) bool {
	differ := func(now, then uint64) bool { return max(now, then)-min(now, then) > then/noticed }
	return differ(s.bytes, then.bytes) || differ(s.inodes, then.inodes)
}
