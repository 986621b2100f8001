// Package crilog writes container logs in the format of the CRI:
//
//	2026-11-21T00:00:00.123456789Z stdout F a whole line
//	2026-11-21T00:00:00.123456789Z stderr P a part of a line that goes on in the next record
//
// It knows the format and the file. It reads no container output, does not rotate (the kubelet renames the file and
// asks for Reopen) and parses nothing.
package crilog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Stream names where a record comes from.
type Stream string

// The streams.
const (
	Stdout Stream = "stdout"
	Stderr Stream = "stderr"
)

// MaxContent is the most content of one record in bytes; a longer line becomes several records.
const MaxContent = 16 << 10

// retryAfter is how long a log file that could not be opened is left alone.
const retryAfter = time.Second

// A Writer appends records to one log file. Records are whole at any time: each write(2) holds whole records, and what
// a full disk cut short is cut off again. A Writer is safe for concurrent use.
type Writer struct {
	path string

	mu     sync.Mutex
	file   *os.File // nil while it cannot be opened
	opened time.Time
	now    func() time.Time
}

// batches are lent to writers while they write: there is a writer per container, and few write at a time.
var batches = sync.Pool{New: func() any { return new([]byte) }}

// Open returns a writer for path, which is made (0640) if it is not there. An empty path gives a writer that drops
// everything.
func Open(path string) (*Writer, error) {
	w := &Writer{path: path, now: time.Now}
	if path == "" {
		return w, nil
	}
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	w.file = f
	return w, nil
}

// Resume is Open of a log whose writer may have been killed in the middle of a write: a record that was cut short is
// cut off. Nothing is lost by that when its bytes are offered again, which is so for what was not yet told to be done
// with.
func Resume(path string) (*Writer, error) {
	if path != "" {
		if err := cutTorn(path); err != nil {
			return nil, fmt.Errorf("open log: %w", err)
		}
	}
	return Open(path)
}

// maxRecord is more than a record can have: content, time stamp, stream and tag.
const maxRecord = MaxContent + 128

// cutTorn removes an unterminated record at the end of a file. What does not begin like a record is left alone: it is
// not ours.
func cutTorn(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return err
	}
	tail := make([]byte, min(info.Size(), maxRecord))
	start := info.Size() - int64(len(tail))
	if _, err := f.ReadAt(tail, start); err != nil {
		return err
	}
	last := bytes.LastIndexByte(tail, '\n') + 1
	if last == 0 && start > 0 || !beginsRecord(tail[last:]) {
		return nil
	}
	return f.Truncate(start + int64(last))
}

// beginsRecord reports whether b is not empty and can be the beginning of a record, which is a year.
func beginsRecord(b []byte) bool {
	const layout = "0000-"
	for i := range min(len(b), len(layout)) {
		if digit := b[i] >= '0' && b[i] <= '9'; digit != (layout[i] == '0') || !digit && b[i] != layout[i] {
			return false
		}
	}
	return len(b) > 0
}

func open(path string) (*os.File, error) {
	// Not os.OpenFile: a log path that is a FIFO must not block and must not be accepted.
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_APPEND|unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", &os.PathError{Op: "open", Path: path, Err: err})
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open log: %s is not a regular file", path)
	}
	_ = unix.SetNonblock(fd, false)
	return os.NewFile(uintptr(fd), path), nil
}

// Append writes data as records and returns how many bytes of it are done with: all up to the last newline, and what
// follows in pieces of MaxContent. The rest, an unterminated line, is left for the caller to offer again with more
// behind it; final writes it too, as a P record.
//
// An error means that records were dropped, never that the caller should offer them again: n is as if they had been
// written, because a full disk must not stop the container. The next Append tries to open the file anew.
func (w *Writer) Append(s Stream, data []byte, final bool) (n int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	batch := batches.Get().(*[]byte)
	defer batches.Put(batch)
	*batch, n = format((*batch)[:0], w.now(), s, data, final)
	if len(*batch) == 0 || w.path == "" {
		return n, nil
	}
	return n, w.writeLocked(*batch)
}

func (w *Writer) writeLocked(batch []byte) error {
	if w.file == nil {
		if w.now().Sub(w.opened) < retryAfter {
			return errDropped
		}
		w.opened = w.now()
		f, err := open(w.path)
		if err != nil {
			return err
		}
		w.file = f
	}
	n, err := unix.Write(int(w.file.Fd()), batch)
	for err == unix.EINTR {
		n, err = unix.Write(int(w.file.Fd()), batch)
	}
	if err == nil && n == len(batch) {
		return nil
	}
	if n > 0 {
		w.cutLocked(n)
	}
	if err == nil {
		err = unix.ENOSPC
	}
	if err != unix.ENOSPC && err != unix.EDQUOT {
		_ = w.file.Close()
		w.file, w.opened = nil, w.now()
	}
	return fmt.Errorf("write log: %w", &os.PathError{Op: "write", Path: w.path, Err: err})
}

// cutLocked removes the n bytes that a short write left at the end of the file.
func (w *Writer) cutLocked(n int) {
	if info, err := w.file.Stat(); err == nil && info.Size() >= int64(n) {
		_ = w.file.Truncate(info.Size() - int64(n))
	}
}

var errDropped = errors.New("write log: the file could not be opened")

// Reopen opens the path anew, making the file if it is not there, and from then on writes nothing more to the file of
// before. On error the old file stays in use and no new one exists.
func (w *Writer) Reopen() error {
	if w.path == "" {
		return nil
	}
	f, err := open(w.path)
	if err != nil {
		return err
	}
	w.mu.Lock()
	old := w.file
	w.file = f
	w.mu.Unlock()
	if old != nil {
		_ = old.Close()
	}
	return nil
}

// Close closes the file. The writer then drops everything.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.file
	w.file, w.path = nil, ""
	if f == nil {
		return nil
	}
	return f.Close()
}

// format appends data's records to dst and returns how many bytes of data they hold. All of one call bear one time.
func format(dst []byte, now time.Time, s Stream, data []byte, final bool) ([]byte, int) {
	var stamp [64]byte
	head := now.UTC().AppendFormat(stamp[:0], time.RFC3339Nano)
	head = append(head, ' ')
	head = append(head, s...)
	done := 0
	for done < len(data) {
		rest := data[done:]
		tag, next := " F ", 0
		content := rest
		if i := bytes.IndexByte(rest[:min(len(rest), MaxContent+1)], '\n'); i >= 0 {
			content, next = rest[:i], i+1
		} else if len(rest) > MaxContent || (len(rest) == MaxContent && !final) {
			tag, content, next = " P ", rest[:MaxContent], MaxContent
		} else if final {
			tag, next = " P ", len(rest)
		} else {
			break
		}
		dst = append(dst, head...)
		dst = append(dst, tag...)
		dst = append(dst, content...)
		dst = append(dst, '\n')
		done += next
	}
	return dst, done
}
