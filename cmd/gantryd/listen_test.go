package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

func TestSocketIsForRootAndItsGroup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "s.sock")
	old := syscall.Umask(0) // the mode must not depend on it
	defer syscall.Umask(old)
	listener, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	info, err := os.Stat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o660 {
		t.Errorf("mode %v, error %v", info.Mode(), err)
	}
	if dir, err := os.Stat(filepath.Dir(path)); err != nil || dir.Mode().Perm() != 0o711 {
		t.Errorf("directory mode %v, error %v", dir.Mode(), err)
	}
	if _, err := os.Lstat(path + ".new"); !os.IsNotExist(err) {
		t.Errorf("temporary name is left: %v", err)
	}
}

func TestStaleSocketIsReplacedAndALiveOneIsNot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	first, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listen(path); err == nil || !strings.Contains(err.Error(), "another process listens") {
		t.Errorf("live socket: error %v", err)
	}
	_ = first.Close() // what is left is what a killed daemon leaves
	second, err := listen(path)
	if err != nil {
		t.Fatalf("stale socket: %v", err)
	}
	defer second.Close()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
}

func TestFileInPlaceOfTheSocketIsKept(t *testing.T) {
	path := write(t, filepath.Join(t.TempDir(), "s.sock"), "precious")
	if _, err := listen(path); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("error %v", err)
	}
	if text, _ := os.ReadFile(path); string(text) != "precious" {
		t.Errorf("file has %q", text)
	}
}

// slowHealth holds every call until it is released or its context ends.
type slowHealth struct {
	*health.Server
	begun   chan struct{}
	release chan struct{}
}

func (s *slowHealth) Check(ctx context.Context, _ *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	s.begun <- struct{}{}
	select {
	case <-s.release:
		return &healthpb.HealthCheckResponse{}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func TestEndDrainsCallsAndRemovesTheSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	notified := listenNotify(t)
	listener, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	slow := &slowHealth{health.NewServer(), make(chan struct{}), make(chan struct{})}
	healthpb.RegisterHealthServer(server, slow)
	ctx, end := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- serveSocket(ctx, server, listener, path) }()

	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answered := make(chan error, 1)
	go func() {
		_, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
		answered <- err
	}()
	<-slow.begun
	end()
	select {
	case err := <-served:
		t.Fatalf("ended before the call did: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	close(slow.release)
	if err := <-answered; err != nil {
		t.Errorf("call that ran: %v", err)
	}
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("socket is left: %v", err)
	}
	for _, want := range []string{"READY=1", "STOPPING=1"} {
		if got := <-notified; got != want {
			t.Errorf("systemd was told %q, expected %q", got, want)
		}
	}
}

func TestDrainHasADeadline(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	listener, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	slow := &slowHealth{health.NewServer(), make(chan struct{}), make(chan struct{})}
	healthpb.RegisterHealthServer(server, slow)
	go func() { _ = server.Serve(listener) }()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() { _, _ = healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}) }()
	<-slow.begun
	start := time.Now()
	drain(server, 50*time.Millisecond)
	if took := time.Since(start); took < 50*time.Millisecond {
		t.Errorf("drain took %v", took)
	}
}

// listenNotify is systemd's end of sd_notify.
func listenNotify(t *testing.T) <-chan string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	messages := make(chan string, 10)
	go func() {
		buffer := make([]byte, 1024)
		for {
			n, err := conn.Read(buffer)
			if err != nil {
				return
			}
			messages <- string(buffer[:n])
		}
	}()
	return messages
}
