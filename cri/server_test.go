package cri

import (
	"context"
	"net"
	"reflect"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/sandbox/stats"
)

// node is a Server on fakes, behind a real gRPC server and client.
type node struct {
	runtime *fakeRuntime
	images  *fakeImages
	network *fakeNetwork
	stats   *fakeStats
	server  *Server

	runtime.RuntimeServiceClient
	image runtime.ImageServiceClient
}

// newNode serves until the test ends. change may change the configuration.
func newNode(t testing.TB, change ...func(*Config)) *node {
	t.Helper()
	n := &node{
		runtime: &fakeRuntime{driver: "cgroupfs"},
		images:  &fakeImages{images: map[string]*runtime.Image{}},
		network: &fakeNetwork{},
		stats:   &fakeStats{samples: map[string]*stats.Sample{}},
	}
	config := Config{
		Runtime: n.runtime, Images: n.images, Network: n.network, Stats: n.stats,
		RuntimeVersion: "0.9.0", Handlers: []string{"special"},
	}
	for _, f := range change {
		f(&config)
	}
	server, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	n.server = server
	// A call that its client has given up must not log when the next test has begun.
	g := grpc.NewServer(append(server.ServerOptions(), grpc.WaitForHandlers(true))...)
	server.Register(g)
	listener := bufconn.Listen(1 << 20)
	go func() { _ = g.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///cri",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageSize)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		g.Stop()
		_ = server.Close()
	})
	n.RuntimeServiceClient = runtime.NewRuntimeServiceClient(conn)
	n.image = runtime.NewImageServiceClient(conn)
	return n
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// wantCode fails the test unless err has that code.
func wantCode(t *testing.T, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("got code %v (%v), want %v", got, err, want)
	}
}

// wantMessage fails the test unless the messages are equal.
func wantMessage(t *testing.T, got, want proto.Message) {
	t.Helper()
	if !proto.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// TestNewRefusesAnIncompleteConfig also shows that a listener that cannot be had is an error.
func TestNewRefusesAnIncompleteConfig(t *testing.T) {
	full := Config{Runtime: &fakeRuntime{}, Images: &fakeImages{}, Network: &fakeNetwork{}, Stats: &fakeStats{}}
	for name, change := range map[string]func(*Config){
		"runtime": func(c *Config) { c.Runtime = nil },
		"images":  func(c *Config) { c.Images = nil },
		"network": func(c *Config) { c.Network = nil },
		"stats":   func(c *Config) { c.Stats = nil },
		"address": func(c *Config) { c.StreamAddress = "127.0.0.1:none" },
	} {
		config := full
		change(&config)
		if s, err := New(config); err == nil {
			t.Errorf("%s: want an error", name)
			_ = s.Close()
		}
	}
}

// TestNoRequestPanics calls each method with requests in which every optional message is missing, or empty, at each
// depth. A panic would come back as Internal.
func TestNoRequestPanics(t *testing.T) {
	n := newNode(t)
	n.runtime.sandboxes = []*sandbox.SandboxStatus{{ID: "s1", Config: &runtime.PodSandboxConfig{}}}
	n.runtime.containers = []*sandbox.ContainerStatus{{ID: "c1", Config: &runtime.ContainerConfig{}}}
	n.runtime.sandboxes[0].Containers = []string{"c1", "gone"}
	n.stats.samples["s1"], n.stats.samples["c1"] = &stats.Sample{}, &stats.Sample{}
	n.images.images["i1"] = &runtime.Image{Id: "i1", RepoDigests: []string{"d"}}
	for _, client := range []any{n.RuntimeServiceClient, n.image} {
		v := reflect.ValueOf(client)
		for i := range v.NumMethod() {
			method := v.Type().Method(i)
			for depth := range 5 {
				for _, text := range []string{"", "s1", "c1", "i1"} {
					req := reflect.New(method.Type.In(2).Elem())
					fill(req.Interface().(proto.Message), depth, text)
					err := call(t, v.Method(i), req)
					if status.Code(err) == codes.Internal {
						t.Errorf("%s with depth %d and %q: %v", method.Name, depth, text, err)
					}
				}
			}
		}
	}
}

// call calls a client's method and, where it gives a stream, reads that to its end.
func call(t *testing.T, method, req reflect.Value) error {
	results := method.Call([]reflect.Value{reflect.ValueOf(testContext(t)), req})
	if err, _ := results[1].Interface().(error); err != nil {
		return err
	}
	stream, ok := results[0].Interface().(grpc.ClientStream)
	for ok {
		recv := reflect.ValueOf(stream).MethodByName("Recv").Call(nil)
		if err, _ := recv[1].Interface().(error); err != nil {
			return err
		}
	}
	return nil
}

// fill sets the strings of m to text and its messages to such with the same done to them, down to depth.
func fill(m proto.Message, depth int, text string) {
	r := m.ProtoReflect()
	fields := r.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		switch {
		case field.IsMap():
		case field.Message() != nil && depth == 0:
		case field.Message() != nil && field.IsList():
			fill(r.Mutable(field).List().AppendMutable().Message().Interface(), depth-1, text)
		case field.Message() != nil:
			fill(r.Mutable(field).Message().Interface(), depth-1, text)
		case field.Kind().String() == "string" && field.IsList():
			r.Mutable(field).List().Append(protoreflect.ValueOfString(text))
		case field.Kind().String() == "string":
			r.Set(field, protoreflect.ValueOfString(text))
		}
	}
}
