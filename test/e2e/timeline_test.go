//go:build e2e

package e2e

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	spans "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/images"
	"github.com/gantry-cri/gantry/test/e2e/node"
)

// gantry runs the operator's command against a node and returns its standard output.
func gantry(t *testing.T, n *node.Node, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(timeout(t), filepath.Join(binDir, "gantry"), append([]string{"--address", n.Address}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("gantry %s: %v: %s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}

// timelineStep and timeline are what `gantry trace pod -o json` prints.
type timelineStep struct {
	Name        string
	Start       int64
	Nanoseconds int64
	Steps       []timelineStep
}

type timelineCall struct {
	Method, Container, Error string
	Nanoseconds              int64
	Steps                    []timelineStep
	Dropped                  int
}

type timeline struct {
	ID, Pod string
	Calls   []timelineCall
}

func timelineOf(t *testing.T, n *node.Node, pod string) timeline {
	t.Helper()
	var got timeline
	if err := json.Unmarshal([]byte(gantry(t, n, "trace", "pod", pod, "-o", "json")), &got); err != nil {
		t.Fatal(err)
	}
	return got
}

// adds checks that steps lie one after the other within their whole, and so do theirs, and returns the paths of all.
func adds(t *testing.T, path string, start, took int64, steps []timelineStep) (paths []string) {
	t.Helper()
	last, sum := start, int64(0)
	for _, s := range steps {
		own := path + " > " + s.Name
		if s.Nanoseconds < 0 || s.Start < last || s.Start+s.Nanoseconds > start+took {
			t.Errorf("%s: from %d for %d ns, in a whole from %d for %d ns, after one that ended at %d",
				own, s.Start, s.Nanoseconds, start, took, last)
		}
		last, sum = s.Start+s.Nanoseconds, sum+s.Nanoseconds
		paths = append(append(paths, own), adds(t, own, s.Start, s.Nanoseconds, s.Steps)...)
	}
	if sum > took {
		t.Errorf("%s: its steps took %d ns together, it %d ns", path, sum, took)
	}
	return paths
}

// startSteps are the steps that every start of a container in a pod with a network has.
var startSteps = []string{
	"RunPodSandbox > check configuration",
	"RunPodSandbox > write record",
	"RunPodSandbox > write hosts and resolv.conf",
	"RunPodSandbox > make namespaces",
	"RunPodSandbox > attach network > write attachment record",
	"CreateContainer > find image",
	"CreateContainer > write record",
	"CreateContainer > prepare snapshot > make writable layer",
	"CreateContainer > gather what the spec needs > find namespaces",
	"CreateContainer > build spec",
	"StartContainer > ask the keeper > request to the keeper",
	"StartContainer > ask the keeper > decode request",
	"StartContainer > ask the keeper > write record",
	"StartContainer > ask the keeper > mount root filesystem",
	"StartContainer > ask the keeper > libcontainer, create",
	"StartContainer > ask the keeper > mount beforehand",
	"StartContainer > ask the keeper > init: clone and execute",
	"StartContainer > ask the keeper > init: enter cgroup",
	"StartContainer > ask the keeper > init: join and make namespaces",
	"StartContainer > ask the keeper > init: start Go",
	"StartContainer > ask the keeper > init: mount and limit",
	"StartContainer > ask the keeper > init: add seccomp rules",
	"StartContainer > ask the keeper > init: load seccomp filter",
	"StartContainer > ask the keeper > execute command",
	"StartContainer > ask the keeper > write status",
	"StartContainer > ask the keeper > answer of the keeper",
}

// checkTimeline starts a pod with a container on a node and checks its timeline against what the calls took.
func checkTimeline(t *testing.T, n *node.Node, network ...string) {
	image := pull(t, n, images.Busybox)
	var took []time.Duration
	timed := func(call func() error) {
		t.Helper()
		begin := time.Now()
		if err := call(); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(begin))
	}
	var p *pod
	timed(func() error { p = runPodOn(t, n, podConfig(t, n, "")); return nil })
	var id string
	timed(func() error {
		response, err := n.Runtime.CreateContainer(timeout(t), &runtime.CreateContainerRequest{
			PodSandboxId: p.id, SandboxConfig: p.config, Config: &runtime.ContainerConfig{
				Metadata: &runtime.ContainerMetadata{Name: "main"}, Image: &runtime.ImageSpec{Image: image},
				Command: []string{"sleep", "1000"}, LogPath: "main.log",
				Linux: &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{
					Seccomp: &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault},
				}},
			},
		})
		id = response.GetContainerId()
		return err
	})
	timed(func() error {
		_, err := n.Runtime.StartContainer(timeout(t), &runtime.StartContainerRequest{ContainerId: id})
		return err
	})
	name := "e2e/" + p.config.Metadata.Name
	got := timelineOf(t, n, p.id)
	wantEqual(t, "id", got.ID, p.id)
	wantEqual(t, "pod", got.Pod, name)
	if len(got.Calls) != len(took) {
		t.Fatalf("calls are %+v, expected the three of a start", got.Calls)
	}
	var paths []string
	for i, c := range got.Calls {
		if c.Nanoseconds <= 0 || c.Nanoseconds > int64(took[i]) || c.Error != "" || c.Dropped != 0 {
			t.Errorf("%s took %d ns (error %q, %d dropped), for its caller %v", c.Method, c.Nanoseconds, c.Error, c.Dropped, took[i])
		}
		paths = append(paths, adds(t, c.Method, 0, c.Nanoseconds, c.Steps)...)
	}
	all := "\n" + strings.Join(paths, "\n") + "\n"
	for _, want := range append(startSteps, network...) {
		if !strings.Contains(all, "\n"+want) {
			t.Errorf("no step %q in:%s", want, all)
		}
	}
	text := gantry(t, n, "trace", "pod", name)
	for _, want := range []string{"RunPodSandbox", "StartContainer main", "init: start Go", "█"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	t.Log("\n" + text)
	picture := xml.NewDecoder(strings.NewReader(gantry(t, n, "trace", "pod", p.id[:12], "--output", "svg")))
	for {
		if _, err := picture.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("picture is no XML: %v", err)
		}
	}
}

func TestTimelineWithPlugins(t *testing.T) {
	checkTimeline(t, shared,
		"RunPodSandbox > attach network > bring loopback up",
		"RunPodSandbox > attach network > run plugins > bridge",
		"RunPodSandbox > attach network > run plugins > portmap",
		"RunPodSandbox > attach network > run plugins > firewall")
}

func TestTimelineWithEmbeddedNetwork(t *testing.T) {
	checkTimeline(t, embeddedNode(t, "emb-trace", "10.86.9.0/24"),
		"RunPodSandbox > attach network > ensure what pods share",
		"RunPodSandbox > attach network > reserve addresses",
		"RunPodSandbox > attach network > attach to the embedded network > open netlink",
		"RunPodSandbox > attach network > attach to the embedded network > make pair",
		"RunPodSandbox > attach network > attach to the embedded network > configure eth0",
		"RunPodSandbox > attach network > attach to the embedded network > route to the sandbox")
}

// A start that fails has a timeline that says so.
func TestTimelineOfFailedStart(t *testing.T) {
	p := runPod(t)
	c := p.create(t, "broken", "", func(c *runtime.ContainerConfig) { c.Command = []string{"/does/not/exist"}; c.Args = nil })
	if err := c.start(t); err == nil {
		t.Fatal("a command that does not exist was started")
	}
	calls := timelineOf(t, shared, p.id).Calls
	last := calls[len(calls)-1]
	if last.Method != "StartContainer" || last.Container != "broken" || !strings.Contains(last.Error, "/does/not/exist") {
		t.Errorf("last call is %+v, expected the failed start with its error", last)
	}
}

func TestTimelineOfUnknownPod(t *testing.T) {
	cmd := exec.CommandContext(timeout(t), filepath.Join(binDir, "gantry"), "--address", shared.Address, "trace", "pod", "e2e/nobody")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), `timeline of pod "e2e/nobody"`) {
		t.Errorf("timeline of a pod that never was: %v: %s", err, out)
	}
}

// spanCollector is an OpenTelemetry collector that keeps what it is sent.
type spanCollector struct {
	collector.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans []*spans.Span
}

func (c *spanCollector) Export(
	_ context.Context, request *collector.ExportTraceServiceRequest,
) (*collector.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range request.ResourceSpans {
		for _, s := range r.ScopeSpans {
			c.spans = append(c.spans, s.Spans...)
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// received are the spans by the way from the one without a known parent.
func (c *spanCollector) received() map[string]*spans.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	byID := map[string]*spans.Span{}
	for _, s := range c.spans {
		byID[string(s.SpanId)] = s
	}
	byPath := map[string]*spans.Span{}
	for _, s := range c.spans {
		path := s.Name
		for parent := byID[string(s.ParentSpanId)]; parent != nil; parent = byID[string(parent.ParentSpanId)] {
			path = parent.Name + " > " + path
		}
		byPath[path] = s
	}
	return byPath
}

// The kubelet's trace goes on in the daemon's spans.
func TestSpans(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	received, server := &spanCollector{}, grpc.NewServer()
	collector.RegisterTraceServiceServer(server, received)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	n, err := newNode("spans", func(o *node.Options) {
		// Nothing is sent but what the caller wants to have sent.
		o.Config = fmt.Sprintf("[tracing]\nendpoint = \"http://%s\"\nsampling = 0.0\n", listener.Addr())
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, n)

	const traceID, parentID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	traced := metadata.AppendToOutgoingContext(timeout(t), "traceparent", "00-"+traceID+"-"+parentID+"-01")
	if _, err := n.Runtime.ListPodSandbox(traced, &runtime.ListPodSandboxRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := emptyPod(timeout(t), n, "spans-without"); err != nil {
		t.Fatal(err)
	}
	if _, err := emptyPod(traced, n, "spans-with"); err != nil {
		t.Fatal(err)
	}
	const call = "runtime.v1.RuntimeService/RunPodSandbox"
	want := []string{
		call, call + " > make namespaces", call + " > attach network", call + " > attach network > run plugins > bridge",
	}
	eventually(t, "the collector gets the spans of a call that its caller traces", func() bool {
		all := received.received()
		for _, path := range want {
			if all[path] == nil {
				return false
			}
		}
		return true
	})
	all := received.received()
	for path, s := range all {
		if hex.EncodeToString(s.TraceId) != traceID || !strings.HasPrefix(path, call) {
			t.Errorf("span %s is of trace %x, expected those of %s in %s only", path, s.TraceId, call, traceID)
		}
		if whole := all[call]; s.StartTimeUnixNano < whole.StartTimeUnixNano || s.EndTimeUnixNano > whole.EndTimeUnixNano {
			t.Errorf("span %s is outside of its call", path)
		}
	}
	wantEqual(t, "parent of the call", hex.EncodeToString(all[call].ParentSpanId), parentID)
	attributes := map[string]string{}
	for _, a := range all[call].Attributes {
		attributes[a.Key] = a.Value.GetStringValue()
	}
	wantEqual(t, "pod of the call", attributes["k8s.namespace.name"]+"/"+attributes["k8s.pod.name"], "e2e/spans-with")
}
