package stats

import (
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/sandbox"
)

// DefaultPeriod is the time between two samples. The kubelet asks every 10 s.
const DefaultPeriod = 10 * time.Second

// AnyAge accepts a sample of any age, and asks for a newer one in the background: some clients compute rates of two
// lists, a second apart, and give up when nothing has changed.
const AnyAge = time.Duration(math.MaxInt64)

const (
	// askedPause is the least time between two rounds however often is asked, askedDelay that between the asking and the
	// round: a list asks once for each of its entries.
	askedPause = 500 * time.Millisecond
	askedDelay = 20 * time.Millisecond
	// rateWindow is the least time that a rate is computed over: over a shorter one it is noise.
	rateWindow = time.Second
	// restAfter is for how many periods nobody has to have asked for a list until the sampler rests: it then lets so many
	// periods pass as restPeriods says. Who asks after that gets what there is, and wakes it.
	restAfter   = 3
	restPeriods = 6
	// restWhole says which of the rounds of a resting sampler reads everything, whether or not anything happened.
	restWhole = 10
	// workers is how many samples may be taken at once for those who ask.
	workers = 4
)

// Source is what the sampler needs of the sandboxes. *sandbox.Manager is one. The reads are reads of memory.
type Source interface {
	Sandboxes() []*sandbox.SandboxStatus
	Containers() []*sandbox.ContainerStatus
	Subscribe() (events <-chan sandbox.Event, cancel func())
	// SandboxCgroup is the path of the cgroup that holds all of a sandbox and nothing else, "" where there is none.
	SandboxCgroup(*sandbox.SandboxStatus) string
}

// Images is what the sampler needs of the image store.
type Images interface {
	// Usage measures the writable layer of a container by walking it.
	Usage(ctx context.Context, containerID string) (bytes, inodes uint64, err error)
	// FsInfo tells of the filesystem that the writable layers are on. It is a read of memory.
	FsInfo() *runtime.FilesystemUsage
}

// Config is what a Sampler is made of. Source and Images are required.
type Config struct {
	Source Source
	Images Images
	// Period is the time between two samples; 0 means DefaultPeriod.
	Period time.Duration
	// ContainerForm and SandboxForm, if not nil, make Sample.Form. They are called once for each sample, by several
	// goroutines, with the form of the sample before if that was of the same status, or else the zero value.
	ContainerForm func(*sandbox.ContainerStatus, *Sample, Form) Form
	SandboxForm   func(*sandbox.SandboxStatus, *Sample, Form) Form
	// CgroupRoot is where the cgroup hierarchies are mounted; "" means /sys/fs/cgroup.
	CgroupRoot string
}

// Sampler keeps the last sample of every running container and of every ready sandbox. Its methods may be called from
// several goroutines.
type Sampler struct {
	source  Source
	images  Images
	period  time.Duration
	cgroups *cgroups
	readers sync.Pool

	containerForm func(*sandbox.ContainerStatus, *Sample, Form) Form
	sandboxForm   func(*sandbox.SandboxStatus, *Sample, Form) Form

	// jobs are samples that somebody waits for.
	jobs chan func()
	// measuring holds a token: who has it may measure all layers.
	measuring chan struct{}
	disk      disk
	// layers is of the filesystem of the layers, as of the last round.
	layers atomic.Pointer[Layer]
	// asked holds a token when somebody was given a sample of any age.
	asked chan struct{}

	ctx  context.Context
	stop context.CancelFunc
	done sync.WaitGroup

	mu sync.RWMutex
	// entries are by the ids of containers and sandboxes.
	entries map[string]*entry
}

// entry is what is known of one container or sandbox.
type entry struct {
	born time.Time

	last  atomic.Pointer[Sample]
	layer atomic.Pointer[Layer]
	files atomic.Pointer[Files]
	// ran is of when the layer and the files were measured.
	ran atomic.Pointer[ran]

	// sampling holds a token: who has it may sample and use what is below.
	sampling chan struct{}
	// base is the sample that the next rate is computed from.
	base *Sample
	// of is the status, a pointer to it, that the container or sandbox had when all of it was read last.
	of any
	// formed is the status, a pointer to it, that the form of the last sample was made with.
	formed any
	// most is the largest use of huge pages by their size.
	most map[string]uint64
}

// New makes a Sampler and starts it.
func New(config Config) (*Sampler, error) {
	if config.Source == nil || config.Images == nil {
		return nil, errors.New("make sampler: Source and Images are required")
	}
	if config.CgroupRoot == "" {
		config.CgroupRoot = "/sys/fs/cgroup"
	}
	return start(config, openCgroups(config.CgroupRoot)), nil
}

func start(config Config, c *cgroups) *Sampler {
	if config.Period <= 0 {
		config.Period = DefaultPeriod
	}
	s := &Sampler{
		source: config.Source, images: config.Images, period: config.Period, cgroups: c,
		readers:       sync.Pool{New: func() any { return newReader() }},
		containerForm: config.ContainerForm, sandboxForm: config.SandboxForm,
		jobs:      make(chan func()),
		asked:     make(chan struct{}, 1),
		measuring: make(chan struct{}, 1),
		disk:      disk{begun: make(chan *look, 1)},
		entries:   map[string]*entry{},
	}
	s.disk.scarceBelow.Store(scarceBelow)
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.done.Go(func() { s.sampleRounds(s.ctx) })
	s.done.Go(func() { s.measureRounds(s.ctx) })
	s.done.Go(func() { s.hear(s.ctx) })
	for range workers {
		s.done.Go(func() { s.work(s.ctx) })
	}
	go s.looks(s.ctx) // nobody waits for its end: it looks at a disk that may hang
	return s
}

// Close ends the sampling. The samples stay as they are.
func (s *Sampler) Close() {
	s.stop()
	s.done.Wait()
}

// sampleRounds samples everything at once, a period after the last round, and soon after somebody asked.
func (s *Sampler) sampleRounds(ctx context.Context) {
	unasked := restAfter
	var lastWhole time.Time
	for ctx.Err() == nil {
		whole := s.wholeRound(unasked, lastWhole)
		if whole {
			lastWhole = time.Now()
		}
		s.sampleAll(whole)
		pause := time.NewTimer(askedPause)
		period := time.NewTimer(s.untilNext(unasked))
		select {
		case <-period.C:
			unasked++
		case <-s.asked:
			unasked = 0
			sleep(ctx, askedDelay)
			select {
			case <-pause.C:
			case <-ctx.Done():
			}
		case <-ctx.Done():
		}
		select {
		case <-s.asked: // by more entries of the same list
		default:
		}
		pause.Stop()
		period.Stop()
	}
}

// untilNext is the time until the next round when nobody asks, as nobody has for so many rounds.
func (s *Sampler) untilNext(unasked int) time.Duration {
	if unasked < restAfter {
		return s.period
	}
	return restPeriods * s.period
}

// wholeRound tells whether a round reads everything after so many for which nobody asked. Of what has not run since,
// everything is read at most twice per period, however often is asked: to read it twice a second took more time than the
// lists themselves, and took it from them.
func (s *Sampler) wholeRound(unasked int, last time.Time) bool {
	return (unasked < restAfter || unasked%restWhole == 0) && time.Since(last) >= s.period/2
}

// sleep waits, but no longer than ctx.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// ask asks for a round.
func (s *Sampler) ask() {
	select {
	case s.asked <- struct{}{}:
	default:
	}
}

// Container returns the last sample of a running container. One that is older than maxAge, or not there yet, is taken
// now, which takes a fraction of a millisecond. It returns nil for a container that does not run, or died meanwhile,
// and when ctx ends while others are sampled.
func (s *Sampler) Container(ctx context.Context, st *sandbox.ContainerStatus, maxAge time.Duration) *Sample {
	if st.State != sandbox.ContainerRunning {
		return nil
	}
	e := s.entry(st.ID)
	if sample := s.known(e, maxAge); sample != nil {
		return sample
	}
	return s.await(ctx, e, maxAge, func() *Sample { return s.sampleContainer(e, st, true) })
}

// Sandbox is like Container for a ready sandbox. It returns nil for one that is not ready.
func (s *Sampler) Sandbox(ctx context.Context, st *sandbox.SandboxStatus, maxAge time.Duration) *Sample {
	if st.State != sandbox.SandboxReady {
		return nil
	}
	e := s.entry(st.ID)
	if sample := s.known(e, maxAge); sample != nil {
		return sample
	}
	return s.await(ctx, e, maxAge, func() *Sample {
		var interfaces []Interface
		if st.NetNS != "" {
			interfaces = networks([]string{st.NetNS})[st.NetNS]
		}
		return s.sampleSandbox(e, st, interfaces, true)
	})
}

// known is the last sample, nil if there is none that is fresh enough.
func (s *Sampler) known(e *entry, maxAge time.Duration) *Sample {
	if maxAge == AnyAge {
		s.ask()
	}
	if sample := e.last.Load(); sample.fresh(maxAge) {
		return sample
	}
	return nil
}

// await has a sample taken: who asks only waits for that, and no longer than ctx.
func (s *Sampler) await(ctx context.Context, e *entry, maxAge time.Duration, take func() *Sample) *Sample {
	taken := make(chan *Sample, 1)
	job := func() {
		select {
		case e.sampling <- struct{}{}:
			defer func() { <-e.sampling }()
		case <-ctx.Done():
			return
		}
		if sample := e.last.Load(); sample.fresh(maxAge) {
			taken <- sample // another asked a moment ago
			return
		}
		taken <- take()
	}
	for jobs := s.jobs; ; jobs = nil {
		select {
		case jobs <- job:
		case sample := <-taken:
			return sample
		case <-ctx.Done():
			return nil
		case <-s.ctx.Done():
			return nil
		}
	}
}

// work takes samples for those who ask.
func (s *Sampler) work(ctx context.Context) {
	for {
		select {
		case job := <-s.jobs:
			job()
		case <-ctx.Done():
			return
		}
	}
}

func (s *Sampler) entry(id string) *entry {
	s.mu.RLock()
	e := s.entries[id]
	s.mu.RUnlock()
	if e != nil {
		return e
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e = s.entries[id]; e == nil {
		e = &entry{born: time.Now(), sampling: make(chan struct{}, 1)}
		s.entries[id] = e
	}
	return e
}

// retain forgets what is not in ids and was known before they were listed.
func (s *Sampler) retain(ids map[string]bool, listed time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, e := range s.entries {
		if !ids[id] && e.born.Before(listed) {
			delete(s.entries, id)
		}
	}
}

// sampleAll samples every running container and every ready sandbox. Unless it is to be whole, that costs little for
// those in which nothing has happened.
func (s *Sampler) sampleAll(whole bool) {
	begin := time.Now()
	ids := map[string]bool{}
	for _, st := range s.source.Containers() {
		if st.State != sandbox.ContainerRunning {
			continue
		}
		ids[st.ID] = true
		e := s.entry(st.ID)
		e.sampling <- struct{}{}
		s.sampleContainer(e, st, whole)
		<-e.sampling
	}
	s.sampleSandboxes(ids, whole)
	s.retain(ids, begin)
	klog.V(6).InfoS("Sampled", "containersAndSandboxes", len(ids), "took", time.Since(begin))
}

func (s *Sampler) sampleSandboxes(ids map[string]bool, whole bool) {
	var ready []*sandbox.SandboxStatus
	var paths []string
	for _, st := range s.source.Sandboxes() {
		if st.State != sandbox.SandboxReady {
			continue
		}
		ready = append(ready, st)
		if st.NetNS != "" {
			paths = append(paths, st.NetNS)
		}
	}
	interfaces := map[string][]Interface{}
	if len(paths) > 0 {
		interfaces = networks(paths)
	}
	for _, st := range ready {
		ids[st.ID] = true
		e := s.entry(st.ID)
		e.sampling <- struct{}{}
		s.sampleSandbox(e, st, interfaces[st.NetNS], whole)
		<-e.sampling
	}
}

// sampleContainer samples a container, nil if it is gone. The caller holds the entry's token.
func (s *Sampler) sampleContainer(e *entry, st *sandbox.ContainerStatus, whole bool) *Sample {
	sample := s.read(e, st, st.CgroupPath, whole)
	if sample == nil {
		return nil
	}
	sample.Layer, sample.Files = e.layer.Load(), e.files.Load()
	e.complete(sample)
	if s.containerForm != nil {
		sample.Form = s.containerForm(st, sample, e.formOf(st))
	}
	e.last.Store(sample)
	return sample
}

// sampleSandbox samples a sandbox. One without a cgroup, because it has no container yet, used nothing.
func (s *Sampler) sampleSandbox(e *entry, st *sandbox.SandboxStatus, interfaces []Interface, whole bool) *Sample {
	sample := &Sample{CPU: &CPU{}, Memory: &Memory{}}
	if cgroup := s.source.SandboxCgroup(st); cgroup == "" {
		sample = s.sum(st.Containers)
	} else if read := s.read(e, st, cgroup, whole); read != nil {
		sample = read
	}
	sample.Interfaces = interfaces
	e.complete(sample)
	if s.sandboxForm != nil {
		sample.Form = s.sandboxForm(st, sample, e.formOf(st))
	}
	e.last.Store(sample)
	return sample
}

// read reads the cgroup of what has the status of, a pointer; nil where there is none. The caller holds the entry's token.
func (s *Sampler) read(e *entry, of any, cgroup string, whole bool) *Sample {
	r := s.readers.Get().(*reader)
	defer s.readers.Put(r)
	if !whole && e.of == of {
		if sample := s.renew(r, e.last.Load(), cgroup); sample != nil {
			return sample
		}
	}
	e.of = of
	if sample, ok := s.cgroups.read(r, cgroup); ok {
		return sample
	}
	return nil
}

// formOf is the form of the last sample if it was made with this status, a pointer; so is the next. The caller holds the
// entry's token.
func (e *entry) formOf(status any) Form {
	same := e.formed == status
	e.formed = status
	if last := e.last.Load(); last != nil && same {
		return last.Form
	}
	return Form{}
}

// complete adds what needs the samples before. The caller holds the entry's token.
func (e *entry) complete(sample *Sample) {
	sample.Time = time.Now()
	for i := range sample.HugePages {
		h := &sample.HugePages[i]
		if e.most == nil {
			e.most = map[string]uint64{}
		}
		h.Max = max(h.Max, e.most[h.Size])
		e.most[h.Size] = h.Max
	}
	e.rate(sample)
}

// rate computes NanoCores. Within the window after a sample the rate before goes on.
func (e *entry) rate(sample *Sample) {
	if sample.CPU == nil {
		return
	}
	if e.base == nil {
		e.base = sample
		return
	}
	passed := sample.Time.Sub(e.base.Time)
	if passed < rateWindow {
		if last := e.last.Load(); last != nil && last.CPU != nil {
			sample.CPU.NanoCores = last.CPU.NanoCores
		}
		return
	}
	rate := uint64(float64(less(sample.CPU.Usage, e.base.CPU.Usage)) / passed.Seconds())
	sample.CPU.NanoCores = &rate
	e.base = sample
}

// sum adds up the last samples of containers, for a sandbox that shares its cgroup with others.
func (s *Sampler) sum(ids []string) *Sample {
	total := &Sample{CPU: &CPU{}, Memory: &Memory{}}
	for _, id := range ids {
		sample := s.entry(id).last.Load()
		if sample == nil {
			continue
		}
		total.Processes += sample.Processes
		if c := sample.CPU; c != nil {
			total.CPU.Usage += c.Usage
			total.CPU.User += c.User
			total.CPU.System += c.System
		}
		if m := sample.Memory; m != nil {
			total.Memory.Usage += m.Usage
			total.Memory.WorkingSet += m.WorkingSet
			total.Memory.RSS += m.RSS
			total.Memory.Cache += m.Cache
			total.Memory.PageFaults += m.PageFaults
			total.Memory.MajorPageFaults += m.MajorPageFaults
		}
	}
	return total
}
