//go:build e2e

package kubelet

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"testing"

	"golang.org/x/net/websocket"
)

func TestExecCarriesManyBytes(t *testing.T) {
	t.Parallel()
	p := start(t, `
containers:
- {name: main, image: BUSYBOX, command: [sleep, inf]}`)
	p.running(t)
	data := bytes.Repeat([]byte("0123456789abcdef"), 4<<20/16)
	result, err := p.Exec(timeout(t), "main", bytes.NewReader(data), "cat")
	if err != nil {
		t.Fatal(err)
	}
	if result.Stdout != string(data) {
		t.Errorf("%d bytes came back of %d", len(result.Stdout), len(data))
	}
	wantEqual(t, "failure", result.Failure, "")
	result, err = p.Exec(timeout(t), "main", nil, "/no/such/program")
	if err == nil && result.Failure == "" {
		t.Error("a program that does not exist could be executed")
	}
}

// TestExecByWebSocket speaks version 5, whose streams the kubelet translates for the runtime.
func TestExecByWebSocket(t *testing.T) {
	t.Parallel()
	p := start(t, `
containers:
- {name: main, image: BUSYBOX, command: [sleep, inf]}`)
	p.running(t)
	query := url.Values{"input": {"1"}, "output": {"1"}, "error": {"1"}, "command": {"sh", "-c", "cat; echo bad >&2; exit 3"}}
	path := fmt.Sprintf("/exec/%s/%s/main?%s", Namespace, p.Name, query.Encode())
	config, err := websocket.NewConfig("wss"+strings.TrimPrefix(shared.URL(path), "https"), "https://127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{"v5.channel.k8s.io"}
	config.TlsConfig = &tls.Config{InsecureSkipVerify: true}
	conn, err := config.DialContext(timeout(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const stdin, stdout, stderr, status, closing = 0, 1, 2, 3, 255
	for _, frame := range [][]byte{append([]byte{stdin}, "hello"...), {closing, stdin}} {
		if err := websocket.Message.Send(conn, frame); err != nil {
			t.Fatal(err)
		}
	}
	var received [4]strings.Builder
	for {
		var frame []byte
		if err := websocket.Message.Receive(conn, &frame); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if len(frame) > 0 && frame[0] < 4 {
			received[frame[0]].Write(frame[1:])
		}
	}
	wantEqual(t, "stdout", received[stdout].String(), "hello")
	wantEqual(t, "stderr", received[stderr].String(), "bad\n")
	said, err := failure([]byte(received[status].String()))
	if err != nil {
		t.Fatal(err)
	}
	wantContains(t, "failure", said, "(ExitCode 3)")
}

func TestAttachSendsAndReceives(t *testing.T) {
	t.Parallel()
	p := start(t, `
restartPolicy: Never
containers:
- {name: main, image: BUSYBOX, stdin: true, stdinOnce: true, command: [sh, -c, "tr a-z A-Z; echo end >&2"]}`)
	p.wait(t, "the container", func(s *Status) bool { return s.Container("main").State.Running != nil })
	result, err := p.Attach(timeout(t), "main", strings.NewReader("shout\n"))
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "stdout", result.Stdout, "SHOUT\n")
	wantEqual(t, "stderr", result.Stderr, "end\n")
	wantEqual(t, "phase", p.finished(t).Phase, "Succeeded")
	wantContains(t, "log", p.logs(t, "main"), "SHOUT\n")
}

func TestPortForward(t *testing.T) {
	t.Parallel()
	p := start(t, `
containers:
- {name: main, image: BUSYBOX, command: [httpd, -f, -p, "127.0.0.1:8080", -h, /etc]}`)
	p.running(t)
	var answer string
	eventually(t, "an answer of the server", func() (err error) { // which may not listen yet
		answer, err = p.Forward(timeout(t), 8080, "GET /hostname HTTP/1.0\r\n\r\n")
		return err
	})
	wantContains(t, "answer", answer, "\r\n\r\n"+p.Name)
	if _, err := p.Forward(timeout(t), 8081, "x"); err == nil {
		t.Error("a port that nobody listens on could be forwarded to")
	}
}
