// Package otlp sends what is called of the daemon, and the steps of pods' starts, as OpenTelemetry spans to a collector
// that speaks OTLP over gRPC. The caller's trace context comes with the call, as the kubelet sends it.
//
// It takes no time itself: the steps are those of package trace. It is the only importer of OpenTelemetry.
package otlp

import (
	"context"
	"fmt"
	"path"
	"strings"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	otrace "go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/trace"
)

// serviceName is what the spans say that they are of.
const serviceName = "gantryd"

// Config says where spans go.
type Config struct {
	// Endpoint is the collector's URL: http:// or https://, host and port.
	Endpoint string
	// Sampling is which part of the calls is sent that come without a decision of their caller, from 0 to 1.
	Sampling float64
	// Version is the daemon's.
	Version string
	// Skip says which methods are never sent, by the last part of their names. It must not wait.
	Skip func(method string) bool
}

// Exporter sends spans. Its methods may be called from several goroutines.
type Exporter struct {
	provider *sdk.TracerProvider
	tracer   otrace.Tracer
	skip     func(string) bool
}

// Open makes an exporter. It does not wait for a connection: a collector that is not there is a line in the log each
// time that spans are lost. Errors: an endpoint that is no URL.
func Open(ctx context.Context, config Config) (*Exporter, error) {
	client, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpointURL(config.Endpoint))
	if err != nil {
		return nil, fmt.Errorf("export spans to %s: %w", config.Endpoint, err)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		klog.ErrorS(err, "Spans could not be sent", "endpoint", config.Endpoint)
	}))
	provider := sdk.NewTracerProvider(
		sdk.WithBatcher(client),
		sdk.WithSampler(sdk.ParentBased(sdk.TraceIDRatioBased(config.Sampling))),
		sdk.WithResource(resource.NewSchemaless(
			attribute.String("service.name", serviceName), attribute.String("service.version", config.Version))),
	)
	return &Exporter{provider: provider, tracer: provider.Tracer("github.com/gantry-cri/gantry"), skip: config.Skip}, nil
}

// ServerOption makes a gRPC server begin a span for each call, below the caller's if there is one.
func (e *Exporter) ServerOption() grpc.ServerOption {
	return grpc.StatsHandler(otelgrpc.NewServerHandler(
		otelgrpc.WithTracerProvider(e.provider),
		otelgrpc.WithMeterProvider(noop.NewMeterProvider()),
		otelgrpc.WithPropagators(propagation.TraceContext{}),
		otelgrpc.WithFilter(func(call *stats.RPCTagInfo) bool { return !e.skip(path.Base(call.FullMethodName)) }),
	))
}

// Ended sends the steps of a call as spans below that of the call, which ctx carries. It suits trace.NewLog.
func (e *Exporter) Ended(ctx context.Context, call *trace.Call) {
	span := otrace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return
	}
	span.SetAttributes(attributes(&call.Subject)...)
	within := make([]context.Context, len(call.Steps))
	for i, step := range call.Steps {
		parent := ctx
		if step.Parent >= 0 {
			parent = within[step.Parent]
		}
		end := step.End
		if end < 0 { // it goes on after the answer; nobody will hear of its end
			end = max(call.Took, step.Start)
		}
		var child otrace.Span
		within[i], child = e.tracer.Start(parent, step.Name, otrace.WithTimestamp(call.Begin.Add(step.Start)))
		child.End(otrace.WithTimestamp(call.Begin.Add(end)))
	}
}

// attributes say what a call was about, in the words of OpenTelemetry's conventions where there are any.
func attributes(s *trace.Subject) []attribute.KeyValue {
	namespace, name, _ := strings.Cut(s.Pod, "/")
	var known []attribute.KeyValue
	for _, a := range []struct{ key, value string }{
		{"gantry.sandbox.id", s.SandboxID}, {"k8s.namespace.name", namespace}, {"k8s.pod.name", name},
		{"container.id", s.ContainerID}, {"k8s.container.name", s.Container},
	} {
		if a.value != "" {
			known = append(known, attribute.String(a.key, a.value))
		}
	}
	return known
}

// Close sends what waits to be sent, within ctx.
func (e *Exporter) Close(ctx context.Context) error { return e.provider.Shutdown(ctx) }
