package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// socketMode lets root and its group in, nobody else: who may speak to the daemon may do anything on the node.
const socketMode = 0o660

// listen opens the daemon's socket. A socket that nobody listens on is replaced; one that somebody does is an error.
// The socket appears under its name with its mode set, and stays when the listener is closed: remove it before.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("make socket directory: %w", err)
	}
	if err := checkStale(path); err != nil {
		return nil, err
	}
	// Bound under another name first: between bind and chmod the mode is whatever the umask says.
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	listener.SetUnlinkOnClose(false)
	err = os.Chmod(fresh, socketMode)
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), listener.Close(), os.Remove(fresh))
	}
	return listener, nil
}

// checkStale returns nil when the name is free or a socket without a listener.
func checkStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at socket: %w", err)
	}
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("listen on %s: there is a file of that name that is no socket", path)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		_ = conn.Close()
		return fmt.Errorf("listen on %s: another process listens there", path)
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, os.ErrNotExist):
		return nil
	}
	// One whose queue is full says EAGAIN.
	return fmt.Errorf("listen on %s: another process seems to listen there: %w", path, err)
}
