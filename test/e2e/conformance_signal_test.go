//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/images"
)

// signalImages pushes images that differ in their stop signal, and returns their references.
func signalImages(t *testing.T, signals ...string) []string {
	t.Helper()
	var list []images.Image
	var refs []string
	for i, s := range signals {
		refs = append(refs, fmt.Sprintf("registry.test/gantry/signal:%d", i))
		list = append(list, images.Image{Refs: refs[i:], Config: v1.Config{Cmd: []string{"sh"}, StopSignal: s}})
	}
	if err := images.Push(timeout(t), images.Registry{Address: registry.Address}, list); err != nil {
		t.Fatal(err)
	}
	return refs
}

// exitsBySignal exits with 10 plus the number of the signal, whichever of these it gets first.
func exitsBySignal(signals ...int) string {
	var script strings.Builder
	for _, s := range signals {
		fmt.Fprintf(&script, "trap 'exit %d' %d; ", 10+s, s)
	}
	return script.String() + "echo ready; while :; do sleep 0.05; done"
}

// The configuration's signal, else the image's, else SIGTERM; the status tells which.
func TestStopSignals(t *testing.T) {
	t.Parallel()
	refs := signalImages(t, "SIGRTMIN+3", "quit", "12", "SIGNOTHING")
	p := runPod(t)
	script := exitsBySignal(1, 2, 3, 10, 12, 15, 34, 37, 63, 64)
	for i, test := range []struct {
		name   string
		image  string
		config runtime.Signal
		number int32
		told   runtime.Signal
	}{
		{"default", images.Busybox, 0, 15, runtime.Signal_SIGNAL_SIGTERM},
		{"configuration", images.Busybox, runtime.Signal_SIGNAL_SIGHUP, 1, runtime.Signal_SIGNAL_SIGHUP},
		{"configuration over image", images.Users, runtime.Signal_SIGNAL_SIGINT, 2, runtime.Signal_SIGNAL_SIGINT},
		{"image", images.Users, 0, 10, runtime.Signal_SIGNAL_SIGUSR1},
		{"image with a real-time signal", refs[0], 0, 37, runtime.Signal_SIGNAL_SIGRTMINPLUS3},
		{"image with a lower-case name", refs[1], 0, 3, runtime.Signal_SIGNAL_SIGQUIT},
		{"image with a number", refs[2], 0, 12, runtime.Signal_SIGNAL_SIGUSR2},
		{"first real-time signal", images.Busybox, runtime.Signal_SIGNAL_SIGRTMIN, 34, runtime.Signal_SIGNAL_SIGRTMIN},
		{"last but one", images.Busybox, runtime.Signal_SIGNAL_SIGRTMAXMINUS1, 63, runtime.Signal_SIGNAL_SIGRTMAXMINUS1},
		{"last real-time signal", images.Busybox, runtime.Signal_SIGNAL_SIGRTMAX, 64, runtime.Signal_SIGNAL_SIGRTMAX},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := p.start(t, fmt.Sprintf("c%d", i), script, func(c *runtime.ContainerConfig) {
				c.Image.Image, c.StopSignal = test.image, test.config
			})
			c.waitLog(t, "ready")
			wantEqual(t, "signal in status", c.status(t).StopSignal, test.told)
			if err := c.stop(t, 60); err != nil {
				t.Fatal(err)
			}
			wantEqual(t, "exit code", c.status(t).ExitCode, 10+test.number)
			wantEqual(t, "signal in status after the stop", c.status(t).StopSignal, test.told)
		})
	}
	config := containerConfig("nothing", "true")
	config.Image.Image = refs[3]
	_, err := p.tryCreate(t, config)
	wantCode(t, err, codes.InvalidArgument, "SIGNOTHING")
}

// Of several stops the shortest counts, whatever their order; one that is cancelled does not undo the others.
func TestStopsOfDifferentLength(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	for _, test := range []struct {
		name  string
		stops []int64 // seconds, each 100 ms after the one before
		least time.Duration
	}{
		{"shorter after longer", []int64{600, 1}, time.Second},
		{"longer after shorter", []int64{1, 600}, 900 * time.Millisecond},
		{"ever shorter", []int64{600, 500, 400, 1}, time.Second},
		{"at once after long", []int64{600, 0}, 0},
		{"negative is at once", []int64{-1}, 0},
		{"huge", []int64{1 << 62, 0}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := p.start(t, strings.ReplaceAll(test.name, " ", "-"), stubborn)
			c.waitLog(t, "ready")
			errs := make(chan error, len(test.stops))
			start := time.Now()
			for _, seconds := range test.stops {
				go func() { errs <- c.stop(t, seconds) }()
				time.Sleep(100 * time.Millisecond)
			}
			for range test.stops {
				if err := <-errs; err != nil {
					t.Error(err)
				}
			}
			if took := time.Since(start); took < test.least || took > callTimeout {
				t.Errorf("the stops took %v, expected %v and a little", took, test.least)
			}
			wantEqual(t, "exit code", c.status(t).ExitCode, 137)
		})
	}
}

// A stop that was given up goes on: its grace is not begun anew by the next.
func TestAStopThatWasGivenUpGoesOn(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	c := p.start(t, "c", stubborn)
	c.waitLog(t, "ready")
	start := time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	given := make(chan error, 1)
	go func() {
		_, err := c.node.Runtime.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: c.id, Timeout: 5})
		given <- err
	}()
	c.waitLog(t, "asked")
	cancel()
	if code := status.Code(<-given); code != codes.Canceled && code != codes.OK { // OK on a machine that is too slow
		t.Errorf("the stop that was given up has code %v", code)
	}
	s := c.waitExit(t)
	if took := time.Since(start); took < 4900*time.Millisecond {
		t.Errorf("the container ended after %v, expected 5 s", took)
	}
	wantEqual(t, "exit code", s.ExitCode, 137)
	wantEqual(t, "number of stop signals", strings.Count(c.logText(t), "asked"), 1)
}

// There is nothing to stop of a container that was not started, and it can be started after that.
func TestStopOfACreatedContainer(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	for _, seconds := range []int64{10, 0} {
		c := p.create(t, fmt.Sprintf("c%d", seconds), "exit 3")
		if err := c.stop(t, seconds); err != nil {
			t.Errorf("stop with %d s: %v", seconds, err)
		}
		state := c.status(t).State
		wantEqual(t, "state", state, runtime.ContainerState_CONTAINER_CREATED)
		if err := c.start(t); err != nil {
			t.Errorf("start after a stop with %d s: %v", seconds, err)
			continue
		}
		wantEqual(t, "exit code", c.waitExit(t).ExitCode, 3)
	}
}

// The kubelet ends a pod container by container, the sandbox last: the others, the addresses and the network are there
// for as long as one runs.
func TestContainersEndOneByOne(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	first := p.start(t, "first", stubborn)
	last := p.start(t, "last", "", webServer)
	ip := p.ip(t)
	url := fmt.Sprintf("http://%s/", ip)
	fetch(t, url)
	first.waitLog(t, "ready")
	if err := first.stop(t, 1); err != nil {
		t.Fatal(err)
	}
	if got := fetch(t, url); !strings.Contains(got, "hello from") {
		t.Errorf("the sidecar answers %q after the main container ended", got)
	}
	again := p.start(t, "first-again", "exit 0") // a container may be started again while the pod ends
	wantEqual(t, "exit code of a late container", again.waitExit(t).ExitCode, 0)
	wantEqual(t, "address", p.ip(t), ip)
	if err := last.stop(t, 0); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "state of the sandbox without containers", p.status(t).State, runtime.PodSandboxState_SANDBOX_READY)
	p.stop(t)
	wantEqual(t, "state of the stopped sandbox", p.status(t).State, runtime.PodSandboxState_SANDBOX_NOTREADY)
	wantEqual(t, "number of containers told", len(p.containers(t)), 3)
}

// A process begins with no signal ignored or blocked, whatever the runtime's own programs do: what is ignored stays so
// across exec, and a shell cannot even set a trap for it.
func TestNoSignalIsIgnoredFromTheStart(t *testing.T) {
	t.Parallel()
	const show = "grep -E '^Sig(Ign|Blk)' /proc/self/status | tr -d '\\t\\n'"
	const none = "SigBlk:0000000000000000SigIgn:0000000000000000"
	p := runPod(t, podPID)
	c := p.start(t, "c", show+"; echo; sleep 1000")
	c.waitLog(t, none)
	wantEqual(t, "signals of an exec", c.exec(t, show), none)
	shared := p.start(t, "shared", show+"; echo; sleep 1000", pidMode(runtime.NamespaceMode_POD))
	shared.waitLog(t, none)
}
