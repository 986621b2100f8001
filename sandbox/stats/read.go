package stats

import (
	"bytes"
	"iter"
	"math"
	"strconv"

	"golang.org/x/sys/unix"
)

// reader reads small files of the kernel into one buffer. It makes the system calls itself: package os would enter each
// file with the poller. It is for one goroutine.
type reader struct {
	buf []byte
}

func newReader() *reader { return &reader{buf: make([]byte, 16<<10)} }

// endsBelow is a size of a read, in bytes, that only the last one of a file has: these files come a page at a time
// (fs/seq_file.c). It saves the read that finds nothing, a quarter of the system calls.
const endsBelow = 1024

// read returns the content, valid until the next read.
func (r *reader) read(path string) ([]byte, error) {
	fd, err := ignoringEINTR(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	n := 0
	for {
		if len(r.buf)-n < endsBelow {
			r.buf = append(r.buf, make([]byte, len(r.buf))...)
		}
		m, err := ignoringEINTR(func() (int, error) { return unix.Read(fd, r.buf[n:]) })
		if err != nil {
			return nil, err
		}
		if n += m; m < endsBelow {
			return r.buf[:n], nil
		}
	}
}

// uint reads a file that holds one number. ok is false where it does not, and 0 with it.
func (r *reader) uint(path string) (value uint64, ok bool) {
	content, err := r.read(path)
	if err != nil {
		return 0, false
	}
	return number(bytes.TrimSpace(content))
}

// limit reads a file that holds a limit: 0 where there is none ("max", -1, or so much that it means the same).
func (r *reader) limit(path string) uint64 {
	value, _ := r.uint(path)
	return limited(value)
}

// limited gives 0 for what cgroup v1 says where there is no limit: the largest number of pages, in bytes.
func limited(value uint64) uint64 {
	if value > math.MaxInt64/2 {
		return 0
	}
	return value
}

func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR {
			return n, err
		}
	}
}

// number reads decimal digits, and nothing else.
func number(text []byte) (value uint64, ok bool) {
	if len(text) == 0 {
		return 0, false
	}
	for _, c := range text {
		if c < '0' || c > '9' || value > (math.MaxUint64-9)/10 {
			return 0, false
		}
		value = value*10 + uint64(c-'0')
	}
	return value, true
}

// pairs gives the lines "key number"; other lines are skipped.
func pairs(content []byte) iter.Seq2[[]byte, uint64] {
	return func(yield func([]byte, uint64) bool) {
		for line := range bytes.SplitSeq(content, []byte{'\n'}) {
			key, text, found := bytes.Cut(line, []byte{' '})
			value, ok := number(text)
			if found && ok && !yield(key, value) {
				return
			}
		}
	}
}

// pressure reads a pressure file; nil where there is none (the kernel may be built or started without).
func (r *reader) pressure(path string) *Pressure {
	content, err := r.read(path)
	if err != nil {
		return nil
	}
	p := &Pressure{}
	some := false
	for line := range bytes.SplitSeq(content, []byte{'\n'}) {
		kind, rest, _ := bytes.Cut(line, []byte{' '})
		stall, ok := parseStall(rest)
		switch {
		case !ok:
		case string(kind) == "some":
			p.Some, some = stall, true
		case string(kind) == "full":
			p.Full = stall
		}
	}
	if !some {
		return nil
	}
	return p
}

// parseStall reads "avg10=0.00 avg60=0.00 avg300=0.00 total=0", in which total is in microseconds.
func parseStall(text []byte) (stall Stall, ok bool) {
	for field := range bytes.FieldsSeq(text) {
		key, value, _ := bytes.Cut(field, []byte{'='})
		var err error
		switch string(key) {
		case "avg10":
			stall.Avg10, err = strconv.ParseFloat(string(value), 64)
		case "avg60":
			stall.Avg60, err = strconv.ParseFloat(string(value), 64)
		case "avg300":
			stall.Avg300, err = strconv.ParseFloat(string(value), 64)
		case "total":
			stall.Total, ok = number(value)
			stall.Total *= 1000
		}
		if err != nil {
			return Stall{}, false
		}
	}
	return stall, ok
}
