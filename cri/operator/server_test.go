package operator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/gantry-cri/gantry/trace"
)

// fakeImages is an image store whose behaviour a test sets.
type fakeImages struct {
	Images
	pull    func(ctx context.Context, progress func(*BlobProgress)) (string, error)
	archive []byte
	pinned  bool
	tags    map[string]string
}

func (f *fakeImages) Pull(
	ctx context.Context, ref string, c Credentials, progress func(*BlobProgress),
) (string, error) {
	if ref == "secret" && c != (Credentials{"me", "pass"}) {
		return "", fmt.Errorf("pull secret: %w", errdefs.ErrUnauthenticated)
	}
	return f.pull(ctx, progress)
}

func (f *fakeImages) Import(_ context.Context, r io.Reader) ([]string, error) {
	got, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(got, f.archive) {
		return nil, fmt.Errorf("archive differs after %d bytes: %w", len(got), errdefs.ErrInvalidArgument)
	}
	return []string{"a:1", "b:2"}, nil
}

func (f *fakeImages) Export(_ context.Context, w io.Writer, refs []string) error {
	if !slices.Equal(refs, []string{"a:1"}) {
		return fmt.Errorf("image %v: %w", refs, errdefs.ErrNotFound)
	}
	_, err := w.Write(f.archive)
	return err
}

func (f *fakeImages) Tag(_ context.Context, source, target string) error {
	f.tags[target] = source
	return nil
}

func (f *fakeImages) Pin(_ context.Context, ref string, pinned bool) error {
	if ref != "a" {
		return fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
	}
	f.pinned = pinned
	return nil
}

// dial serves images on a unix socket, with errors mapped as the daemon's interceptors do, and returns a client.
func dial(t *testing.T, images Images) OperatorClient {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.StreamInterceptor(
		func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			return errgrpc.ToGRPC(h(srv, ss))
		}))
	New(images, testTimelines(t), func(context.Context) *InfoResponse { return &InfoResponse{Version: "v1.2.3", Pid: 7} }).Register(server)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return NewOperatorClient(conn)
}

// testTimelines has one of a container that could not be started.
func testTimelines(t *testing.T) *trace.Log {
	log := trace.NewLog(nil)
	ctx, end := log.Begin(t.Context(), "StartContainer")
	trace.About(ctx, trace.Subject{SandboxID: "abcd", Pod: "default/web", ContainerID: "ef", Container: "main"})
	inner, ask := trace.Start(ctx, "ask the keeper")
	now := trace.Monotonic()
	trace.Insert(inner, []trace.Stamped{{Name: "write record", From: now, To: now}})
	_, _ = trace.Start(ctx, "goes on")
	ask.End()
	end(errors.New("no such file"))
	return log
}

// drainPull returns the last report on each blob and the image id.
func drainPull(t *testing.T, c OperatorClient, req *PullRequest) (map[string]*BlobProgress, string, error) {
	t.Helper()
	stream, err := c.Pull(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	last := map[string]*BlobProgress{}
	for id := ""; ; {
		p, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return last, id, nil
		}
		if err != nil {
			return last, id, errgrpc.ToNative(err)
		}
		if id != "" {
			t.Errorf("message after the one with the image id: %v", p)
		}
		id = p.GetImageId()
		for _, b := range p.GetBlobs() {
			last[b.GetDigest()] = b
		}
	}
}

func TestPullReportsEveryBlobToTheEnd(t *testing.T) {
	images := &fakeImages{pull: func(_ context.Context, progress func(*BlobProgress)) (string, error) {
		for i := range int64(2000) {
			state := BlobProgress_DOWNLOADING
			if i == 1999 {
				state = BlobProgress_DONE
			}
			progress(&BlobProgress{Digest: fmt.Sprint("d", i%2), State: state, Offset: i, Total: 1999})
			if i == 1000 {
				time.Sleep(3 * progressPeriod / 2)
			}
		}
		return "sha256:abc", nil
	}}
	last, id, err := drainPull(t, dial(t, images), &PullRequest{Ref: "a"})
	if err != nil || id != "sha256:abc" {
		t.Fatalf("id %q, error %v", id, err)
	}
	if last["d1"].GetOffset() != 1999 || last["d1"].GetState() != BlobProgress_DONE || last["d0"].GetOffset() != 1998 {
		t.Errorf("last reports: %v", last)
	}
}

func TestPullErrorsKeepTheirKind(t *testing.T) {
	images := &fakeImages{pull: func(context.Context, func(*BlobProgress)) (string, error) {
		return "", fmt.Errorf("pull a: %w", errdefs.ErrNotFound)
	}}
	client := dial(t, images)
	for _, c := range []struct {
		req  *PullRequest
		kind error
	}{
		{&PullRequest{}, errdefs.ErrInvalidArgument},
		{&PullRequest{Ref: "a"}, errdefs.ErrNotFound},
		{&PullRequest{Ref: "secret", Username: "me", Password: "wrong"}, errdefs.ErrUnauthenticated},
		{&PullRequest{Ref: "secret", Username: "me", Password: "pass"}, errdefs.ErrNotFound},
	} {
		if _, _, err := drainPull(t, client, c.req); !errors.Is(err, c.kind) {
			t.Errorf("%v: error %v, expected %v", c.req.GetRef(), err, c.kind)
		}
	}
}

func TestPullEndsWhenTheClientLeaves(t *testing.T) {
	ended := make(chan error, 1)
	images := &fakeImages{pull: func(ctx context.Context, progress func(*BlobProgress)) (string, error) {
		progress(&BlobProgress{Digest: "d", Offset: 1})
		<-ctx.Done()
		ended <- ctx.Err()
		return "", ctx.Err()
	}}
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := dial(t, images).Pull(ctx, &PullRequest{Ref: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("pull ended with %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the pull goes on without a client")
	}
}

func TestArchivesTravelWhole(t *testing.T) {
	archive := bytes.Repeat([]byte("0123456789abcdef"), 100_000) // several chunks, the last one partial
	client := dial(t, &fakeImages{archive: archive})

	out, err := client.Export(t.Context(), &ExportRequest{Refs: []string{"a:1"}})
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	for {
		chunk, err := out.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, chunk.GetData()...)
	}
	if !bytes.Equal(got, archive) {
		t.Errorf("export gave %d bytes, expected %d", len(got), len(archive))
	}

	in, err := client.Import(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for chunk := range slices.Chunk(archive, 99_999) {
		if err := in.Send(&ImportChunk{Data: chunk}); err != nil {
			t.Fatal(err)
		}
	}
	reply, err := in.CloseAndRecv()
	if err != nil || !slices.Equal(reply.GetRefs(), []string{"a:1", "b:2"}) {
		t.Errorf("import gave %v, %v", reply, err)
	}
}

func TestExportOfNothingIsRefused(t *testing.T) {
	out, err := dial(t, &fakeImages{}).Export(t.Context(), &ExportRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = out.Recv()
	err = errgrpc.ToNative(err)
	if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "refs") {
		t.Errorf("error %v", err)
	}
}

func TestTrace(t *testing.T) {
	client := dial(t, &fakeImages{})
	got, err := client.Trace(t.Context(), &TraceRequest{Pod: "abc"})
	if err != nil {
		t.Fatal(err)
	}
	if got.GetId() != "abcd" || got.GetPod() != "default/web" || len(got.GetCalls()) != 1 {
		t.Fatalf("timeline is %v", got)
	}
	call := got.GetCalls()[0]
	if call.GetMethod() != "StartContainer" || call.GetContainerId() != "ef" || call.GetContainer() != "main" ||
		call.GetError() != "no such file" || call.GetDuration() <= 0 || call.GetBegin() <= 0 {
		t.Errorf("call is %v", call)
	}
	steps := call.GetSteps()
	if len(steps) != 3 || steps[0].GetParent() != 0 || steps[1].GetParent() != 1 || steps[2].GetParent() != 0 ||
		steps[0].GetDuration() < steps[1].GetDuration() || steps[2].GetDuration() != -1 || steps[1].GetName() != "write record" {
		t.Errorf("steps are %v", steps)
	}
	if _, err := client.Trace(t.Context(), &TraceRequest{Pod: "x"}); err == nil {
		t.Error("a pod that never was has a timeline")
	}
}

func TestTagAndInfo(t *testing.T) {
	images := &fakeImages{tags: map[string]string{}}
	client := dial(t, images)
	if _, err := client.Tag(t.Context(), &TagRequest{Source: "a", Target: "b"}); err != nil || images.tags["b"] != "a" {
		t.Errorf("tags %v, error %v", images.tags, err)
	}
	if _, err := client.Pin(t.Context(), &PinRequest{Ref: "a", Pinned: true}); err != nil || !images.pinned {
		t.Errorf("pinned %t, error %v", images.pinned, err)
	}
	info, err := client.Info(t.Context(), &InfoRequest{})
	if err != nil || info.GetVersion() != "v1.2.3" || info.GetPid() != 7 {
		t.Errorf("info %v, error %v", info, err)
	}
}
