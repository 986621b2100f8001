package node

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// KeeperSocket is where the keeper listens.
func (n *Node) KeeperSocket() string { return filepath.Join(n.State, "keeper", "keeper.sock") }

// KeeperHello asks the keeper who it is.
func (n *Node) KeeperHello() (*keeper.HelloReply, error) {
	var reply keeper.HelloReply
	request := keeper.HelloRequest{Protocol: keeper.ProtocolVersion, Build: "test"}
	return &reply, n.askKeeper(keeper.VerbHello, request, &reply)
}

// ReaperOf returns the process id of a keeper's parent, which is its reaper; 0 if it has none.
func ReaperOf(keeperPID int) int {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", keeperPID))
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(status), "\nPPid:")
	var parent int
	if _, err := fmt.Sscan(after, &parent); err != nil {
		return 0
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", parent))
	if err != nil || strings.TrimSpace(string(name)) != "gantry-reaper" {
		return 0
	}
	return parent
}

// keeperPatience is how long a keeper may take to exit.
const keeperPatience = time.Minute

// shutdownKeeper ends the keeper if there is one; it refuses while a container lives and is then killed.
func (n *Node) shutdownKeeper() error {
	hello, err := n.KeeperHello()
	if err != nil {
		return n.awaitKeeper() // nobody listens: it may be about to exit, as a daemon that ends tells it to
	}
	if err := n.askKeeper(keeper.VerbShutdown, keeper.ShutdownRequest{}, nil); err != nil {
		syscall.Kill(hello.PID, syscall.SIGKILL)
		return fmt.Errorf("shut keeper down: %w", err)
	}
	if err := n.awaitKeeper(); err != nil {
		syscall.Kill(hello.PID, syscall.SIGKILL)
		return fmt.Errorf("shut keeper down: %w", err)
	}
	return nil
}

// awaitKeeper waits until no keeper holds its lock, which it does as long as it lives.
func (n *Node) awaitKeeper() error {
	lock, err := os.Open(filepath.Join(n.State, "keeper", "lock"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	for deadline := time.Now().Add(keeperPatience); ; time.Sleep(10 * time.Millisecond) {
		if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		if time.Now().After(deadline) {
			return errors.New("the keeper did not exit")
		}
	}
}

// askKeeper sends a request without descriptors and decodes the reply unless it is nil.
func (n *Node) askKeeper(verb keeper.Verb, request, reply any) error {
	conn, err := net.DialTimeout("unix", n.KeeperSocket(), 30*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	if err := writeFrame(conn, keeper.Request{Verb: verb, Body: body}); err != nil {
		return err
	}
	var r keeper.Reply
	if err := readFrame(conn, &r); err != nil {
		return err
	}
	if r.Error != nil {
		return r.Error
	}
	if reply == nil {
		return nil
	}
	return json.Unmarshal(r.Body, reply)
}

// FakeKeeper answers every request on the keeper's socket with a hello of another protocol version, until the listener
// is closed. The socket must not exist.
func (n *Node) FakeKeeper(protocol int) (net.Listener, error) {
	listener, err := net.Listen("unix", n.KeeperSocket())
	if err != nil {
		return nil, fmt.Errorf("listen as keeper: %w", err)
	}
	body, err := json.Marshal(keeper.HelloReply{Protocol: protocol, Build: "fake", PID: 1, Settled: true, Live: 1})
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			var request keeper.Request
			if readFrame(conn, &request) == nil {
				writeFrame(conn, keeper.Reply{Body: body})
			}
			conn.Close()
		}
	}()
	return listener, nil
}

// writeFrame writes a frame without descriptors.
func writeFrame(w io.Writer, message any) error {
	body, err := json.Marshal(message)
	if err != nil {
		return err
	}
	frame := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	frame = binary.BigEndian.AppendUint32(frame, 0)
	_, err = w.Write(append(frame, body...))
	return err
}

func readFrame(r io.Reader, message any) error {
	var header [8]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return fmt.Errorf("read frame: %w", err)
	}
	body := make([]byte, binary.BigEndian.Uint32(header[:4]))
	if _, err := io.ReadFull(r, body); err != nil {
		return fmt.Errorf("read frame: %w", err)
	}
	return json.Unmarshal(body, message)
}
