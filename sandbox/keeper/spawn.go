package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

// SpawnTimeout bounds Spawn whatever the caller's context says, and Connect where that has no deadline. A daemon that
// is told to end waits for a keeper that it spawns, so systemd must wait for longer: TimeoutStopSec of the units is
// more than this and what the daemon then takes to close.
const SpawnTimeout = 30 * time.Second

// VersionError says that the keeper that runs speaks a protocol that this daemon does not. Its containers are alive and
// well: let a daemon of its build drain the node.
type VersionError struct {
	// Keeper and Daemon are the protocol versions of the two sides.
	Keeper, Daemon int
	// PID is the keeper's process id.
	PID int
	// Build is the keeper's build.
	Build string
	// Live is the number of containers and pod inits that live.
	Live int
}

// Error returns the text.
func (e *VersionError) Error() string {
	age := "newer"
	if e.Keeper < e.Daemon {
		age = "older"
	}
	return fmt.Sprintf("keeper (pid %d, build %s) is %s than this daemon: it speaks protocol %d, the daemon %d; it and "+
		"the %d processes that live in it are left alone: run the daemon of its build until they have ended, then this "+
		"one replaces the keeper", e.PID, e.Build, age, e.Keeper, e.Daemon, e.Live)
}

// Is makes the error errdefs.ErrFailedPrecondition.
func (e *VersionError) Is(target error) bool { return target == errdefs.ErrFailedPrecondition }

// Connect says hello to the keeper below stateDir. Another build is fine and told by the reply; a protocol that the
// daemon does not speak is a *VersionError, with the reply. No keeper is errdefs.ErrUnavailable.
func Connect(ctx context.Context, stateDir, build string) (*Client, HelloReply, error) {
	ctx, cancel := deadline(ctx, SpawnTimeout)
	defer cancel()
	c := New(stateDir)
	reply, err := c.Hello(ctx, build)
	if err != nil {
		return nil, reply, fmt.Errorf("connect to keeper: %w", err)
	}
	if reply.Protocol < ProtocolTablePins || reply.Protocol > ProtocolVersion {
		return nil, reply, &VersionError{
			Keeper: reply.Protocol, Daemon: ProtocolVersion, PID: reply.PID, Build: reply.Build, Live: reply.Live,
		}
	}
	return c, reply, nil
}

// Spawn starts the keeper binary for stateDir in a session of its own and returns when it answers. What the keeper
// prints is appended to logPath: never a pipe, whose end would die with this process. The keeper outlives this process.
// What is spawned is the keeper's reaper, which lives as long as the keeper or a container of it does, and ends as the
// keeper did.
// Once it has begun only the deadline of ctx counts: a keeper that is killed half way leaves its mount and its cgroup,
// so a daemon that is told to end waits until it has answered, for SpawnTimeout at most.
//
// Errors: text that says that the binary is missing or not executable, or the last lines that it printed; ctx's when
// that has ended before.
func Spawn(ctx context.Context, binary, stateDir, logPath string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("spawn keeper: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), untilDeadline(ctx))
	defer cancel()
	binary, err := filepath.Abs(binary)
	if err != nil {
		return fmt.Errorf("spawn keeper: %w", err)
	}
	if err := os.MkdirAll(stateDir, 0o711); err != nil {
		return fmt.Errorf("spawn keeper: %w", err)
	}
	logFile, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("spawn keeper: %w", err)
	}
	defer logFile.Close()
	mark, err := logFile.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("spawn keeper: %w", err)
	}
	ready, readyChild, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("spawn keeper: %w", err)
	}
	defer ready.Close()

	cmd := exec.Command(binary, "--state", stateDir, "--ready-fd", "3")
	cmd.Dir = "/"
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", ReaperVariable + "=" + EndsFile(stateDir),
	}
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.ExtraFiles = []*os.File{readyChild}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = readyChild.Close()
	if err != nil {
		return fmt.Errorf("spawn keeper: %w", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }() // also reaps it when it dies later
	if err := awaitReady(ctx, ready); err != nil {
		if ctx.Err() != nil {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // its group: containers have sessions of their own
			return fmt.Errorf("spawn keeper: not ready in time: %w%s", ctx.Err(), lastLines(logPath, mark))
		}
		select {
		case err = <-exited:
		case <-ctx.Done():
		}
		return fmt.Errorf("spawn keeper: %s ended early: %w%s", binary, err, lastLines(logPath, mark))
	}
	return nil
}

// untilDeadline returns how long ctx has, but no more than SpawnTimeout.
func untilDeadline(ctx context.Context) time.Duration {
	if at, ok := ctx.Deadline(); ok {
		return min(time.Until(at), SpawnTimeout)
	}
	return SpawnTimeout
}

// awaitReady returns nil when the keeper said that it listens, an error when the pipe ended without that.
func awaitReady(ctx context.Context, ready *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	said, err := io.ReadAll(ready)
	if err != nil {
		return err
	}
	if !bytes.Equal(said, []byte(ReadyMessage)) {
		return errors.New("no ready message")
	}
	return nil
}

// ReaperVariable is the environment variable that makes the keeper's binary begin as a reaper with the keeper as its
// child. Its value is EndsFile.
const ReaperVariable = "_GANTRY_REAPER"

// ReadyMessage is what the keeper writes to its --ready-fd when it listens.
const ReadyMessage = "ready\n"

// lastLines returns the end of what was printed since mark, for an error text.
func lastLines(path string, mark int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	const most = 1 << 10
	if info, err := f.Stat(); err == nil && info.Size()-mark > most {
		mark = info.Size() - most
	}
	b := make([]byte, most)
	n, _ := f.ReadAt(b, mark)
	b = bytes.TrimSpace(b[:n])
	if len(b) == 0 {
		return ""
	}
	return ": it printed: " + string(b)
}
