package keeperd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"

	"github.com/gantry-cri/gantry/sandbox/keeperd/filters"
)

// compileArg makes the binary a process that compiles the filter on its standard input for the cache.
const compileArg = "compile-filter"

// compileTimeout is how long that may take; it takes some 20 ms.
const compileTimeout = 30 * time.Second

// learner has every profile that is met compiled once, in a process of its own: libcontainer makes a program and loads
// it in one step, and a filter must never be loaded into the keeper.
type learner struct {
	cache *filters.Cache // nil when there is none: each init then compiles
	log   *logger

	mu   sync.Mutex
	seen map[[sha256.Size]byte]struct{}
}

// maxSeen bounds seen: a node with more profiles than that does not get them all compiled beforehand.
const maxSeen = 64

func newLearner(log *logger) *learner {
	l := &learner{log: log, seen: map[[sha256.Size]byte]struct{}{}}
	var err error
	if l.cache, err = filters.Open(); err != nil {
		log.printf("%v: every start compiles its filter", err)
	}
	return l
}

// meet is told of the profile of a container that starts. It does not wait: this start compiles for itself if need be.
func (l *learner) meet(profile *configs.Seccomp) {
	if profile == nil || l.cache == nil {
		return
	}
	text, err := json.Marshal(profile)
	if err != nil || !l.isNew(sha256.Sum256(text)) {
		return
	}
	go func() {
		if err := l.learn(text); err != nil {
			l.log.printf("compile seccomp filter beforehand: %v", err)
		}
	}()
}

func (l *learner) isNew(sum [sha256.Size]byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, seen := l.seen[sum]; seen || len(l.seen) >= maxSeen {
		return false
	}
	l.seen[sum] = struct{}{}
	return true
}

func (l *learner) learn(profile []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), compileTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", compileArg)
	cmd.Env = []string{}
	cmd.Stdin = bytes.NewReader(profile)
	var out, text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &text
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(text.Bytes()))
	}
	return l.cache.Add(out.Bytes())
}

// compileFilter is the process of compileArg. It ends when libcontainer has the program made, before it is loaded.
func compileFilter() {
	var profile configs.Seccomp
	err := json.NewDecoder(os.Stdin).Decode(&profile)
	if err == nil {
		filters.Record(os.Stdout)
		_, err = seccomp.InitSeccomp(&profile)
	}
	fmt.Fprintf(os.Stderr, "no program was made: %v\n", err)
	os.Exit(1)
}
