package otlp

import (
	"context"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/gantry-cri/gantry/trace"
)

// memory makes an exporter that keeps the spans.
func memory(sampler sdk.Sampler) (*Exporter, *tracetest.InMemoryExporter) {
	kept := tracetest.NewInMemoryExporter()
	provider := sdk.NewTracerProvider(sdk.WithSyncer(kept), sdk.WithSampler(sampler))
	return &Exporter{provider: provider, tracer: provider.Tracer("test")}, kept
}

func TestStepsBecomeSpans(t *testing.T) {
	e, kept := memory(sdk.AlwaysSample())
	begin := time.Now()
	call := &trace.Call{
		Method: "RunPodSandbox", Subject: trace.Subject{SandboxID: "ab", Pod: "default/web"}, Begin: begin, Took: 10 * time.Second,
		Steps: []trace.Step{
			{Name: "attach network", Parent: -1, Start: time.Second, End: 6 * time.Second},
			{Name: "bridge", Parent: 0, Start: 2 * time.Second, End: 5 * time.Second},
			{Name: "goes on", Parent: -1, Start: 7 * time.Second, End: -1},
			{Name: "began late", Parent: -1, Start: 11 * time.Second, End: -1},
		},
	}
	ctx, rpc := e.tracer.Start(context.Background(), "rpc")
	e.Ended(ctx, call)
	rpc.End()
	spans := map[string]tracetest.SpanStub{}
	for _, s := range kept.GetSpans() {
		spans[s.Name] = s
	}
	for name, want := range map[string]struct {
		parent   string
		from, to time.Duration
	}{
		"attach network": {"rpc", time.Second, 6 * time.Second},
		"bridge":         {"attach network", 2 * time.Second, 5 * time.Second},
		"goes on":        {"rpc", 7 * time.Second, 10 * time.Second},
		"began late":     {"rpc", 11 * time.Second, 11 * time.Second},
	} {
		s := spans[name]
		if s.Parent.SpanID() != spans[want.parent].SpanContext.SpanID() || !s.StartTime.Equal(begin.Add(want.from)) ||
			!s.EndTime.Equal(begin.Add(want.to)) {
			t.Errorf("span %s is from %v to %v below %v, expected %+v",
				name, s.StartTime.Sub(begin), s.EndTime.Sub(begin), s.Parent.SpanID(), want)
		}
	}
	known := attribute.NewSet(spans["rpc"].Attributes...)
	for key, want := range map[attribute.Key]string{
		"gantry.sandbox.id": "ab", "k8s.namespace.name": "default", "k8s.pod.name": "web",
	} {
		if got, _ := known.Value(key); got.AsString() != want {
			t.Errorf("%s is %q, expected %q", key, got.AsString(), want)
		}
	}
	if known.HasValue("container.id") {
		t.Error("a call about no container names one")
	}
}

func TestNothingIsSentOfWhatIsNotSampled(t *testing.T) {
	e, kept := memory(sdk.NeverSample())
	ctx, rpc := e.tracer.Start(context.Background(), "rpc")
	e.Ended(ctx, &trace.Call{Steps: []trace.Step{{Name: "step", Parent: -1}}})
	rpc.End()
	e.Ended(context.Background(), &trace.Call{Steps: []trace.Step{{Name: "step", Parent: -1}}})
	if spans := kept.GetSpans(); len(spans) != 0 {
		t.Errorf("spans are %v, expected none", spans)
	}
}

// A collector that is not there delays nothing and fails nothing.
func TestOpenDoesNotWait(t *testing.T) {
	e, err := Open(t.Context(), Config{Endpoint: "http://127.0.0.1:1", Sampling: 1, Skip: func(string) bool { return false }})
	if err != nil {
		t.Fatal(err)
	}
	_, rpc := e.tracer.Start(t.Context(), "rpc")
	rpc.End()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = e.Close(ctx) // the spans are lost
}
