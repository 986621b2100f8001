package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/cri/operator"
)

const (
	// dialTimeout bounds the attempt to reach the daemon.
	dialTimeout = 3 * time.Second
	// callTimeout bounds a call that reads or changes a name. Transfers have none: the operator interrupts.
	callTimeout = 30 * time.Second
	// maxMessage is the largest answer in bytes, as the daemon has it.
	maxMessage = 16 << 20
)

// connector connects to the daemon at an address.
type connector struct{ address string }

// daemonClient is a connection with a daemon that answered.
type daemonClient struct {
	conn     *grpc.ClientConn
	operator operator.OperatorClient
	runtime  runtime.RuntimeServiceClient
	images   runtime.ImageServiceClient
}

// connect connects to the daemon. An address where nobody listens is an error that says so.
func (c *connector) connect(ctx context.Context) (*daemonClient, error) {
	path, ok := strings.CutPrefix(c.address, "unix://")
	if !ok || !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("address %q, expected unix:// and an absolute path", c.address)
	}
	// gRPC connects when it likes and retries; who asks at a terminal wants to know now.
	dialer := net.Dialer{Timeout: dialTimeout}
	probe, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, c.unreachable(err)
	}
	_ = probe.Close()
	conn, err := grpc.NewClient("unix://"+path,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)))
	if err != nil {
		return nil, c.unreachable(err)
	}
	return &daemonClient{
		conn:     conn,
		operator: operator.NewOperatorClient(conn),
		runtime:  runtime.NewRuntimeServiceClient(conn),
		images:   runtime.NewImageServiceClient(conn),
	}, nil
}

func (c *connector) unreachable(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err // the address is in the text already
	}
	return fmt.Errorf("cannot reach gantryd at %s: is it running? (%w)", c.address, err)
}

// with connects, calls do and disconnects.
func (c *connector) with(ctx context.Context, do func(*daemonClient) error) error {
	client, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer client.conn.Close()
	return do(client)
}

// describe returns the text of an error for people: without gRPC's wrapping.
func describe(err error) string {
	var s interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &s) {
		return err.Error()
	}
	inner, ok := s.(error)
	if !ok {
		return err.Error()
	}
	return strings.Replace(err.Error(), inner.Error(), s.GRPCStatus().Message(), 1)
}
