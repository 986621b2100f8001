package spec

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The real-time signals as the C library counts them: it keeps the first two of the kernel for itself. The CRI's
// numbering runs through them without a gap.
const (
	sigRTMin = 34
	sigRTMax = 64
)

// signalNumbers are the signals that are not real-time, by the CRI's name. Of two names for one signal the first stands
// for it in the other direction.
var signalNumbers = []struct {
	signal runtime.Signal
	number unix.Signal
}{
	{runtime.Signal_SIGNAL_SIGABRT, unix.SIGABRT}, {runtime.Signal_SIGNAL_SIGIOT, unix.SIGIOT},
	{runtime.Signal_SIGNAL_SIGCHLD, unix.SIGCHLD}, {runtime.Signal_SIGNAL_SIGCLD, unix.SIGCHLD},
	{runtime.Signal_SIGNAL_SIGIO, unix.SIGIO}, {runtime.Signal_SIGNAL_SIGPOLL, unix.SIGIO},
	{runtime.Signal_SIGNAL_SIGALRM, unix.SIGALRM}, {runtime.Signal_SIGNAL_SIGBUS, unix.SIGBUS},
	{runtime.Signal_SIGNAL_SIGCONT, unix.SIGCONT}, {runtime.Signal_SIGNAL_SIGFPE, unix.SIGFPE},
	{runtime.Signal_SIGNAL_SIGHUP, unix.SIGHUP}, {runtime.Signal_SIGNAL_SIGILL, unix.SIGILL},
	{runtime.Signal_SIGNAL_SIGINT, unix.SIGINT}, {runtime.Signal_SIGNAL_SIGKILL, unix.SIGKILL},
	{runtime.Signal_SIGNAL_SIGPIPE, unix.SIGPIPE}, {runtime.Signal_SIGNAL_SIGPROF, unix.SIGPROF},
	{runtime.Signal_SIGNAL_SIGPWR, unix.SIGPWR}, {runtime.Signal_SIGNAL_SIGQUIT, unix.SIGQUIT},
	{runtime.Signal_SIGNAL_SIGSEGV, unix.SIGSEGV}, {runtime.Signal_SIGNAL_SIGSTKFLT, unix.SIGSTKFLT},
	{runtime.Signal_SIGNAL_SIGSTOP, unix.SIGSTOP}, {runtime.Signal_SIGNAL_SIGSYS, unix.SIGSYS},
	{runtime.Signal_SIGNAL_SIGTERM, unix.SIGTERM}, {runtime.Signal_SIGNAL_SIGTRAP, unix.SIGTRAP},
	{runtime.Signal_SIGNAL_SIGTSTP, unix.SIGTSTP}, {runtime.Signal_SIGNAL_SIGTTIN, unix.SIGTTIN},
	{runtime.Signal_SIGNAL_SIGTTOU, unix.SIGTTOU}, {runtime.Signal_SIGNAL_SIGURG, unix.SIGURG},
	{runtime.Signal_SIGNAL_SIGUSR1, unix.SIGUSR1}, {runtime.Signal_SIGNAL_SIGUSR2, unix.SIGUSR2},
	{runtime.Signal_SIGNAL_SIGVTALRM, unix.SIGVTALRM}, {runtime.Signal_SIGNAL_SIGWINCH, unix.SIGWINCH},
	{runtime.Signal_SIGNAL_SIGXCPU, unix.SIGXCPU}, {runtime.Signal_SIGNAL_SIGXFSZ, unix.SIGXFSZ},
}

// StopSignal returns the signal of a container: the configuration's, else the image's, else SIGTERM. imageSignal is the
// StopSignal of the image's configuration: a name with or without SIG, SIGRTMIN+n, SIGRTMAX-n or a number. The error is
// as Build's.
func StopSignal(config *runtime.ContainerConfig, imageSignal string) (runtime.Signal, error) {
	if s := config.GetStopSignal(); s != runtime.Signal_SIGNAL_RUNTIME_DEFAULT {
		if _, err := SignalNumber(s); err != nil {
			return 0, err
		}
		return s, nil
	}
	if imageSignal == "" {
		return runtime.Signal_SIGNAL_SIGTERM, nil
	}
	number, ok := parseSignal(imageSignal)
	if !ok {
		return 0, invalid("StopSignal of the image", imageSignal, "the name or number of a signal")
	}
	return signalOf(number), nil
}

// SignalNumber returns the kernel's number of a CRI signal. The error, as Build's, is for RUNTIME_DEFAULT, which is
// none, and for numbers that the CRI does not define.
func SignalNumber(s runtime.Signal) (int, error) {
	if s >= runtime.Signal_SIGNAL_SIGRTMIN && s <= runtime.Signal_SIGNAL_SIGRTMAX {
		return sigRTMin + int(s-runtime.Signal_SIGNAL_SIGRTMIN), nil
	}
	for _, entry := range signalNumbers {
		if entry.signal == s {
			return int(entry.number), nil
		}
	}
	return 0, invalid("stop_signal", s.String(), "a signal of the CRI")
}

// signalOf returns the CRI's signal with this number, RUNTIME_DEFAULT when there is none.
func signalOf(number int) runtime.Signal {
	if number >= sigRTMin && number <= sigRTMax {
		return runtime.Signal_SIGNAL_SIGRTMIN + runtime.Signal(number-sigRTMin)
	}
	for _, entry := range signalNumbers {
		if int(entry.number) == number {
			return entry.signal
		}
	}
	return runtime.Signal_SIGNAL_RUNTIME_DEFAULT
}

// parseSignal reads a signal as an image writes it.
func parseSignal(s string) (number int, ok bool) {
	if n, err := strconv.Atoi(s); err == nil {
		return n, signalOf(n) != runtime.Signal_SIGNAL_RUNTIME_DEFAULT
	}
	name := "SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if offset, isMin := strings.CutPrefix(name, "SIGRTMIN"); isMin {
		return realTimeSignal(sigRTMin, '+', offset)
	}
	if offset, isMax := strings.CutPrefix(name, "SIGRTMAX"); isMax {
		return realTimeSignal(sigRTMax, '-', offset)
	}
	value, known := runtime.Signal_value["SIGNAL_"+name]
	if !known {
		return 0, false
	}
	number, err := SignalNumber(runtime.Signal(value))
	return number, err == nil
}

// realTimeSignal reads the "+3" of SIGRTMIN+3 or the "-3" of SIGRTMAX-3.
func realTimeSignal(base int, sign byte, offset string) (number int, ok bool) {
	if offset == "" {
		return base, true
	}
	if offset[0] != sign {
		return 0, false
	}
	n, err := strconv.ParseUint(offset[1:], 10, 8)
	if err != nil || int(n) > sigRTMax-sigRTMin {
		return 0, false
	}
	if sign == '-' {
		return base - int(n), true
	}
	return base + int(n), true
}
