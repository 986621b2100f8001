package cri

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// What of WebSockets the streaming library does not know, though its clients ask for nothing else: version 5 of the
// protocol for commands, in which a client can end its input, and SPDY inside a WebSocket for ports.

// headerProtocols is where a client names the protocols that it speaks over a WebSocket.
const headerProtocols = "Sec-Websocket-Protocol"

// webSocketProtocol returns the first protocol that the client offers and ok accepts, or "".
func webSocketProtocol(r *http.Request, ok func(string) bool) string {
	if !wsstream.IsWebSocketRequest(r) {
		return ""
	}
	for _, line := range r.Header.Values(headerProtocols) {
		for protocol := range strings.SplitSeq(line, ",") {
			if protocol = strings.TrimSpace(protocol); ok(protocol) {
				return protocol
			}
		}
	}
	return ""
}

func asksForV5(r *http.Request) bool {
	return webSocketProtocol(r, func(p string) bool { return p == remotecommand.StreamProtocolV5Name }) != ""
}

// serveV5 serves an exec or an attach by version 5 of the protocol.
func (s *Server) serveV5(w http.ResponseWriter, r *http.Request, req streamsRequest) {
	channels := make([]wsstream.ChannelType, remotecommand.StreamResize+1)
	for i, wanted := range []bool{req.GetStdin(), req.GetStdout(), req.GetStderr(), true, req.GetTty()} {
		switch {
		case !wanted:
			channels[i] = wsstream.IgnoreChannel
		case i == remotecommand.StreamStdIn, i == remotecommand.StreamResize:
			channels[i] = wsstream.ReadChannel
		default:
			channels[i] = wsstream.WriteChannel
		}
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: channels},
	})
	conn.SetIdleTimeout(s.streamIdle)
	_, streams, err := conn.Open(w, r)
	if err != nil {
		klog.V(3).InfoS("WebSocket could not be opened", "err", err)
		return
	}
	defer conn.Close()
	err = s.runStreams(r.Context(), req, clientStreams{
		in: streams[remotecommand.StreamStdIn], out: streams[remotecommand.StreamStdOut],
		errOut: streams[remotecommand.StreamStdErr],
		resize: decodeSizes(r.Context(), streams[remotecommand.StreamResize]),
	})
	status, err := json.Marshal(newStreamStatus(err))
	if err == nil {
		_, err = streams[remotecommand.StreamErr].Write(status)
	}
	if err != nil {
		klog.V(3).InfoS("Client does not learn how its streams ended", "err", err)
	}
}

// decodeSizes reads the sizes of a terminal until the stream or ctx ends.
func decodeSizes(ctx context.Context, from io.Reader) <-chan remotecommand.TerminalSize {
	sizes := make(chan remotecommand.TerminalSize)
	go func() {
		defer close(sizes)
		for decoder := json.NewDecoder(from); ; {
			var size remotecommand.TerminalSize
			if decoder.Decode(&size) != nil {
				return
			}
			select {
			case sizes <- size:
			case <-ctx.Done():
				return
			}
		}
	}()
	return sizes
}

// streamStatus tells a client how its streams ended: the part of a meta/v1 Status that it looks at.
type streamStatus struct {
	Status  string               `json:"status"`
	Message string               `json:"message,omitempty"`
	Reason  string               `json:"reason,omitempty"`
	Details *streamStatusDetails `json:"details,omitempty"`
	Code    int32                `json:"code,omitempty"`
}

type streamStatusDetails struct {
	Causes []streamStatusCause `json:"causes"`
}

type streamStatusCause struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

func newStreamStatus(err error) streamStatus {
	var exit exitError
	switch {
	case err == nil:
		return streamStatus{Status: "Success"}
	case errors.As(err, &exit):
		return streamStatus{
			Status: "Failure", Reason: remotecommand.NonZeroExitCodeReason,
			Message: fmt.Sprintf("command terminated with non-zero exit code: %v", exit),
			Details: &streamStatusDetails{Causes: []streamStatusCause{{
				Reason: remotecommand.ExitCodeCauseType, Message: strconv.Itoa(exit.ExitStatus()),
			}}},
		}
	}
	return streamStatus{
		Status: "Failure", Reason: "InternalError", Message: err.Error(), Code: http.StatusInternalServerError,
	}
}

// tunnelPrefix begins the names of protocols that are spoken by SPDY inside a WebSocket.
const tunnelPrefix = "SPDY/3.1+"

// tunnelProtocol returns the tunnelled protocol that a client asks for, or "".
func tunnelProtocol(r *http.Request) string {
	return webSocketProtocol(r, func(p string) bool { return strings.HasPrefix(p, tunnelPrefix) })
}

// serveTunnel accepts a WebSocket and has serve speak SPDY through it, as if the client had asked for that.
func serveTunnel(w http.ResponseWriter, r *http.Request, protocol string, serve http.HandlerFunc) {
	accept := func(config *websocket.Config, _ *http.Request) error {
		config.Protocol = []string{protocol}
		return nil
	}
	handle := func(ws *websocket.Conn) {
		ws.PayloadType = websocket.BinaryFrame
		inner := r.Clone(r.Context())
		inner.Header = http.Header{}
		inner.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
		inner.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
		inner.Header.Set(httpstream.HeaderProtocolVersion, strings.TrimPrefix(protocol, tunnelPrefix))
		serve(&tunnelWriter{conn: ws, header: http.Header{}}, inner)
	}
	websocket.Server{Handshake: accept, Handler: handle}.ServeHTTP(w, r)
}

// tunnelWriter is the response to a request that never was one: the upgrade was done before.
type tunnelWriter struct {
	conn   net.Conn
	header http.Header
}

// Header implements http.ResponseWriter.
func (w *tunnelWriter) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter.
func (w *tunnelWriter) WriteHeader(int) {}

// Write implements http.ResponseWriter. There is nowhere to write the text of an error to.
func (w *tunnelWriter) Write(b []byte) (int, error) { return len(b), nil }

// Hijack implements http.Hijacker.
func (w *tunnelWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return w.conn, bufio.NewReadWriter(bufio.NewReader(w.conn), bufio.NewWriter(w.conn)), nil
}
