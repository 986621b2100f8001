package spec

import (
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestEverySignalOfTheCRIHasItsNumber(t *testing.T) {
	seen := map[int]bool{}
	for value, name := range runtime.Signal_name {
		s := runtime.Signal(value)
		if s == runtime.Signal_SIGNAL_RUNTIME_DEFAULT {
			continue
		}
		n, err := SignalNumber(s)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		seen[n] = true
		// The name of the CRI without its prefix is the kernel's, where the kernel has one.
		if want := unix.SignalNum(name[len("SIGNAL_"):]); want != 0 && int(want) != n {
			t.Errorf("%s: got %d, want %d", name, n, want)
		}
		if back, err := SignalNumber(signalOf(n)); err != nil || back != n {
			t.Errorf("%s: %d comes back as %d, %v", name, n, back, err)
		}
	}
	for n := 1; n <= sigRTMax; n++ {
		if !seen[n] && n != 32 && n != 33 {
			t.Errorf("no signal of the CRI has the number %d", n)
		}
	}
	for _, s := range []runtime.Signal{runtime.Signal_SIGNAL_RUNTIME_DEFAULT, -1, 66, 1 << 20} {
		_, err := SignalNumber(s)
		wantError(t, err, "stop_signal")
	}
}

func TestStopSignalIsConfigsElseImagesElseTerm(t *testing.T) {
	for _, tc := range []struct {
		config runtime.Signal
		image  string
		want   runtime.Signal
	}{
		{0, "", runtime.Signal_SIGNAL_SIGTERM},
		{runtime.Signal_SIGNAL_SIGUSR1, "SIGQUIT", runtime.Signal_SIGNAL_SIGUSR1},
		{runtime.Signal_SIGNAL_SIGUSR1, "nonsense", runtime.Signal_SIGNAL_SIGUSR1},
		{0, "SIGQUIT", runtime.Signal_SIGNAL_SIGQUIT},
		{0, "quit", runtime.Signal_SIGNAL_SIGQUIT},
		{0, "15", runtime.Signal_SIGNAL_SIGTERM},
		{0, "37", runtime.Signal_SIGNAL_SIGRTMINPLUS3},
		{0, "SIGRTMIN+3", runtime.Signal_SIGNAL_SIGRTMINPLUS3},
		{0, "RTMIN", runtime.Signal_SIGNAL_SIGRTMIN},
		{0, "SIGRTMAX-1", runtime.Signal_SIGNAL_SIGRTMAXMINUS1},
		{0, "SIGRTMAX", runtime.Signal_SIGNAL_SIGRTMAX},
		{0, "SIGRTMIN+30", runtime.Signal_SIGNAL_SIGRTMAX},
		{0, "SIGCLD", runtime.Signal_SIGNAL_SIGCHLD},
	} {
		got, err := StopSignal(&runtime.ContainerConfig{StopSignal: tc.config}, tc.image)
		if err != nil || got != tc.want {
			t.Errorf("%s, %q: got %s, %v, want %s", tc.config, tc.image, got, err, tc.want)
		}
	}
}

func TestStopSignalRefuses(t *testing.T) {
	for _, image := range []string{
		"SIGNOPE", "0", "-1", "32", "65", "SIGRTMIN+31", "SIGRTMIN-1", "SIGRTMAX+1", "SIGRTMIN+", "SIGRUNTIME_DEFAULT", " ",
	} {
		_, err := StopSignal(nil, image)
		wantError(t, err, "image", image)
	}
	_, err := StopSignal(&runtime.ContainerConfig{StopSignal: 99}, "")
	wantError(t, err, "stop_signal", "99")
}
