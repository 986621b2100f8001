package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/gantry-cri/gantry/sandbox"
)

// streamNode has a running container c1234 in a ready sandbox s1234.
func streamNode(t *testing.T) *node {
	n := newNode(t)
	n.runtime.sandboxes = []*sandbox.SandboxStatus{{
		ID: "s1234", Config: sandboxConfig("web"), State: sandbox.SandboxReady,
	}}
	n.runtime.containers = []*sandbox.ContainerStatus{
		{ID: "c1234", SandboxID: "s1234", Config: &runtime.ContainerConfig{}, State: sandbox.ContainerRunning},
		{ID: "exited", SandboxID: "s1234", Config: &runtime.ContainerConfig{}, State: sandbox.ContainerExited},
	}
	return n
}

// dialSPDY connects to an address that Exec or PortForward returned.
func dialSPDY(t *testing.T, url, protocol string) httpstream.Connection {
	t.Helper()
	transport, err := spdy.NewRoundTripper(nil)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(testContext(t), http.MethodPost, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(httpstream.HeaderProtocolVersion, protocol)
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := transport.NewConnection(resp)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func openStream(t *testing.T, conn httpstream.Connection, headers ...string) httpstream.Stream {
	t.Helper()
	stream, err := conn.CreateStream(streamHeaders(headers...))
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func streamHeaders(pairs ...string) http.Header {
	h := http.Header{}
	for i := 0; i < len(pairs); i += 2 {
		h.Set(pairs[i], pairs[i+1])
	}
	return h
}

// execStreams connects and opens the streams that the request asks for, by type.
func execStreams(
	t *testing.T, n *node, req *runtime.ExecRequest,
) (httpstream.Connection, map[string]httpstream.Stream) {
	t.Helper()
	resp, err := n.Exec(testContext(t), req)
	if err != nil {
		t.Fatal(err)
	}
	conn := dialSPDY(t, resp.Url, remotecommand.StreamProtocolV4Name)
	streams := map[string]httpstream.Stream{}
	for kind, want := range map[string]bool{
		remotecommand.StreamTypeError: true, remotecommand.StreamTypeStdin: req.Stdin,
		remotecommand.StreamTypeStdout: req.Stdout, remotecommand.StreamTypeStderr: req.Stderr,
		remotecommand.StreamTypeResize: req.Tty,
	} {
		if want {
			streams[kind] = openStream(t, conn, remotecommand.StreamType, kind)
		}
	}
	return conn, streams
}

// execStatus is what a client of version 4 of the protocol learns of the end.
type execStatus struct {
	Status, Reason, Message string
	Details                 struct {
		Causes []struct{ Reason, Message string }
	}
}

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func decodeStatus(t *testing.T, text string) execStatus {
	t.Helper()
	var s execStatus
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatalf("decode %q: %v", text, err)
	}
	return s
}

// echo copies stdin to stdout, tells something on stderr if it may, and exits with code.
func echo(code int32) func(context.Context, string, sandbox.ExecOptions) (int32, error) {
	return func(_ context.Context, id string, opts sandbox.ExecOptions) (int32, error) {
		if opts.Stdin != nil {
			if _, err := io.Copy(opts.Stdout, opts.Stdin); err != nil {
				return 0, err
			}
		}
		if opts.Stderr != nil {
			fmt.Fprintf(opts.Stderr, "in %s", id)
		}
		return code, nil
	}
}

func TestExecOverSPDY(t *testing.T) {
	n := streamNode(t)
	n.runtime.exec = echo(0)
	_, streams := execStreams(t, n, &runtime.ExecRequest{
		ContainerId: "c12", Cmd: []string{"cat"}, Stdin: true, Stdout: true, Stderr: true,
	})
	text := strings.Repeat("0123456789", 50_000)
	go func() {
		_, _ = io.WriteString(streams["stdin"], text)
		_ = streams["stdin"].Close()
	}()
	if got := readAll(t, streams["stdout"]); got != text {
		t.Errorf("got %d bytes of stdout, want %d", len(got), len(text))
	}
	if got := readAll(t, streams["stderr"]); got != "in c1234" {
		t.Errorf("got stderr %q, want the full id", got)
	}
	if got := decodeStatus(t, readAll(t, streams["error"])); got.Status != "Success" {
		t.Errorf("got %+v", got)
	}
}

func TestExecReportsTheExitCode(t *testing.T) {
	n := streamNode(t)
	n.runtime.exec = echo(42)
	_, streams := execStreams(t, n, &runtime.ExecRequest{ContainerId: "c1234", Cmd: []string{"false"}, Stdout: true})
	got := decodeStatus(t, readAll(t, streams["error"]))
	if got.Status != "Failure" || got.Reason != "NonZeroExitCode" || len(got.Details.Causes) != 1 ||
		got.Details.Causes[0].Reason != "ExitCode" || got.Details.Causes[0].Message != "42" {
		t.Errorf("got %+v", got)
	}
}

func TestExecReportsWhyItDidNotRun(t *testing.T) {
	n := streamNode(t)
	for name, exec := range map[string]func(context.Context, string, sandbox.ExecOptions) (int32, error){
		"no such file": func(context.Context, string, sandbox.ExecOptions) (int32, error) {
			return 0, fmt.Errorf("no such file")
		},
		"internal error": func(context.Context, string, sandbox.ExecOptions) (int32, error) { panic("boom") },
	} {
		n.runtime.exec = exec
		_, streams := execStreams(t, n, &runtime.ExecRequest{ContainerId: "c1234", Cmd: []string{"x"}, Stdout: true})
		got := decodeStatus(t, readAll(t, streams["error"]))
		if got.Status != "Failure" || got.Reason != "InternalError" || !strings.Contains(got.Message, name) {
			t.Errorf("got %+v, want %s", got, name)
		}
	}
}

func TestExecWithTerminalGetsEverySize(t *testing.T) {
	n := streamNode(t)
	n.runtime.exec = func(ctx context.Context, _ string, opts sandbox.ExecOptions) (int32, error) {
		if !opts.Terminal || opts.Stderr != nil || opts.Resize == nil {
			t.Errorf("got %+v, want a terminal with one output", opts)
		}
		// The sizes that came before the command was ready for them count too.
		time.Sleep(50 * time.Millisecond)
		for range 2 {
			select {
			case size := <-opts.Resize:
				fmt.Fprintf(opts.Stdout, "%dx%d;", size.Width, size.Height)
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}
		return 0, nil
	}
	_, streams := execStreams(t, n, &runtime.ExecRequest{
		ContainerId: "c1234", Cmd: []string{"sh"}, Stdin: true, Stdout: true, Tty: true,
	})
	fmt.Fprint(streams["resize"], `{"Width":80,"Height":25}{"Width":132,"Height":50}`)
	if got := readAll(t, streams["stdout"]); got != "80x25;132x50;" {
		t.Errorf("got sizes %q", got)
	}
}

func TestExecEndsWhenTheClientIsGone(t *testing.T) {
	n := streamNode(t)
	started, ended := make(chan struct{}), make(chan error, 1)
	n.runtime.exec = func(ctx context.Context, _ string, _ sandbox.ExecOptions) (int32, error) {
		close(started)
		select {
		case <-ctx.Done():
		case <-time.After(time.Minute):
		}
		ended <- ctx.Err()
		return 0, ctx.Err()
	}
	conn, _ := execStreams(t, n, &runtime.ExecRequest{ContainerId: "c1234", Cmd: []string{"sleep"}, Stdout: true})
	<-started
	_ = conn.Close()
	if err := <-ended; err == nil {
		t.Error("the command ran on")
	}
}

func TestExecOverWebSocket(t *testing.T) {
	n := streamNode(t)
	n.runtime.exec = func(_ context.Context, _ string, opts sandbox.ExecOptions) (int32, error) {
		b := make([]byte, 5)
		if _, err := io.ReadFull(opts.Stdin, b); err != nil {
			return 0, err
		}
		fmt.Fprintf(opts.Stdout, "got %s", b)
		fmt.Fprint(opts.Stderr, "and this")
		return 7, nil
	}
	resp, err := n.Exec(testContext(t), &runtime.ExecRequest{
		ContainerId: "c1234", Cmd: []string{"x"}, Stdin: true, Stdout: true, Stderr: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	ws, err := websocket.Dial("ws"+strings.TrimPrefix(resp.Url, "http"), "v4.channel.k8s.io", "http://localhost/")
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	_ = ws.SetDeadline(time.Now().Add(time.Minute))
	if err := websocket.Message.Send(ws, append([]byte{remotecommand.StreamStdIn}, "hello"...)); err != nil {
		t.Fatal(err)
	}
	var channels [4]string
	for {
		var frame []byte
		if err := websocket.Message.Receive(ws, &frame); err != nil {
			break
		}
		channels[frame[0]] += string(frame[1:])
	}
	if channels[1] != "got hello" || channels[2] != "and this" {
		t.Errorf("got %q", channels)
	}
	if got := decodeStatus(t, channels[3]); len(got.Details.Causes) != 1 || got.Details.Causes[0].Message != "7" {
		t.Errorf("got %+v", got)
	}
}

func TestExecAddressIsForOneUse(t *testing.T) {
	n := streamNode(t)
	resp, err := n.Exec(testContext(t), &runtime.ExecRequest{ContainerId: "c1234", Cmd: []string{"x"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(resp.Url, "http://127.0.0.1:") {
		t.Errorf("got %s, want an address on loopback", resp.Url)
	}
	for i, want := range []int{http.StatusBadRequest, http.StatusNotFound} { // No upgrade, then no such token.
		got, err := http.Post(resp.Url, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = got.Body.Close()
		if got.StatusCode != want {
			t.Errorf("use %d: got %s, want %d", i+1, got.Status, want)
		}
	}
}

func TestStreamRequestsAreChecked(t *testing.T) {
	n := streamNode(t)
	ctx := testContext(t)
	cmd := []string{"x"}
	for _, test := range []struct {
		name string
		req  *runtime.ExecRequest
		want codes.Code
	}{
		{"no id", &runtime.ExecRequest{Cmd: cmd, Stdout: true}, codes.InvalidArgument},
		{"no command", &runtime.ExecRequest{ContainerId: "c1234", Stdout: true}, codes.InvalidArgument},
		{"no stream", &runtime.ExecRequest{ContainerId: "c1234", Cmd: cmd}, codes.InvalidArgument},
		{
			"terminal and stderr",
			&runtime.ExecRequest{ContainerId: "c1234", Cmd: cmd, Tty: true, Stdout: true, Stderr: true}, codes.InvalidArgument,
		},
		{"unknown", &runtime.ExecRequest{ContainerId: "zz", Cmd: cmd, Stdout: true}, codes.NotFound},
		{"not running", &runtime.ExecRequest{ContainerId: "exited", Cmd: cmd, Stdout: true}, codes.FailedPrecondition},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := n.Exec(ctx, test.req)
			wantCode(t, err, test.want)
		})
	}
	for want, req := range map[codes.Code]*runtime.PortForwardRequest{
		codes.NotFound:        {PodSandboxId: "zz"},
		codes.InvalidArgument: {PodSandboxId: "s1234", Port: []int32{80, 70000}},
		codes.OK:              {PodSandboxId: "s1234"},
	} {
		_, err := n.PortForward(ctx, req)
		wantCode(t, err, want)
	}
	n.runtime.sandboxes[0].State = sandbox.SandboxStopped
	_, err := n.PortForward(ctx, &runtime.PortForwardRequest{PodSandboxId: "s1234"})
	wantCode(t, err, codes.FailedPrecondition)
}

// forward opens the pair of streams of one forwarded connection.
func forward(t *testing.T, conn httpstream.Connection, port int, id string) (data, errs httpstream.Stream) {
	t.Helper()
	headers := forwardHeaders(port, id)
	errs = openStream(t, conn, append(headers, portforward.StreamType, portforward.StreamTypeError)...)
	data = openStream(t, conn, append(headers, portforward.StreamType, portforward.StreamTypeData)...)
	_ = errs.Close()
	return data, errs
}

func forwardHeaders(port int, id string) []string {
	return []string{portforward.PortHeader, fmt.Sprint(port), portforward.PortForwardRequestIDHeader, id}
}
