package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// lockFile is the file, in the root and in the state directory, that the daemon which uses the directory holds locked.
// It contains the daemon's pid, for people and for the message below; the lock is what counts.
const lockFile = "gantryd.lock"

// locks are the locks of the daemon's directories. They end with the process, however it ends; the descriptors are
// closed on exec, so the keeper does not inherit them.
type locks []*os.File

// lockDirs makes the directories and locks each. Another daemon in one of them is an error that names its pid.
func lockDirs(dirs ...string) (locks, error) {
	var held locks
	for _, dir := range dirs {
		f, err := lockDir(dir)
		if err != nil {
			held.release()
			return nil, err
		}
		held = append(held, f)
	}
	return held, nil
}

// release gives the directories up. The files stay: removing a lock file lets two processes lock two files of one name.
func (l locks) release() {
	for _, f := range l {
		_ = f.Close()
	}
}

func lockDir(dir string) (*os.File, error) {
	// Others may pass through, not look: processes in user namespaces reach their own files below.
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	name := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: in use by another gantryd%s", dir, holder(name))
		}
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	// Written over, then cut: a reader meanwhile sees a pid, not an empty file. Padded to cover a longer one.
	if _, err := f.WriteAt(fmt.Appendf(nil, "%-10d\n", os.Getpid()), 0); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("write %s: %w", name, err)
	}
	return f, nil
}

// holder says in parentheses which process wrote the lock file, or nothing when it does not say.
func holder(name string) string {
	text, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" (pid %d)", pid)
}
