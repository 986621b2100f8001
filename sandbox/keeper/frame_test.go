package keeper

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = c.(*net.UnixConn)
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(time.Minute))
	}
	return conns[0], conns[1]
}

// descriptorsOf counts this process's descriptors of a file. Others come and go with the runtime and other tests.
func descriptorsOf(t *testing.T, path string) (n int) {
	t.Helper()
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && target == path {
			n++
		}
	}
	return n
}

func TestFrameCarriesBodyAndDescriptors(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	long := strings.Repeat("x", 3<<20) // more than a socket's buffer
	sent := make(chan error, 1)
	go func() { sent <- errors.Join(Send(a, long, r, w), Send(a, "second")) }()
	var got string
	files, err := Receive(b, &got)
	if err != nil || got != long || len(files) != 2 {
		t.Fatalf("%d bytes, %d files, %v", len(got), len(files), err)
	}
	defer CloseFiles(files)
	for _, f := range files {
		raw, _ := f.SyscallConn()
		_ = raw.Control(func(fd uintptr) {
			if flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("flags %x, %v: not close-on-exec", flags, err)
			}
		})
	}
	if _, err := files[1].WriteString("!"); err != nil {
		t.Error(err)
	}
	one := make([]byte, 1)
	if _, err := r.Read(one); err != nil || one[0] != '!' {
		t.Errorf("read %q, %v", one, err)
	}
	if files, err := Receive(b, &got); err != nil || got != "second" || len(files) != 0 {
		t.Errorf("got %q, %d files, %v", got, len(files), err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	_ = a.Close()
	if _, err := Receive(b, &got); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

func TestBadFramesLeakNoDescriptor(t *testing.T) {
	frame := func(length, count uint32, body string) []byte {
		f := binary.BigEndian.AppendUint32(nil, length)
		return append(binary.BigEndian.AppendUint32(f, count), body...)
	}
	for name, c := range map[string]struct {
		bytes []byte
		files int
	}{
		"body too long":            {frame(maxBody+1, 0, ""), 0},
		"cut header":               {frame(2, 0, "")[:5], 1},
		"cut body":                 {frame(10, 1, "{"), 1},
		"not JSON":                 {frame(1, 1, "x"), 1},
		"fewer files than said":    {frame(2, 2, "{}"), 1},
		"more files than said":     {frame(2, 0, "{}"), 1},
		"more files than allowed":  {frame(2, maxFiles, "{}"), maxFiles + 4},
		"nothing at all":           {nil, 0},
		"another protocol":         {[]byte("GET / HTTP/1.1\r\n\r\n"), 0},
		"JSON of another type":     {frame(2, 0, "[]"), 0},
		"announced but never sent": {frame(2, 3, "{}"), 0},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			sent, err := os.Create(filepath.Join(t.TempDir(), "sent"))
			if err != nil {
				t.Fatal(err)
			}
			defer sent.Close()
			if len(c.bytes) > 0 {
				fds := make([]int, c.files)
				for i := range fds {
					fds[i] = int(sent.Fd())
				}
				var oob []byte
				if c.files > 0 {
					oob = unix.UnixRights(fds...)
				}
				if _, _, err := a.WriteMsgUnix(c.bytes, oob, nil); err != nil {
					t.Fatal(err)
				}
			}
			_ = a.CloseWrite()
			var got Request
			files, err := Receive(b, &got)
			if err == nil || len(files) > 0 {
				t.Errorf("got %+v, %d files, %v", got, len(files), err)
			}
			if n := descriptorsOf(t, sent.Name()); n != 1 {
				t.Errorf("%d descriptors of the file that was sent, expected that of the sender", n)
			}
		})
	}
}

func TestSendRefusesWhatReceiveWouldRefuse(t *testing.T) {
	a, _ := pair(t)
	if err := Send(a, strings.Repeat("x", maxBody)); err == nil {
		t.Error("a body that is too long was sent")
	}
	if err := Send(a, "", make([]*os.File, maxFiles+1)...); err == nil {
		t.Error("too many descriptors were sent")
	}
}
