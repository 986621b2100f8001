package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	goruntime "runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/gantry-cri/gantry/sandbox"
)

// hostNetworkConfig is of a sandbox whose ports are those of the test itself.
func hostNetworkConfig() *runtime.PodSandboxConfig {
	config := sandboxConfig("web")
	config.Linux = &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE},
	}}
	return config
}

// serveTCP calls handle for each connection to a port that it returns.
func serveTCP(t *testing.T, network, address string, handle func(*net.TCPConn)) int {
	t.Helper()
	listener, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c.(*net.TCPConn))
			}()
		}
	}()
	return listener.Addr().(*net.TCPAddr).Port
}

// forwardConn connects to the port-forward server of a sandbox on the host network.
func forwardConn(t *testing.T) httpstream.Connection {
	t.Helper()
	n := streamNode(t)
	n.runtime.sandboxes[0].Config = hostNetworkConfig()
	resp, err := n.PortForward(testContext(t), &runtime.PortForwardRequest{PodSandboxId: "s12"})
	if err != nil {
		t.Fatal(err)
	}
	return dialSPDY(t, resp.Url, portforward.ProtocolV1Name)
}

// answer reads to the end and only then writes: it works only if the end of one direction is passed on by itself.
func answer(c *net.TCPConn) {
	b, err := io.ReadAll(c)
	if err == nil {
		fmt.Fprintf(c, "%d bytes", len(b))
	}
}

func TestPortForwardPassesHalfCloseOn(t *testing.T) {
	conn := forwardConn(t)
	port := serveTCP(t, "tcp4", "127.0.0.1:0", answer)
	for i := range 3 { // Several connections one after the other by one tunnel.
		data, errs := forward(t, conn, port, fmt.Sprint(i))
		if _, err := io.WriteString(data, strings.Repeat("x", 100_000)); err != nil {
			t.Fatal(err)
		}
		_ = data.Close()
		if got := readAll(t, data); got != "100000 bytes" {
			t.Errorf("connection %d: got %q", i, got)
		}
		if got := readAll(t, errs); got != "" {
			t.Errorf("connection %d: got error %q", i, got)
		}
	}
}

func TestPortForwardTriesIPv6(t *testing.T) {
	if c, err := net.Listen("tcp6", "[::1]:0"); err != nil {
		t.Skipf("the kernel has no IPv6 on loopback: %v", err)
	} else {
		_ = c.Close()
	}
	conn := forwardConn(t)
	data, _ := forward(t, conn, serveTCP(t, "tcp6", "[::1]:0", answer), "1")
	_ = data.Close()
	if got := readAll(t, data); got != "0 bytes" {
		t.Errorf("got %q", got)
	}
}

func TestPortForwardReportsARefusedConnection(t *testing.T) {
	conn := forwardConn(t)
	port := refusingPort(t)
	headers := forwardHeaders(port, "1")
	errs := openStream(t, conn, append(headers, portforward.StreamType, portforward.StreamTypeError)...)
	// The refusal may come before the answer to this, which then is an error: all that counts is the other stream.
	_, _ = conn.CreateStream(streamHeaders(append(headers, portforward.StreamType, portforward.StreamTypeData)...))
	if got := readAll(t, errs); !strings.Contains(got, "connection refused") || !strings.Contains(got, "s1234") {
		t.Errorf("got %q", got)
	}
}

// refusingPort is a port that nobody listens on as long as the test runs: it is bound.
func refusingPort(t *testing.T) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	address, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return address.(*unix.SockaddrInet4).Port
}

// TestBrokenConnectionBreaksNoOther: an error on the error stream would make the client give up the tunnel.
func TestBrokenConnectionBreaksNoOther(t *testing.T) {
	conn := forwardConn(t)
	breaking := serveTCP(t, "tcp4", "127.0.0.1:0", func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 1))
		_ = c.SetLinger(0) // Close then resets.
	})
	data, errs := forward(t, conn, breaking, "1")
	// More than the windows take, so that the writer is stopped at the moment of the reset.
	go func() { _, _ = io.Copy(data, io.LimitReader(zeros{}, 8<<20)) }()
	if got := readAll(t, errs); got != "" {
		t.Errorf("got error %q", got)
	}
	data, _ = forward(t, conn, serveTCP(t, "tcp4", "127.0.0.1:0", answer), "2")
	fmt.Fprint(data, "still here")
	_ = data.Close()
	if got := readAll(t, data); got != "10 bytes" {
		t.Errorf("got %q", got)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestResetByTheClientClosesTheConnection(t *testing.T) {
	conn := forwardConn(t)
	ended := make(chan error, 1)
	port := serveTCP(t, "tcp4", "127.0.0.1:0", func(c *net.TCPConn) {
		_, err := io.Copy(c, zeros{}) // Never reads, so an end is nothing to it.
		ended <- err
	})
	data, _ := forward(t, conn, port, "1")
	if _, err := io.ReadFull(data, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	_ = data.Reset()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("want a write error at the far side")
		}
	case <-time.After(time.Minute):
		t.Error("the far side is still connected")
	}
}

// pipeStream is a stream that is one end of a connection.
type pipeStream struct{ *net.TCPConn }

func (p pipeStream) Close() error { return p.CloseWrite() }

// tcpPair returns both ends of a connection.
func tcpPair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	ends := make(chan *net.TCPConn)
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	port := serveTCP(t, "tcp4", "127.0.0.1:0", func(c *net.TCPConn) { ends <- c; <-done })
	c, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn), <-ends
}

func TestHalfOpenConnectionMayNotIdleForEver(t *testing.T) {
	client, stream := tcpPair(t)
	conn, _ := tcpPair(t)
	_ = client.CloseWrite()
	start := time.Now()
	if err := splice(conn, pipeStream{stream}, 50*time.Millisecond); !errors.Is(err, errIdle) {
		t.Errorf("got %v, want %v", err, errIdle)
	}
	if d := time.Since(start); d < 50*time.Millisecond {
		t.Errorf("took %v, want 50ms at least", d)
	}
}

func TestHalfOpenConnectionThatMovesGoesOn(t *testing.T) {
	// A machine that lets the bytes come late makes an idle connection of it: then the next try has more time.
	for idle := 200 * time.Millisecond; ; idle *= 2 {
		client, stream := tcpPair(t)
		conn, server := tcpPair(t)
		_ = client.CloseWrite()
		gaps := make(chan time.Duration, 1)
		go func() {
			longest, last := time.Duration(0), time.Now()
			for range 10 {
				_, _ = server.Write([]byte("x"))
				time.Sleep(idle / 5)
				longest, last = max(longest, time.Since(last)), time.Now()
			}
			_ = server.Close()
			gaps <- longest
		}()
		err := splice(conn, pipeStream{stream}, idle)
		longest := <-gaps
		if errors.Is(err, errIdle) && longest > idle/2 && idle < time.Minute {
			continue
		}
		if err != nil {
			t.Errorf("with %v between two bytes, and %v to be idle: %v", longest, idle, err)
		}
		if got := readAll(t, client); got != "xxxxxxxxxx" {
			t.Errorf("got %q", got)
		}
		return
	}
}

// TestPortForwardEntersTheSandboxsNamespace listens in a new network namespace, on a port that the test's own has not.
func TestPortForwardEntersTheSandboxsNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	path, port := namespaceWithServer(t)
	status := &sandbox.SandboxStatus{ID: "s1", Config: sandboxConfig("web"), State: sandbox.SandboxReady, NetNS: path}
	namespace, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		conn, err := dialSandbox(context.Background(), status, int32(port))
		if err != nil {
			t.Fatal(err)
		}
		got := readAll(t, conn)
		_ = conn.Close()
		if got != "from inside" {
			t.Errorf("got %q", got)
		}
	}
	inside := threadsInside(t, namespace)
	// But for the one of namespaceWithServer. A thread that ends with its goroutine takes a moment.
	for end := time.Now().Add(time.Minute); inside > 1 && time.Now().Before(end); inside = threadsInside(t, namespace) {
		time.Sleep(time.Millisecond)
	}
	if inside > 1 {
		t.Errorf("%d threads stayed in the sandbox's network namespace", inside-1)
	}
}

// threadsInside counts this process's threads in a network namespace.
func threadsInside(t *testing.T, namespace string) (inside int) {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		// A thread may end meanwhile.
		if ns, err := os.Readlink("/proc/self/task/" + task.Name() + "/ns/net"); err == nil && ns == namespace {
			inside++
		}
	}
	return inside
}

// namespaceWithServer makes a network namespace that lives until the test ends, with loopback up and a server in it.
func namespaceWithServer(t *testing.T) (path string, port int) {
	t.Helper()
	type result struct {
		path string
		port int
		err  error
	}
	results, done := make(chan result), make(chan struct{})
	t.Cleanup(func() { close(done) })
	go func() {
		goruntime.LockOSThread() // And never unlocked: the thread ends with the goroutine, the namespace with it.
		res := result{path: fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())}
		res.err = unix.Unshare(unix.CLONE_NEWNET)
		if res.err == nil {
			res.err = loopbackUp()
		}
		if res.err == nil {
			var listener net.Listener
			if listener, res.err = net.Listen("tcp4", "127.0.0.1:0"); res.err == nil {
				defer listener.Close()
				res.port = listener.Addr().(*net.TCPAddr).Port
				go func() {
					for {
						c, err := listener.Accept()
						if err != nil {
							return
						}
						fmt.Fprint(c, "from inside")
						_ = c.Close()
					}
				}()
			}
		}
		results <- res
		<-done
	}()
	res := <-results
	if res.err != nil {
		t.Fatal(res.err)
	}
	return res.path, res.port
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req)
}

func TestDialSandboxErrors(t *testing.T) {
	inside := &sandbox.SandboxStatus{ID: "s1", Config: sandboxConfig("web"), State: sandbox.SandboxReady}
	if _, err := dialSandbox(t.Context(), inside, 80); err == nil || !strings.Contains(err.Error(), "network namespace") {
		t.Errorf("no namespace: got %v", err)
	}
	if _, err := dialSandbox(t.Context(), inside, 0); err == nil || !strings.Contains(err.Error(), "port is 0") {
		t.Errorf("no port: got %v", err)
	}
	inside.NetNS = t.TempDir() + "/gone"
	if _, err := dialSandbox(t.Context(), inside, 80); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("namespace that is gone: got %v", err)
	}
}
