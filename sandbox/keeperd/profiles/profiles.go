// Package profiles makes the seccomp profiles of a node cheap. A profile names some 400 system calls, and to send them to
// the init of each container, in JSON, costs more than to start a process. So each profile that is met is compiled once, in
// processes of their own, and from then on a container gets a short form of it: a profile of a few rules that says nothing
// but which profile it stands for. Package filters hands the init the program of the long one for it.
//
// It never loads a filter.
package profiles

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/opencontainers/runc/libcontainer/specconv"

	"github.com/gantry-cri/gantry/sandbox/keeperd/filters"
	"github.com/gantry-cri/gantry/sandbox/keeperd/stage"
)

// RecordVerb is the argument that makes the program one that records how libcontainer makes a filter; see RecorderMain.
const RecordVerb = "record-filter"

// learnTimeout is how long all processes for one profile may take; together they take some 100 ms.
const learnTimeout = 2 * time.Minute

// maxProfiles bounds what is kept. A node has a handful; those past the bound are compiled at each start.
const maxProfiles = filters.MaxFilters / 2

// Book knows the profiles that were met. The methods may be called at the same time.
type Book struct {
	cache *filters.Cache // nil when there is none: each init then compiles for itself
	log   func(format string, args ...any)

	// life ends with Close, learning is what goes on until then.
	life     context.Context
	stop     context.CancelFunc
	learning sync.WaitGroup

	mu    sync.Mutex
	known map[[sha256.Size]byte]*page
}

// page is what is known of one profile. The booleans and tries are guarded by Book.mu, the rest belongs to who learns.
type page struct {
	short *specs.LinuxSeccomp // nil until it is known to have the effect of the long one
	// learning says that it is being compiled, learned that there is nothing more to find out.
	learning, learned bool
	tries             int

	long     filters.Recording // of the profile, once it is in the cache
	recorded bool              // that of the short form is there, too
}

// Open makes an empty book. One process has one.
func Open(log func(format string, args ...any)) *Book {
	b := &Book{log: log, known: map[[sha256.Size]byte]*page{}}
	b.life, b.stop = context.WithCancel(context.Background())
	var err error
	if b.cache, err = filters.Open(); err != nil {
		log("%v: every start compiles its filter", err)
	}
	return b
}

// Close ends the processes that compile. The book learns nothing more.
func (b *Book) Close() {
	b.mu.Lock()
	b.stop()
	b.mu.Unlock()
	b.learning.Wait()
}

// Meet returns what is to be given to libcontainer for a profile of a container that starts: the short form, or the
// profile itself as long as there is none. It does not wait for one. Neither may be changed.
func (b *Book) Meet(profile *specs.LinuxSeccomp) *specs.LinuxSeccomp {
	if profile == nil || b.cache == nil {
		return profile
	}
	text, err := json.Marshal(profile)
	if err != nil {
		return profile
	}
	sum := sha256.Sum256(text)
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.known[sum]
	if p == nil && len(b.known) < maxProfiles {
		p = &page{}
		b.known[sum] = p
	}
	if p == nil {
		return profile
	}
	if p.short != nil {
		return p.short
	}
	if !p.learning && !p.learned && p.tries < learnTries && b.life.Err() == nil {
		p.learning = true
		p.tries++
		b.learning.Go(func() { b.learn(p, profile, sum) })
	}
	return profile
}

// learnTries is how often a profile is compiled that could not be: a node without memory or processes to spare may have
// some later.
const learnTries = 3

func (b *Book) learn(p *page, profile *specs.LinuxSeccomp, sum [sha256.Size]byte) {
	ctx, cancel := context.WithTimeout(b.life, learnTimeout)
	defer cancel()
	short, err := b.compile(ctx, p, profile, sum)
	if err != nil && b.life.Err() == nil {
		b.log("compile seccomp filter beforehand: %v", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	p.learning = false
	p.learned = err == nil || errors.Is(err, errOtherEffect)
	if err == nil {
		p.short = short
	}
	if p.learned {
		p.long = nil
	}
}

// compile fills the cache and returns the short form, nil when there is none.
func (b *Book) compile(
	ctx context.Context, p *page, profile *specs.LinuxSeccomp, sum [sha256.Size]byte,
) (*specs.LinuxSeccomp, error) {
	if p.long == nil {
		long, err := record(ctx, profile)
		if err != nil {
			return nil, err
		}
		if err := b.cache.Add(long); err != nil {
			return nil, err
		}
		p.long = long
	}
	short := shorten(profile, sum)
	if short == nil {
		return nil, nil
	}
	if !p.recorded {
		recorded, err := record(ctx, short)
		if err != nil {
			return nil, err
		}
		if err := b.cache.Add(recorded.For(p.long)); err != nil {
			return nil, err
		}
		p.recorded = true
	}
	return short, verify(ctx, profile, short)
}

// verifyTries is how often both are compiled. libcontainer puts the architectures of a filter in any order, of which there
// are a few, some of them rare.
const verifyTries = 16

// verify makes sure that an init that is given the short form loads the program of the long one: it has both loaded, the
// short one by a process that finds the cache as an init does, until what the kernel would get was once the same.
func verify(ctx context.Context, profile, short *specs.LinuxSeccomp) error {
	var wants, gots []*stage.Program
	for range verifyTries {
		want, err := stage.Compile(ctx, profile)
		if err != nil {
			return err
		}
		got, err := stage.Compile(ctx, short, "init")
		if err != nil {
			return err
		}
		wants, gots = append(wants, want), append(gots, got)
		if slices.ContainsFunc(wants, got.Equal) || slices.ContainsFunc(gots, want.Equal) {
			return nil
		}
	}
	return errOtherEffect
}

var errOtherEffect = errors.New("the short form of a profile has another effect: it is not used")

// record returns how libcontainer makes the filter of a profile. A process of its own does that: libcontainer makes a
// program and loads it in one step.
func record(ctx context.Context, profile *specs.LinuxSeccomp) (filters.Recording, error) {
	text, err := json.Marshal(profile)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", RecordVerb)
	cmd.Env = []string{}
	cmd.Stdin = bytes.NewReader(text)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("record filter: %w: %s", err, bytes.TrimSpace(said.Bytes()))
	}
	return out.Bytes(), nil
}

// RecorderMain is the process of RecordVerb: it reads a profile, writes a recording, and does not return. It ends when
// libcontainer has the program made, before it is loaded.
func RecorderMain() {
	var profile specs.LinuxSeccomp
	err := json.NewDecoder(os.Stdin).Decode(&profile)
	if err == nil {
		config, serr := specconv.SetupSeccomp(&profile)
		if err = serr; err == nil {
			filters.Record(os.Stdout)
			_, err = seccomp.InitSeccomp(config)
		}
	}
	fmt.Fprintf(os.Stderr, "no program was made: %v\n", err)
	os.Exit(1)
}
