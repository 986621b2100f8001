package kubelet

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// Result is what came of a command in a container.
type Result struct {
	Stdout, Stderr string
	// Failure is the reason and the message of the status at the end, "" for success.
	Failure string
}

// Exec runs a command in a container over the kubelet's server by SPDY, as kubectl exec does. It sends stdin unless that
// is nil.
func (p *Pod) Exec(ctx context.Context, container string, stdin io.Reader, command ...string) (*Result, error) {
	return p.session(ctx, "exec", container, stdin, command)
}

// Attach attaches to a container's streams until it ends or, without stdin, until ctx is done.
func (p *Pod) Attach(ctx context.Context, container string, stdin io.Reader) (*Result, error) {
	return p.session(ctx, "attach", container, stdin, nil)
}

func (p *Pod) session(ctx context.Context, verb, container string, stdin io.Reader, command []string) (*Result, error) {
	query := url.Values{"output": {"1"}, "error": {"1"}, "command": command}
	if stdin != nil {
		query.Set("input", "1")
	}
	path := fmt.Sprintf("/%s/%s/%s/%s?%s", verb, Namespace, p.Name, container, query.Encode())
	conn, err := p.kubelet.upgrade(ctx, path, remotecommand.StreamProtocolV4Name)
	if err != nil {
		return nil, fmt.Errorf("%s in pod %s: %w", verb, p.Name, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	return converse(conn, stdin)
}

// upgrade opens a connection of streams.
func (k *Kubelet) upgrade(ctx context.Context, path, protocol string) (httpstream.Connection, error) {
	transport, err := spdy.NewRoundTripper(&tls.Config{InsecureSkipVerify: true})
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, k.URL(path), nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set(httpstream.HeaderProtocolVersion, protocol)
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	return transport.NewConnection(response)
}

// converse carries the streams of a command until its status has come.
func converse(conn httpstream.Connection, stdin io.Reader) (*Result, error) {
	kinds := []string{remotecommand.StreamTypeError, remotecommand.StreamTypeStdout, remotecommand.StreamTypeStderr}
	if stdin != nil {
		kinds = append(kinds, remotecommand.StreamTypeStdin)
	}
	streams := make(map[string]httpstream.Stream)
	for _, kind := range kinds {
		stream, err := conn.CreateStream(http.Header{remotecommand.StreamType: {kind}})
		if err != nil {
			return nil, fmt.Errorf("open stream %s: %w", kind, err)
		}
		streams[kind] = stream
	}
	if stdin != nil {
		go func() {
			io.Copy(streams[remotecommand.StreamTypeStdin], stdin)
			streams[remotecommand.StreamTypeStdin].Close()
		}()
	}
	var received [3][]byte
	var reading sync.WaitGroup
	for i, kind := range kinds[:3] {
		reading.Go(func() { received[i], _ = io.ReadAll(streams[kind]) })
	}
	reading.Wait()
	result := &Result{Stdout: string(received[1]), Stderr: string(received[2])}
	var err error
	result.Failure, err = failure(received[0])
	return result, err
}

// failure reads the status at the end of a session.
func failure(body []byte) (string, error) {
	if len(body) == 0 {
		return "", fmt.Errorf("the session ended without a status")
	}
	var status struct {
		Status, Reason, Message string
		Details                 struct {
			Causes []struct{ Reason, Message string }
		}
	}
	if err := json.Unmarshal(body, &status); err != nil {
		return "", fmt.Errorf("read status %q: %w", body, err)
	}
	if status.Status == "Success" {
		return "", nil
	}
	text := status.Reason + ": " + status.Message
	for _, cause := range status.Details.Causes {
		text += fmt.Sprintf(" (%s %s)", cause.Reason, cause.Message)
	}
	return text, nil
}

// Forward sends text to a port of the pod through the kubelet's server and returns all that comes back.
func (p *Pod) Forward(ctx context.Context, port int, text string) (string, error) {
	path := fmt.Sprintf("/portForward/%s/%s", Namespace, p.Name)
	conn, err := p.kubelet.upgrade(ctx, path, portforward.ProtocolV1Name)
	if err != nil {
		return "", fmt.Errorf("forward port of pod %s: %w", p.Name, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	streams := make(map[string]httpstream.Stream)
	for _, kind := range []string{portforward.StreamTypeError, portforward.StreamTypeData} {
		header := http.Header{}
		header.Set(portforward.PortHeader, strconv.Itoa(port))
		header.Set(portforward.PortForwardRequestIDHeader, "0")
		header.Set(portforward.StreamType, kind)
		if streams[kind], err = conn.CreateStream(header); err != nil {
			return "", fmt.Errorf("open stream %s: %w", kind, err)
		}
	}
	streams[portforward.StreamTypeError].Close()
	data := streams[portforward.StreamTypeData]
	if _, err := io.WriteString(data, text); err != nil {
		return "", err
	}
	data.Close()
	answer, err := io.ReadAll(data)
	if err != nil {
		return string(answer), err
	}
	if said, _ := io.ReadAll(streams[portforward.StreamTypeError]); len(said) > 0 {
		return string(answer), fmt.Errorf("forward port: %s", said)
	}
	return string(answer), nil
}
