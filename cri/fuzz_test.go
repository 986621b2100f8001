package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/sandbox/stats"
)

// fuzzMethod is a method of one of the two services, called below gRPC's transport: bytes in, messages out.
type fuzzMethod struct {
	name string
	// input describes the request message.
	input protoreflect.MessageDescriptor
	call  func(s *Server, ctx context.Context, request []byte) ([]proto.Message, error)
}

// fuzzMethods lists all methods in the order of the services' descriptors, by which seeds number them.
func fuzzMethods() []fuzzMethod {
	var methods []fuzzMethod
	for _, desc := range []grpc.ServiceDesc{runtime.RuntimeService_ServiceDesc, runtime.ImageService_ServiceDesc} {
		inputs := (&runtime.VersionRequest{}).ProtoReflect().Descriptor().ParentFile().Services().
			ByName(protoreflect.FullName(desc.ServiceName).Name()).Methods()
		for _, m := range desc.Methods {
			methods = append(methods, fuzzMethod{m.MethodName, inputs.ByName(protoreflect.Name(m.MethodName)).Input(),
				func(s *Server, ctx context.Context, request []byte) ([]proto.Message, error) {
					resp, err := m.Handler(s, ctx, func(v any) error { return proto.Unmarshal(request, v.(proto.Message)) }, s.interceptUnary)
					if err != nil {
						return nil, err
					}
					return []proto.Message{resp.(proto.Message)}, nil
				}})
		}
		for _, m := range desc.Streams {
			info := &grpc.StreamServerInfo{FullMethod: m.StreamName, IsServerStream: true}
			methods = append(methods, fuzzMethod{m.StreamName, inputs.ByName(protoreflect.Name(m.StreamName)).Input(),
				func(s *Server, ctx context.Context, request []byte) ([]proto.Message, error) {
					stream := &fuzzStream{ctx: ctx, request: request}
					err := s.interceptStream(s, stream, info, m.Handler)
					return stream.sent, err
				}})
		}
	}
	return methods
}

// fuzzStream is the server's end of a stream without a client.
type fuzzStream struct {
	ctx     context.Context
	request []byte
	sent    []proto.Message
}

func (s *fuzzStream) SetHeader(metadata.MD) error  { return nil }
func (s *fuzzStream) SendHeader(metadata.MD) error { return nil }
func (s *fuzzStream) SetTrailer(metadata.MD)       {}
func (s *fuzzStream) Context() context.Context     { return s.ctx }
func (s *fuzzStream) RecvMsg(m any) error          { return proto.Unmarshal(s.request, m.(proto.Message)) }
func (s *fuzzStream) SendMsg(m any) error {
	s.sent = append(s.sent, m.(proto.Message))
	return nil
}

// fuzzServer is a server on fakes that hold a sandbox "s1", a container "c1" and an image "i1".
func fuzzServer(f *testing.F) (*Server, *fakeRuntime) {
	f.Helper()
	klog.SetOutput(io.Discard)
	klog.LogToStderr(false)
	fake := &fakeRuntime{driver: "cgroupfs"}
	server, err := New(Config{
		Runtime: fake,
		Images: &fakeImages{
			images: map[string]*runtime.Image{"i1": {Id: "i1", RepoDigests: []string{"d"}}}, usage: &runtime.FilesystemUsage{},
		},
		Network: &fakeNetwork{},
		Stats:   &fakeStats{samples: map[string]*stats.Sample{"s1": {}, "c1": {}}},
		Info:    map[string]any{"stateDir": "/"}, RuntimeVersion: "0.9.0", Handlers: []string{"special"},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = server.Close() })
	return server, fake
}

// wantAnswer fails the test unless a method's outcome is one that gRPC can carry: messages that can be encoded, or an
// error with a code that says that the daemon itself is in order.
func wantAnswer(t *testing.T, method string, messages []proto.Message, err error) {
	t.Helper()
	st, ok := status.FromError(err)
	switch {
	case !ok:
		t.Fatalf("%s: error without a gRPC status: %v", method, err)
	case st.Code() == codes.Internal || st.Code() == codes.Unknown:
		t.Fatalf("%s: %v", method, err)
	case st.Code() == codes.InvalidArgument && st.Message() == "":
		t.Fatalf("%s: refused without a word", method)
	}
	for _, m := range messages {
		if _, err := proto.Marshal(m); err != nil {
			t.Fatalf("%s: answer cannot be encoded: %v", method, err)
		}
	}
}

// FuzzRequest calls every method with any bytes that its request can be.
func FuzzRequest(f *testing.F) {
	methods := fuzzMethods()
	for i, m := range methods {
		f.Add(uint8(i), []byte{})
		for _, text := range []string{"s1", "c1", "i1"} {
			request := dynamicpb.NewMessage(m.input)
			fill(request, 4, text)
			b, err := proto.Marshal(request)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(uint8(i), b)
		}
	}
	server, fake := fuzzServer(f)
	fake.sandboxes = []*sandbox.SandboxStatus{{ID: "s1", State: sandbox.SandboxReady, Containers: []string{"c1", "gone"}}}
	fake.containers = []*sandbox.ContainerStatus{{ID: "c1", SandboxID: "s1", State: sandbox.ContainerRunning}}
	f.Fuzz(func(t *testing.T, number uint8, request []byte) {
		m := methods[int(number)%len(methods)]
		if proto.Unmarshal(request, dynamicpb.NewMessage(m.input)) != nil {
			return // gRPC refuses it before any of our code runs
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		messages, err := m.call(server, ctx, request)
		if m.name == "GetContainerEvents" && status.Code(err) == codes.ResourceExhausted {
			err = nil // the fake's events are over at once
		}
		fake.mu.Lock()
		fake.calls = nil
		fake.mu.Unlock()
		wantAnswer(t, m.name, messages, err)
	})
}

// FuzzRecord asks everything about a sandbox and a container of which the configurations are any bytes: what was taken
// once must be told for ever, with all that the kubelet's client insists on.
func FuzzRecord(f *testing.F) {
	for _, text := range []string{"", "s1", "\x00ü"} {
		config, container := &runtime.PodSandboxConfig{}, &runtime.ContainerConfig{}
		fill(config, 4, text)
		fill(container, 4, text)
		a, errA := proto.Marshal(config)
		b, errB := proto.Marshal(container)
		if err := errors.Join(errA, errB); err != nil {
			f.Fatal(err)
		}
		for state := range uint8(6) {
			f.Add(state, a, b)
		}
	}
	server, fake := fuzzServer(f)
	sandboxStates := []sandbox.SandboxState{
		sandbox.SandboxReady, sandbox.SandboxStopping, sandbox.SandboxStopped, sandbox.SandboxRemoving, "", "?",
	}
	containerStates := []sandbox.ContainerState{
		sandbox.ContainerCreated, sandbox.ContainerRunning, sandbox.ContainerExited, sandbox.ContainerRemoving,
		sandbox.ContainerUnknown, "?",
	}
	f.Fuzz(func(t *testing.T, state uint8, sandboxBytes, containerBytes []byte) {
		config, container := &runtime.PodSandboxConfig{}, &runtime.ContainerConfig{}
		if proto.Unmarshal(sandboxBytes, config) != nil || proto.Unmarshal(containerBytes, container) != nil {
			return
		}
		fake.sandboxes = []*sandbox.SandboxStatus{{
			ID: "s1", Config: config, State: sandboxStates[int(state)%len(sandboxStates)], Containers: []string{"c1"},
		}}
		fake.containers = []*sandbox.ContainerStatus{{
			ID: "c1", SandboxID: "s1", Config: container, State: containerStates[int(state)%len(containerStates)],
		}}
		wantTold(t, server)
	})
}

// wantTold checks the answers about sandbox s1 and container c1.
func wantTold(t *testing.T, s *Server) {
	ctx := t.Context()
	pod, err := s.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: "s1", Verbose: true})
	wantAnswer(t, "PodSandboxStatus", []proto.Message{pod}, err)
	if st := pod.GetStatus(); st.GetId() == "" || st.GetMetadata().GetName() == "" || st.GetMetadata().GetUid() == "" ||
		st.GetMetadata().GetNamespace() == "" || st.GetCreatedAt() == 0 || st.GetLinux().GetNamespaces().GetOptions() == nil {
		t.Fatalf("the kubelet's client drops this answer: %v", st)
	}
	c, err := s.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: "c1", Verbose: true})
	wantAnswer(t, "ContainerStatus", []proto.Message{c}, err)
	if st := c.GetStatus(); st.GetId() == "" || st.GetMetadata().GetName() == "" || st.GetCreatedAt() == 0 ||
		st.GetImage().GetImage() == "" || st.GetImageRef() == "" {
		t.Fatalf("the kubelet's client drops this answer: %v", st)
	}
	pods, err := s.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	wantAnswer(t, "ListPodSandbox", []proto.Message{pods}, err)
	containers, err := s.ListContainers(ctx, &runtime.ListContainersRequest{})
	wantAnswer(t, "ListContainers", []proto.Message{containers}, err)
	if len(pods.Items) != 1 || len(containers.Containers) != 1 {
		t.Fatalf("listed are %v and %v, expected one of each", pods.Items, containers.Containers)
	}
	podStats, err := s.PodSandboxStats(ctx, &runtime.PodSandboxStatsRequest{PodSandboxId: "s1"})
	wantAnswer(t, "PodSandboxStats", []proto.Message{podStats}, err)
	metrics, err := s.ListPodSandboxMetrics(ctx, &runtime.ListPodSandboxMetricsRequest{})
	wantAnswer(t, "ListPodSandboxMetrics", []proto.Message{metrics}, err)
}

// TestEveryMethodHasASeed keeps the seeds below testdata/fuzz in step with the API: it fails when a method has none, and
// writes them when GANTRY_WRITE_SEEDS is set.
func TestEveryMethodHasASeed(t *testing.T) {
	dir := filepath.Join("testdata", "fuzz", "FuzzRequest")
	for i, m := range fuzzMethods() {
		path := filepath.Join(dir, fmt.Sprintf("%02d-%s", i, m.name))
		if os.Getenv("GANTRY_WRITE_SEEDS") != "" {
			request := dynamicpb.NewMessage(m.input)
			fillAll(request, 5)
			b, err := proto.Marshal(request)
			if err != nil {
				t.Fatal(err)
			}
			text := fmt.Sprintf("go test fuzz v1\nbyte(%q)\n[]byte(%q)\n", rune(i), b)
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Stat(path); err != nil {
			t.Errorf("%v; GANTRY_WRITE_SEEDS=1 writes it", err)
		}
	}
}

// fillAll gives every field of m a value that is not its default, numbers and enumerations one that nothing defines.
func fillAll(m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		switch {
		case field.IsMap() && field.MapValue().Kind() == protoreflect.StringKind:
			m.Mutable(field).Map().Set(protoreflect.ValueOfString("c1").MapKey(), protoreflect.ValueOfString("ü"))
		case field.IsMap():
		case field.Message() != nil && depth == 0:
		case field.IsList() && field.Message() != nil:
			fillAll(m.Mutable(field).List().AppendMutable().Message(), depth-1)
		case field.Message() != nil:
			fillAll(m.Mutable(field).Message(), depth-1)
		case field.IsList():
			m.Mutable(field).List().Append(oddValue(field))
		default:
			m.Set(field, oddValue(field))
		}
	}
}

func oddValue(field protoreflect.FieldDescriptor) protoreflect.Value {
	switch field.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("c1")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte{0xff, 0})
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(77)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(-7)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(-7)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(7)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(7)
	}
	panic("the API has fields of a kind that oddValue does not know: " + field.Kind().String())
}
