package stage

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/opencontainers/runc/libcontainer/specconv"
)

// CompilerVerb is the argument that makes the program the compiler.
const CompilerVerb = "compile-seccomp"

// compilerTimeout bounds one compilation, which takes some 30 ms of an idle machine.
const compilerTimeout = 30 * time.Second

// CompilerMain reads a profile and writes the filter, as libcontainer makes it, and does not return. libcontainer has
// no function for that, only one that loads the filter into the calling thread. So a filter of our own is loaded
// before, which holds up the system call that loads one and tells another thread, and that finds the program by its
// arguments.
func CompilerMain() {
	err := capture(os.Stdin, os.Stdout)
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func capture(in, out *os.File) error {
	var profile specs.LinuxSeccomp
	if err := json.NewDecoder(in).Decode(&profile); err != nil {
		return fmt.Errorf("read profile: %w", err)
	}
	config, err := specconv.SetupSeccomp(&profile)
	if err != nil {
		return err
	}
	runtime.LockOSThread() // filters belong to a thread
	listener, err := holdUpLoads()
	if err != nil {
		return fmt.Errorf("hold up the loading of filters: %w", err)
	}
	go func() {
		if err := hearLoad(listener, out); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}()
	if _, err := seccomp.InitSeccomp(config); err != nil {
		return err
	}
	return errors.New("the filter was loaded unnoticed")
}

// Offsets in struct seccomp_data.
const (
	offsetNumber = 0
	offsetFirst  = 16
	offsetThird  = 32
)

// holdUpLoads makes the thread wait when it loads a seccomp filter, and returns where that is told. libseccomp asks
// what the kernel can by loads without a program; those go through.
func holdUpLoads() (int, error) {
	const (
		load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		finish = unix.BPF_RET | unix.BPF_K
	)
	low, high := uint32(offsetThird), uint32(offsetThird+4)
	filter := []unix.SockFilter{
		{Code: load, K: offsetNumber},
		{Code: equal, K: unix.SYS_SECCOMP, Jt: 0, Jf: 2},
		{Code: load, K: offsetFirst},
		{Code: equal, K: unix.SECCOMP_SET_MODE_FILTER, Jt: 3, Jf: 7},
		{Code: equal, K: unix.SYS_PRCTL, Jt: 0, Jf: 6},
		{Code: load, K: offsetFirst},
		{Code: equal, K: unix.PR_SET_SECCOMP, Jt: 0, Jf: 4},
		{Code: load, K: low}, // the third argument is the program
		{Code: equal, K: 0, Jt: 0, Jf: 3},
		{Code: load, K: high},
		{Code: equal, K: 0, Jt: 0, Jf: 1},
		{Code: finish, K: unix.SECCOMP_RET_ALLOW},
		{Code: finish, K: unix.SECCOMP_RET_USER_NOTIF},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return -1, err
	}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER,
		uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// notification is struct seccomp_notif.
type notification struct {
	id             uint64
	pid, flags     uint32
	number, arch   uint32
	instructionPtr uint64
	args           [6]uint64
}

const notificationReceive = 0xC0502100 // SECCOMP_IOCTL_NOTIF_RECV, _IOWR('!', 0, 80 bytes)

// hearLoad waits for the load and writes its flags and its program.
func hearLoad(listener int, out *os.File) error {
	var n notification
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), notificationReceive, uintptr(unsafe.Pointer(&n)))
		if errno == 0 {
			break
		}
		if errno != unix.EINTR {
			return fmt.Errorf("wait for the load: %w", errno)
		}
		n = notification{}
	}
	var flags uint32
	if n.number == unix.SYS_SECCOMP {
		flags = uint32(n.args[1])
	}
	// struct sock_fprog: a 16-bit count and, aligned, a pointer.
	program := make([]byte, 16)
	if err := readMemory(program, n.args[2]); err != nil {
		return err
	}
	filter := make([]byte, filterSize*int(binary.NativeEndian.Uint16(program)))
	if err := readMemory(filter, binary.NativeEndian.Uint64(program[8:])); err != nil {
		return err
	}
	_, err := out.Write(append(binary.NativeEndian.AppendUint32(nil, flags), filter...))
	return err
}

// readMemory reads memory of this process by its address, which no pointer of Go's leads to.
func readMemory(to []byte, address uint64) error {
	local := []unix.Iovec{{Base: &to[0], Len: uint64(len(to))}}
	remote := []unix.RemoteIovec{{Base: uintptr(address), Len: len(to)}}
	n, err := unix.ProcessVMReadv(os.Getpid(), local, remote, 0)
	if err == nil && n != len(to) {
		err = fmt.Errorf("%d of %d bytes", n, len(to))
	}
	if err != nil {
		return fmt.Errorf("read the program: %w", err)
	}
	return nil
}
