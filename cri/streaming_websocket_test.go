package cri

import (
	"context"
	"errors"
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

// dialWebSocket connects to an address of a stream by a protocol.
func dialWebSocket(t *testing.T, url, protocol string) *websocket.Conn {
	t.Helper()
	ws, err := websocket.Dial("ws"+strings.TrimPrefix(url, "http"), protocol, "http://localhost/")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ws.Close() })
	_ = ws.SetDeadline(time.Now().Add(time.Minute))
	return ws
}

func sendFrame(t *testing.T, ws *websocket.Conn, channel byte, data string) {
	t.Helper()
	if err := websocket.Message.Send(ws, append([]byte{channel}, data...)); err != nil {
		t.Fatal(err)
	}
}

// receiveFrames returns what comes on each channel until the server closes.
func receiveFrames(ws *websocket.Conn) (channels [5]string) {
	for {
		var frame []byte
		if err := websocket.Message.Receive(ws, &frame); err != nil {
			return channels
		}
		channels[frame[0]] += string(frame[1:])
	}
}

func TestVersion5EndsInput(t *testing.T) {
	n := streamNode(t)
	n.runtime.exec = func(_ context.Context, _ string, opts sandbox.ExecOptions) (int32, error) {
		size := <-opts.Resize
		input, err := io.ReadAll(opts.Stdin)
		fmt.Fprintf(opts.Stdout, "%s %d", input, size.Width)
		return 9, err
	}
	resp, err := n.Exec(testContext(t), &runtime.ExecRequest{
		ContainerId: "c1234", Cmd: []string{"x"}, Stdin: true, Stdout: true, Tty: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	ws := dialWebSocket(t, resp.Url, remotecommand.StreamProtocolV5Name)
	sendFrame(t, ws, remotecommand.StreamResize, `{"Width":99,"Height":1}`)
	sendFrame(t, ws, remotecommand.StreamStdIn, "all")
	sendFrame(t, ws, remotecommand.StreamClose, "\x00")
	channels := receiveFrames(ws)
	if channels[remotecommand.StreamStdOut] != "all 99" {
		t.Errorf("got %q", channels)
	}
	status := decodeStatus(t, channels[remotecommand.StreamErr])
	if status.Reason != "NonZeroExitCode" || len(status.Details.Causes) != 1 || status.Details.Causes[0].Message != "9" {
		t.Errorf("got %+v", status)
	}
}

func TestAttachGetsTheStreamsThatWereAskedFor(t *testing.T) {
	n := streamNode(t)
	n.runtime.containers[0].Config.Stdin = true
	n.runtime.attach = func(_ context.Context, id string, opts sandbox.AttachOptions) error {
		if opts.Stdin != nil {
			_, _ = io.Copy(opts.Stdout, opts.Stdin)
			return errors.New("had input")
		}
		fmt.Fprintf(opts.Stdout, "of %s, %v", id, opts.Stderr == nil)
		return nil
	}
	for _, protocol := range []string{"v4.channel.k8s.io", "v5.channel.k8s.io"} {
		resp, err := n.Attach(testContext(t), &runtime.AttachRequest{ContainerId: "c12", Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		// For a WebSocket the library always makes an input.
		channels := receiveFrames(dialWebSocket(t, resp.Url, protocol))
		if channels[1] != "of c1234, true" || decodeStatus(t, channels[3]).Status != "Success" {
			t.Errorf("%s: got %q", protocol, channels)
		}
	}
	resp, err := n.Attach(testContext(t), &runtime.AttachRequest{ContainerId: "c12", Stdout: true, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	ws := dialWebSocket(t, resp.Url, "v5.channel.k8s.io")
	sendFrame(t, ws, remotecommand.StreamStdIn, "typed")
	sendFrame(t, ws, remotecommand.StreamClose, "\x00")
	channels := receiveFrames(ws)
	if channels[1] != "typed" || !strings.Contains(decodeStatus(t, channels[3]).Message, "had input") {
		t.Errorf("got %q", channels)
	}
}

func TestAttachRequestsAreChecked(t *testing.T) {
	n := streamNode(t)
	for _, test := range []struct {
		name string
		req  *runtime.AttachRequest
		want codes.Code
	}{
		{"no id", &runtime.AttachRequest{Stdout: true}, codes.InvalidArgument},
		{"no stream", &runtime.AttachRequest{ContainerId: "c1234"}, codes.InvalidArgument},
		{"a terminal that is none", &runtime.AttachRequest{ContainerId: "c1234", Stdout: true, Tty: true}, codes.InvalidArgument},
		{"no input to be had", &runtime.AttachRequest{ContainerId: "c1234", Stdin: true}, codes.InvalidArgument},
		{"unknown", &runtime.AttachRequest{ContainerId: "zz", Stdout: true}, codes.NotFound},
		{"not running", &runtime.AttachRequest{ContainerId: "exited", Stdout: true}, codes.FailedPrecondition},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := n.Attach(testContext(t), test.req)
			wantCode(t, err, test.want)
		})
	}
}

func TestPortForwardThroughAWebSocket(t *testing.T) {
	n := streamNode(t)
	path, port := namespaceWithServer(t)
	n.runtime.sandboxes[0].NetNS = path
	resp, err := n.PortForward(testContext(t), &runtime.PortForwardRequest{PodSandboxId: "s1234"})
	if err != nil {
		t.Fatal(err)
	}
	ws := dialWebSocket(t, resp.Url, tunnelPrefix+portforward.ProtocolV1Name)
	ws.PayloadType = websocket.BinaryFrame
	conn, err := spdy.NewClientConnection(ws)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range 2 {
		data, errs := forward(t, httpstream.Connection(conn), port, fmt.Sprint(i))
		if got := readAll(t, data); got != "from inside" {
			t.Errorf("got %q, error %q", got, readAll(t, errs))
		}
		_ = data.Close()
	}
}

func TestTokensAreFewAndExpire(t *testing.T) {
	var tokens streamTokens
	req := &runtime.ExecRequest{}
	first, err := tokens.issue(pathExec, req)
	if err != nil {
		t.Fatal(err)
	}
	if tokens.redeem(pathAttach, first) != nil || tokens.redeem(pathExec, first) != nil {
		t.Error("a token serves another path, or again")
	}
	for range maxTokens {
		if first, err = tokens.issue(pathExec, req); err != nil {
			t.Fatal(err)
		}
	}
	_, err = tokens.issue(pathExec, req)
	wantCode(t, grpcError(t.Context(), err), codes.ResourceExhausted)
	for token, waiting := range tokens.waiting {
		waiting.expires = time.Now().Add(-time.Second)
		tokens.waiting[token] = waiting
	}
	if tokens.redeem(pathExec, first) != nil {
		t.Error("a token serves after its time")
	}
	if _, err := tokens.issue(pathExec, req); err != nil {
		t.Errorf("after the others' time: %v", err)
	}
}

func TestOtherMethodsAreRefused(t *testing.T) {
	n := streamNode(t)
	req, err := http.NewRequestWithContext(testContext(t), http.MethodDelete, n.server.streamBase+"/exec/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("got %s", resp.Status)
	}
}
