//go:build e2e

package e2e

import (
	"context"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/images"
)

const (
	// fuzzSeed is the seed of a run without GANTRY_FUZZ_SEED.
	fuzzSeed = 1
	// A run ends after so many requests or so much time, of which GANTRY_FUZZ_TIME gives another. A slow machine takes the
	// time that the least of them need.
	fuzzRequests = 600
	fuzzTime     = 15 * time.Second
	fuzzLeast    = 100
	// fuzzSandboxes is how many sandboxes there are at once.
	fuzzSandboxes = 4
)

// fuzzer makes requests that are right but for a few fields, and remembers what came of them.
type fuzzer struct {
	t          *testing.T
	r          *rand.Rand
	image      string
	pods       []*pod
	containers []string
	codes      map[codes.Code]int
}

// TestRandomRequests sends requests of all kinds, right ones and ones with wrong fields, to the real daemon. Each has to
// be answered, in time and never by an error of the daemon's own; afterwards the daemon is the same process, everything
// can be removed, and nothing is left.
func TestRandomRequests(t *testing.T) {
	leavesNoTrace(t)
	seed, duration := uint64(fuzzSeed), fuzzTime
	if text := os.Getenv("GANTRY_FUZZ_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	limit := fuzzRequests
	if text := os.Getenv("GANTRY_FUZZ_TIME"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatal(err)
		}
		duration, limit = d, int(d/time.Millisecond)
	}
	f := &fuzzer{t: t, r: rand.New(rand.NewPCG(seed, 0)), image: pull(t, shared, images.Busybox), codes: map[codes.Code]int{}}
	daemon, sent := shared.PID(), 0
	for end := time.Now().Add(duration); sent < limit && (sent < fuzzLeast || time.Now().Before(end)) && !t.Failed(); sent++ {
		f.step()
	}
	t.Logf("seed %d: %d requests, answers by code %v", seed, sent, f.codes)
	if !shared.Running() || shared.PID() != daemon {
		t.Fatal("the daemon died")
	}
	if err := shared.RemoveAll(timeout(t)); err != nil {
		t.Errorf("remove everything: %v", err)
	}
	if f.codes[codes.OK] < sent/4 || f.codes[codes.InvalidArgument] == 0 {
		t.Errorf("too few requests succeeded or were refused to have tested anything: %v", f.codes)
	}
	wantEqual(t, "id of the image", pull(t, shared, images.Busybox), f.image) // it may have been removed
	p := runPod(t)
	wantEqual(t, "exec after all", p.start(t, "c", "sleep 1000").exec(t, "echo works"), "works")
}

// step sends one request: of the life of a pod in two of three cases, else to any method.
func (f *fuzzer) step() {
	switch n := f.r.IntN(30); {
	case n < 4 || len(f.pods) == 0:
		f.run()
	case n < 10:
		f.create()
	case n < 14 && len(f.containers) > 0:
		f.send("StartContainer", &runtime.StartContainerRequest{ContainerId: f.container()})
	case n < 16 && len(f.containers) > 0:
		f.send("UpdateContainerResources", f.mutated(&runtime.UpdateContainerResourcesRequest{
			ContainerId: f.container(), Linux: startLimits(),
		}))
	case n < 18 && len(f.containers) > 0:
		f.send("ExecSync", f.mutated(&runtime.ExecSyncRequest{ContainerId: f.container(), Cmd: []string{"true"}, Timeout: 5}))
	case n < 20 && len(f.containers) > 0:
		f.send("RemoveContainer", &runtime.RemoveContainerRequest{ContainerId: f.container()})
	default:
		f.any()
	}
}

func (f *fuzzer) pod() *pod         { return f.pods[f.r.IntN(len(f.pods))] }
func (f *fuzzer) container() string { return f.containers[f.r.IntN(len(f.containers))] }

// run makes one more sandbox, and removes the oldest when there are enough.
func (f *fuzzer) run() {
	if len(f.pods) >= fuzzSandboxes {
		f.send("RemovePodSandbox", &runtime.RemovePodSandboxRequest{PodSandboxId: f.pods[0].id})
		f.pods = f.pods[1:]
	}
	config := podConfig(f.t, shared, "-"+strconv.Itoa(f.r.IntN(20)))
	full := fullPod(f.t)
	config.Linux.SecurityContext, config.PortMappings = full.Linux.SecurityContext, full.PortMappings
	config.PortMappings[0].HostPort = 0
	parent := config.Linux.CgroupParent
	f.mutated(config)
	if config.Linux != nil {
		config.Linux.CgroupParent = parent // the caller's to remove, so another would stay
	}
	if response := f.send("RunPodSandbox", &runtime.RunPodSandboxRequest{Config: config}); response != nil {
		f.pods = append(f.pods, &pod{node: shared, id: response.(*runtime.RunPodSandboxResponse).PodSandboxId, config: config})
	}
}

func (f *fuzzer) create() {
	p := f.pod()
	config := fullContainer(f.t)
	config.Metadata.Name, config.Image.Image = "c"+strconv.Itoa(f.r.IntN(50)), f.image
	config.LogPath = config.Metadata.Name + ".log"
	f.mutated(config)
	if response := f.send("CreateContainer", p.createRequest(config)); response != nil {
		f.containers = append(f.containers, response.(*runtime.CreateContainerResponse).ContainerId)
		f.containers = f.containers[max(0, len(f.containers)-10):] // the others may be gone with their sandboxes
	}
}

// any sends a request to any method: nothing but an id in it, or what comes of filling it at random.
func (f *fuzzer) any() {
	var client any = shared.Runtime
	if f.r.IntN(4) == 0 {
		client = shared.Images
	}
	v := reflect.ValueOf(client)
	method := v.Type().Method(f.r.IntN(v.NumMethod()))
	request := reflect.New(method.Type.In(2).Elem()).Interface().(proto.Message)
	for _, name := range []protoreflect.Name{"container_id", "pod_sandbox_id"} {
		if field := request.ProtoReflect().Descriptor().Fields().ByName(name); field != nil && f.r.IntN(5) > 0 {
			request.ProtoReflect().Set(field, protoreflect.ValueOfString(f.text()))
		}
	}
	f.mutated(request)
	f.sendTo(client, method.Name, request)
}

func (f *fuzzer) send(method string, request proto.Message) proto.Message {
	return f.sendTo(shared.Runtime, method, request)
}

// sendTo calls a method and judges the answer, which it returns if it is one message.
func (f *fuzzer) sendTo(client any, name string, request proto.Message) proto.Message {
	patience := callTimeout
	switch r := request.(type) { // those that may wait for as long as they were told
	case *runtime.StopContainerRequest, *runtime.GetEventsRequest:
		patience = 300 * time.Millisecond
	case *runtime.ExecSyncRequest:
		r.Timeout, patience = min(r.Timeout, 5), 30*time.Second
	}
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	results := reflect.ValueOf(client).MethodByName(name).Call([]reflect.Value{reflect.ValueOf(ctx), reflect.ValueOf(request)})
	err, _ := results[1].Interface().(error)
	if stream, ok := results[0].Interface().(grpc.ClientStream); ok && err == nil {
		for err == nil {
			received := reflect.ValueOf(stream).MethodByName("Recv").Call(nil)
			err, _ = received[1].Interface().(error)
		}
		if err.Error() == "EOF" {
			err = nil
		}
	}
	code := status.Code(err)
	f.codes[code]++
	if code == codes.Unknown {
		f.t.Logf("%s: %v", name, err)
	}
	late := code == codes.DeadlineExceeded && patience > time.Second && name != "ExecSync"
	if late || code == codes.Internal || code == codes.Unavailable || code == codes.Unknown && !outside(name) {
		text := request.(interface{ String() string }).String()
		f.t.Errorf("%s: %v\nrequest: %.3000s", name, err, text)
	}
	response, _ := results[0].Interface().(proto.Message)
	if err != nil {
		return nil
	}
	return response
}

// outside reports whether a method may fail for reasons that only the kernel, a plugin or a registry can tell, whose
// errors are of no kind.
func outside(method string) bool {
	return slices.Contains([]string{"RunPodSandbox", "StartContainer", "PullImage", "UpdateContainerResources"}, method)
}

// mutated changes up to three fields of a message, and returns it; some messages stay right.
func (f *fuzzer) mutated(m proto.Message) proto.Message {
	for range f.r.IntN(4) {
		f.mutate(m.ProtoReflect(), 0)
	}
	return m
}

func (f *fuzzer) mutate(m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	if fields.Len() == 0 {
		return
	}
	field := fields.Get(f.r.IntN(fields.Len()))
	switch {
	case f.r.IntN(6) == 0:
		m.Clear(field)
	case field.IsMap():
		if field.MapValue().Kind() == protoreflect.StringKind {
			m.Mutable(field).Map().Set(protoreflect.ValueOfString(f.text()).MapKey(), protoreflect.ValueOfString(f.text()))
		}
	case field.Message() != nil && depth > 5:
	case field.IsList() && field.Message() != nil:
		list := m.Mutable(field).List()
		if list.Len() == 0 || f.r.IntN(3) == 0 {
			list.AppendMutable()
		}
		f.mutate(list.Get(f.r.IntN(list.Len())).Message(), depth+1)
	case field.Message() != nil:
		f.mutate(m.Mutable(field).Message(), depth+1)
	case field.IsList():
		m.Mutable(field).List().Append(f.value(field))
	default:
		m.Set(field, f.value(field))
	}
}

// text gives an id that is or was there, or what is easy to take wrongly. No text is a path of a host's file.
func (f *fuzzer) text() string {
	texts := []string{
		"", " ", "ü", "a\x00b", "../../..", "..", "-", "*", "%s%n", strings.Repeat("a", 70000), "no/such", "65536", "registry.test/no/such:1",
		"\n", f.image,
	}
	if len(f.pods) > 0 {
		texts = append(texts, f.pod().id, f.pod().id[:5])
	}
	if len(f.containers) > 0 {
		texts = append(texts, f.container(), f.container()[:5])
	}
	return texts[f.r.IntN(len(texts))]
}

func (f *fuzzer) value(field protoreflect.FieldDescriptor) protoreflect.Value {
	numbers := []int64{0, 1, -1, 2, 7, 80, 1000, 65536, 1 << 20, 1 << 31, 1<<63 - 1, -1 << 63}
	n := numbers[f.r.IntN(len(numbers))]
	switch field.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(f.text())
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(f.text() + "\xff"))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(n%2 != 0)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(f.r.IntN(8)))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(n)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(n))
	}
	return field.Default()
}
