package keeperd

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/crilog"
	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// stdioFIFOs are the names of the FIFOs in the bundle. The container has each open O_RDWR: a FIFO whose other end died
// with a keeper neither ends for it nor sends it SIGPIPE.
var outputs = []struct {
	name   string
	stream crilog.Stream
}{{"stdout", crilog.Stdout}, {"stderr", crilog.Stderr}}

// output is a container's log and the pumps that fill it.
type output struct {
	log *crilog.Writer

	mu    sync.Mutex
	pumps []*pump
	// stdin is kept open so that the container never sees an end when an attach ends; nil without stdin.
	stdin  *os.File
	master *os.File // the terminal, or nil
	closed bool
}

// terminal returns the master, or nil; of a nil output too.
func (o *output) terminal() *os.File {
	if o == nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.master
}

// setMaster gives an output its terminal, unless it has one.
func (o *output) setMaster(master *os.File) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.master != nil {
		return false
	}
	o.master = master
	return true
}

// childStdio are the container's ends of its standard streams; with a terminal there are none.
type childStdio struct {
	stdin, stdout, stderr *os.File
	spare                 *os.File // keeps stdin from ending before the keeper has its end
}

func (c *childStdio) close() {
	for _, f := range []*os.File{c.stdin, c.stdout, c.stderr, c.spare} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// openFIFO opens a FIFO as the container is to have it: blocking, and unknown to the poller.
func openFIFO(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// openReader opens a FIFO's read end, of a description of its own. It is blocking, which Go's poller knows nothing of: see
// bell, and the daemon, which keeps such ends and never reads, would wake for each write of the container.
func openReader(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0) // it does not wait for a writer
	if err == nil {
		if err = unix.SetNonblock(fd, false); err != nil {
			_ = unix.Close(fd)
		}
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// makeFIFO makes a FIFO that the container's root may reopen by /proc/self/fd; its init gives it to the container's
// user, which a user namespace only lets it do with a file of its own root.
func makeFIFO(path string, uid, gid int) error {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	return os.Chown(path, uid, gid)
}

// openChildStdio makes the FIFOs of a container and opens its ends. The pumps must be started (startPumps) before the
// container writes, and may be before.
func (k *Keeper) openChildStdio(req *keeper.StartRequest, owner [2]int) (*childStdio, error) {
	c, id := &childStdio{}, req.ID
	if req.Spec.Process.Terminal {
		return c, nil
	}
	slots := map[string]**os.File{"stdout": &c.stdout, "stderr": &c.stderr}
	if req.Stdin {
		slots["stdin"] = &c.stdin
	}
	for name, slot := range slots {
		path := k.layout.fifo(id, name)
		err := makeFIFO(path, owner[0], owner[1])
		if err == nil {
			*slot, err = openFIFO(path)
		}
		if err != nil {
			c.close()
			return nil, fmt.Errorf("make standard streams: %w", err)
		}
	}
	if req.Stdin && req.StdinOnce {
		// A container that holds a write end itself would never see the end. The keeper's own comes first.
		reader, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", c.stdin.Fd()), os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err == nil {
			err = setBlocking(reader)
		}
		if err != nil {
			c.close()
			return nil, fmt.Errorf("make standard streams: %w", err)
		}
		c.spare, c.stdin = c.stdin, reader
	}
	if c.stdin == nil {
		null, err := os.Open(os.DevNull)
		if err != nil {
			c.close()
			return nil, fmt.Errorf("make standard streams: %w", err)
		}
		c.stdin = null
	}
	return c, nil
}

// openOutput opens the keeper's ends of a container's FIFOs, and starts the pumps into log. master is the terminal or
// nil; it and log then belong to the output, also on error.
func (k *Keeper) openOutput(id string, log *crilog.Writer, master *os.File) (*output, error) {
	o := &output{log: log, master: master}
	if master != nil {
		// The pump closes its own copy at the end; the master stays for the daemon.
		fd, err := dup(master)
		if err != nil {
			o.close(0)
			return nil, err
		}
		o.add(k, id, crilog.Stdout, os.NewFile(uintptr(fd), "terminal"), true)
		return o, nil
	}
	for _, s := range outputs {
		f, err := openReader(k.layout.fifo(id, s.name))
		if err != nil {
			o.close(0)
			return nil, fmt.Errorf("open output: %w", err)
		}
		o.add(k, id, s.stream, f, false)
	}
	if f, err := openFIFO(k.layout.fifo(id, "stdin")); err == nil {
		o.stdin = f
	}
	return o, nil
}

func (o *output) add(k *Keeper, id string, stream crilog.Stream, source *os.File, terminal bool) {
	p := &pump{pool: k.logs, stream: stream, source: source, log: o.log}
	p.report = func(err error) { k.log.limited(id, "log of %s: %v", id, err) }
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		_ = source.Close()
		return
	}
	o.pumps = append(o.pumps, p)
	p.start(terminal)
}

// readEnds opens the read ends that the daemon keeps.
func (k *Keeper) readEnds(id string) (files []*os.File) {
	for _, s := range outputs {
		f, err := openReader(k.layout.fifo(id, s.name))
		if err != nil {
			continue
		}
		files = append(files, f)
	}
	return files
}

// close ends the pumps after everything is logged, or after patience where a process that the keeper cannot reach still
// holds a write end.
func (o *output) close(patience time.Duration) {
	deadline := time.Now().Add(patience)
	o.mu.Lock()
	pumps := o.pumps
	o.closed = true
	o.mu.Unlock()
	for _, p := range pumps {
		p.stop(time.Until(deadline))
	}
	// A write that hangs has the log's lock.
	_ = bounded(stopPatience, "close log", o.log.Close)
	o.closeStdin()
	if master := o.terminal(); master != nil {
		_ = master.Close()
	}
}

// closeStdin closes the keeper's end of the container's input.
func (o *output) closeStdin() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stdin != nil {
		_ = o.stdin.Close()
		o.stdin = nil
	}
}
