package keeper

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

const (
	headerSize = 8
	// maxBody bounds a frame's body: a spec with a large seccomp profile and environment is some 100 KiB.
	maxBody = 16 << 20
	// maxFiles bounds the descriptors of one frame.
	maxFiles = 16
)

// Send writes one frame: v as JSON, and duplicates of files. It does not close files.
func Send(conn *net.UnixConn, v any, files ...*os.File) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode frame: %w", err)
	}
	if len(body) > maxBody {
		return fmt.Errorf("send frame: body of %d bytes, at most %d", len(body), maxBody)
	}
	if len(files) > maxFiles {
		return fmt.Errorf("send frame: %d descriptors, at most %d", len(files), maxFiles)
	}
	fds, err := duplicate(files)
	if err != nil {
		return err
	}
	defer closeFDs(fds)
	frame := make([]byte, headerSize, headerSize+len(body))
	binary.BigEndian.PutUint32(frame, uint32(len(body)))
	binary.BigEndian.PutUint32(frame[4:], uint32(len(fds)))
	frame = append(frame, body...)
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	// The descriptors go with the first byte that the kernel takes; a long body may need several writes.
	n, _, err := conn.WriteMsgUnix(frame, oob, nil)
	if err == nil && n < len(frame) {
		_, err = conn.Write(frame[n:])
	}
	if err != nil {
		return fmt.Errorf("send frame: %w", err)
	}
	return nil
}

// Receive reads one frame into v and returns its descriptors, which the caller owns; they are close-on-exec. On error
// there are none. At a clean end of the stream the error is io.EOF.
func Receive(conn *net.UnixConn, v any) (files []*os.File, err error) {
	var header [headerSize]byte
	fds, err := receiveHeader(conn, header[:])
	defer func() {
		if err != nil {
			closeFDs(fds)
			files = nil
		}
	}()
	if err != nil {
		return nil, err
	}
	length, count := binary.BigEndian.Uint32(header[:]), binary.BigEndian.Uint32(header[4:])
	if length > maxBody {
		return nil, fmt.Errorf("receive frame: body of %d bytes, at most %d", length, maxBody)
	}
	if int(count) != len(fds) {
		return nil, fmt.Errorf("receive frame: %d descriptors announced, %d received", count, len(fds))
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(conn, body); err != nil {
		return nil, fmt.Errorf("receive frame: %w", noEOF(err))
	}
	if err := json.Unmarshal(body, v); err != nil {
		return nil, fmt.Errorf("decode frame: %w", err)
	}
	for _, fd := range fds {
		files = append(files, os.NewFile(uintptr(fd), "received"))
	}
	return files, nil
}

// receiveHeader fills header and collects the descriptors that came with it; they are returned also on error.
func receiveHeader(conn *net.UnixConn, header []byte) (fds []int, err error) {
	oob := make([]byte, unix.CmsgSpace(4*maxFiles))
	for got := 0; got < len(header); {
		// The net package asks for MSG_CMSG_CLOEXEC.
		n, oobn, flags, _, err := conn.ReadMsgUnix(header[got:], oob)
		more, perr := parseRights(oob[:oobn])
		fds = append(fds, more...)
		got += n
		switch {
		case err == nil && n == 0 && oobn == 0:
			err = io.EOF
		case perr != nil:
			err = perr
		case flags&unix.MSG_CTRUNC != 0:
			err = errors.New("more descriptors than allowed")
		}
		if errors.Is(err, io.EOF) && got == 0 {
			return fds, io.EOF
		}
		if err != nil {
			return fds, fmt.Errorf("receive frame: %w", noEOF(err))
		}
	}
	return fds, nil
}

func parseRights(oob []byte) (fds []int, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range messages {
		more, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		fds = append(fds, more...)
	}
	return fds, nil
}

// duplicate copies the descriptors: os.File.Fd would take a file out of the poller, and a file could be closed by
// another goroutine while it is sent.
func duplicate(files []*os.File) ([]int, error) {
	var fds []int
	for _, f := range files {
		fd, err := Duplicate(f)
		if err != nil {
			closeFDs(fds)
			return nil, err
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// Duplicate returns a close-on-exec copy of f's descriptor. It shares the open file, so also its O_NONBLOCK.
func Duplicate(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("duplicate descriptor: %w", err)
	}
	fd := -1
	var derr error
	if err := raw.Control(func(s uintptr) { fd, derr = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 3) }); err != nil {
		derr = err
	}
	if derr != nil {
		return -1, fmt.Errorf("duplicate descriptor: %w", derr)
	}
	return fd, nil
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// CloseFiles closes all of files; nil entries are allowed.
func CloseFiles(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
