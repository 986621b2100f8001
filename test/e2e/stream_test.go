//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/gantry-cri/gantry/test/e2e/node"
)

// transports are how crictl may speak to the streaming server.
var transports = []string{"spdy", "websocket"}

// streamsOf runs a streaming command of crictl and returns its standard output; its standard error is part of err.
func streamsOf(t *testing.T, n *node.Node, stdin io.Reader, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(timeout(t), filepath.Join(n.Tools, "crictl"), append(n.CrictlArgs(), args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("crictl %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// session is a connection of the SPDY protocol with its streams, by type.
type session struct {
	conn    httpstream.Connection
	streams map[string]httpstream.Stream

	mu     sync.Mutex
	out    strings.Builder
	closed chan struct{} // when the output has ended
}

// dial connects to an address that the runtime gave out.
func dial(t *testing.T, url, protocol string) httpstream.Connection {
	t.Helper()
	transport, err := spdy.NewRoundTripper(nil)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(timeout(t), http.MethodPost, url, nil)
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
	t.Cleanup(func() { conn.Close() })
	return conn
}

// openSession opens the streams at an address and collects what comes from stdout.
func openSession(t *testing.T, url string, kinds ...string) *session {
	t.Helper()
	s := &session{
		conn: dial(t, url, remotecommand.StreamProtocolV4Name), streams: map[string]httpstream.Stream{},
		closed: make(chan struct{}),
	}
	for _, kind := range append(kinds, remotecommand.StreamTypeError) {
		stream, err := s.conn.CreateStream(http.Header{remotecommand.StreamType: {kind}})
		if err != nil {
			t.Fatal(err)
		}
		s.streams[kind] = stream
	}
	go func() {
		defer close(s.closed)
		if s.streams["stdout"] == nil {
			return
		}
		b := make([]byte, 32<<10)
		for {
			n, err := s.streams["stdout"].Read(b)
			s.mu.Lock()
			s.out.Write(b[:n])
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return s
}

func (s *session) output() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.String()
}

// result waits for the end and returns the status that the client gets: "" for success, else reason and message.
func (s *session) result(t *testing.T) string {
	t.Helper()
	read := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(s.streams["error"])
		read <- b
	}()
	var status struct {
		Status, Reason, Message string
		Details                 struct {
			Causes []struct{ Reason, Message string }
		}
	}
	select {
	case b := <-read:
		if err := json.Unmarshal(b, &status); err != nil {
			t.Fatalf("status %q: %v", b, err)
		}
	case <-time.After(callTimeout):
		t.Fatal("the session does not end")
	}
	<-s.closed
	if status.Status == "Success" {
		return ""
	}
	for _, cause := range status.Details.Causes {
		return cause.Reason + " " + cause.Message
	}
	return status.Reason + " " + status.Message
}

// execStreams runs a shell script in the container with streams.
func (c *container) execStreams(t *testing.T, tty bool, scriptText string, kinds ...string) *session {
	t.Helper()
	req := &runtime.ExecRequest{ContainerId: c.id, Cmd: []string{"sh", "-c", scriptText}, Tty: tty}
	for _, kind := range kinds {
		req.Stdin, req.Stdout, req.Stderr = req.Stdin || kind == "stdin", req.Stdout || kind == "stdout", req.Stderr || kind == "stderr"
	}
	resp, err := c.node.Runtime.Exec(timeout(t), req)
	if err != nil {
		t.Fatal(err)
	}
	return openSession(t, resp.Url, kinds...)
}

func (s *session) write(t *testing.T, kind, text string) {
	t.Helper()
	if _, err := io.WriteString(s.streams[kind], text); err != nil {
		t.Fatalf("write to %s: %v", kind, err)
	}
}

func (s *session) wait(t *testing.T, text string) {
	t.Helper()
	eventually(t, fmt.Sprintf("client gets %q", text), func() bool { return strings.Contains(s.output(), text) })
}

func TestExecStreamsArriveWhole(t *testing.T) {
	c := runPod(t).start(t, "c", "sleep 1000")
	// More than a pipe and a window of the protocols hold.
	input := strings.Repeat("0123456789abcdef", 20_000)
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			run := func(stdin, scriptText string) string {
				t.Helper()
				out, err := streamsOf(t, shared, strings.NewReader(stdin), "exec", "-r", transport, "-i", c.id, "sh", "-c", scriptText)
				if err != nil {
					t.Error(err)
				}
				return out
			}
			if got := run(input, "cat"); got != input {
				t.Errorf("got %d bytes back, sent %d", len(got), len(input))
			}
			// The end of an output is not the end of the input, nor the other way round.
			run(input, "exec >&- 2>&-; sleep 0.3; cat >/tmp/"+transport)
			wantEqual(t, "bytes of input after the outputs ended", c.exec(t, "wc -c </tmp/"+transport), fmt.Sprint(len(input)))
			if got := run("", "cat; sleep 0.3; head -c 320000 /dev/zero"); len(got) != 320_000 {
				t.Errorf("got %d bytes of output after the end of the input, expected 320000", len(got))
			}
			// A command that does not want its input does not hold up its output.
			if got := run(input, "exec <&-; sleep 0.3; head -c 320000 /dev/zero"); len(got) != 320_000 {
				t.Errorf("got %d bytes of output of a command that closed its input, expected 320000", len(got))
			}
		})
	}
}

func TestExecWithStreamsEndsWithItsProcess(t *testing.T) {
	c := runPod(t).start(t, "c", "sleep 1000")
	wantEqual(t, "result", c.execStreams(t, false, "echo x; exit 42", "stdout").result(t), "ExitCode 42")
	wantEqual(t, "result of a killed process", c.execStreams(t, false, "kill -9 $$", "stdout").result(t), "ExitCode 137")
	wantEqual(t, "result of success", c.execStreams(t, false, "true", "stdout", "stderr").result(t), "")
	s := c.execStreams(t, false, "sleep 3000 & echo started", "stdin", "stdout")
	wantEqual(t, "result with a child left", s.result(t), "")
	wantEqual(t, "output with a child left", s.output(), "started\n")
	for _, transport := range transports {
		if _, err := streamsOf(t, shared, nil, "exec", "-r", transport, c.id, "sh", "-c", "exit 43"); err == nil || !strings.Contains(err.Error(), "43") {
			t.Errorf("%s: exit code 43 is told as: %v", transport, err)
		}
	}
}

func TestExecDiesWithItsClient(t *testing.T) {
	c := runPod(t).start(t, "c", "sleep 1000")
	s := c.execStreams(t, false, "nohup sleep 4217 & echo up; sleep 4218", "stdout")
	s.wait(t, "up")
	s.conn.Close()
	eventually(t, "the command and its child are gone", func() bool {
		return len(processesWith(t, "4217")) == 0 && len(processesWith(t, "4218")) == 0
	})
	wantEqual(t, "container state", c.status(t).State, runtime.ContainerState_CONTAINER_RUNNING)
}

func TestExecTerminalIsResized(t *testing.T) {
	c := runPod(t).start(t, "c", "sleep 1000")
	s := c.execStreams(t, true, "echo term $TERM; while read line; do stty size; done", "stdin", "stdout", "resize")
	s.write(t, "resize", `{"Width":91,"Height":17}`)
	s.wait(t, "term xterm")
	for _, size := range []string{"17 91", "18 92"} {
		eventually(t, "size is "+size, func() bool {
			s.write(t, "stdin", "\n")
			time.Sleep(20 * time.Millisecond)
			return strings.Contains(s.output(), size)
		})
		s.write(t, "resize", `{"Width":92,"Height":18}`)
	}
	s.write(t, "stdin", "\x04")
	wantEqual(t, "result", s.result(t), "")
}

func TestStreamAddressIsForOneUse(t *testing.T) {
	c := runPod(t).start(t, "c", "sleep 1000")
	resp, err := shared.Runtime.Exec(timeout(t), &runtime.ExecRequest{ContainerId: c.id, Cmd: []string{"true"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "result", openSession(t, resp.Url, "stdout").result(t), "")
	for _, url := range []string{resp.Url, resp.Url[:strings.LastIndex(resp.Url, "/")] + "/guess"} {
		got, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		got.Body.Close()
		wantEqual(t, "status of a used or unknown address", got.StatusCode, http.StatusNotFound)
	}
}

func TestStreamsOverTLS(t *testing.T) {
	n, err := newNode("tls", func(o *node.Options) { o.Config = "[stream]\ntls = \"self-signed\"\n" })
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	c := runPodOn(t, n, podConfig(t, n, "")).start(t, "c", "sleep 1000")
	resp, err := n.Runtime.Exec(timeout(t), &runtime.ExecRequest{ContainerId: c.id, Cmd: []string{"true"}, Stdout: true})
	if err != nil || !strings.HasPrefix(resp.Url, "https://127.0.0.1:") {
		t.Errorf("address is %q: %v", resp.GetUrl(), err)
	}
	for _, transport := range transports {
		out, err := streamsOf(t, n, strings.NewReader("by "+transport), "exec", "-r", transport, "-i", c.id, "cat")
		if err != nil || out != "by "+transport {
			t.Errorf("%s: got %q: %v", transport, out, err)
		}
	}
}

// forwarded opens one connection of a tunnel to a port.
func forwarded(t *testing.T, conn httpstream.Connection, id string, port int) httpstream.Stream {
	t.Helper()
	headers := http.Header{}
	headers.Set(portforward.PortHeader, fmt.Sprint(port))
	headers.Set(portforward.PortForwardRequestIDHeader, id)
	headers.Set(portforward.StreamType, portforward.StreamTypeError)
	errs, err := conn.CreateStream(headers)
	if err != nil {
		t.Fatal(err)
	}
	errs.Close()
	headers.Set(portforward.StreamType, portforward.StreamTypeData)
	data, err := conn.CreateStream(headers)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestPortForwardTunnel(t *testing.T) {
	p := runPod(t, func(c *runtime.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_NODE
	})
	listen := func(serve func(*net.TCPConn)) int {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go serve(c.(*net.TCPConn))
			}
		}()
		return l.Addr().(*net.TCPAddr).Port
	}
	// One answers when the client has said all, which takes a half-closed connection; one breaks off.
	count := listen(func(c *net.TCPConn) {
		defer c.Close()
		n, _ := io.Copy(io.Discard, c)
		fmt.Fprintf(c, "%d bytes", n)
	})
	breaks := listen(func(c *net.TCPConn) {
		c.SetLinger(0)
		c.Read(make([]byte, 1))
		c.Close()
	})
	resp, err := shared.Runtime.PortForward(timeout(t), &runtime.PortForwardRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatal(err)
	}
	conn := dial(t, resp.Url, portforward.ProtocolV1Name)
	slow := forwarded(t, conn, "slow", count)
	fmt.Fprint(slow, "some")

	broken := forwarded(t, conn, "broken", breaks)
	fmt.Fprint(broken, "x")
	io.ReadAll(broken)
	for range 50 { // into a connection that is no more
		if _, err := broken.Write(make([]byte, 10_000)); err != nil {
			break
		}
	}
	var answers sync.WaitGroup
	for i := range 5 {
		answers.Go(func() {
			s := forwarded(t, conn, fmt.Sprint(i), count)
			io.WriteString(s, strings.Repeat("y", 300_000+i))
			s.Close()
			b, _ := io.ReadAll(s)
			wantEqual(t, "answer", string(b), fmt.Sprintf("%d bytes", 300_000+i))
		})
	}
	answers.Wait()
	fmt.Fprint(slow, "more")
	slow.Close()
	b, _ := io.ReadAll(slow)
	wantEqual(t, "answer on the first connection", string(b), "8 bytes")
}
