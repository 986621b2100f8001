// Package podinit is PID 1 of a PID namespace that the containers of one pod share: it reaps, it dies when told, and it
// can do nothing else. The constructor is also what launches other programs (LaunchMarker), and ends, in every process
// of the binary, the ignoring of signals that it was started with. It is C that runs before the Go runtime starts, so
// that it costs no more than a C program. It is not the init of a container: that is the container's own command.
package podinit

// #cgo CFLAGS: -Wall -Wextra -O2
import "C"

const (
	// Marker is the environment variable that makes the binary a pod init; descriptor 3 is then a pipe on which it says
	// Ready, or what went wrong.
	Marker = "_GANTRY_POD_INIT"
	// UsernsMarker, beside Marker, makes it enter the user namespace that descriptor 5 is open on. It then ends, after it
	// has written PIDDigits digits to the pipe: the pid of the pod init, which is a child of its parent.
	UsernsMarker = "_GANTRY_POD_INIT_USERNS"
	// NetnsMarker, beside Marker, makes it enter the network namespace that the descriptor of this number is open on.
	NetnsMarker = "_GANTRY_POD_INIT_NETNS"
	// LaunchMarker is the environment variable that makes the binary a launcher: it executes the program that its first
	// argument names, with its arguments, when a byte comes by descriptor 3. The program begins with SIGXFSZ ignored.
	LaunchMarker = "_GANTRY_LAUNCH"
	// LaunchCgroupNS as its value makes the program begin in a cgroup namespace of the cgroup that it is in by then.
	LaunchCgroupNS = "cgroupns"
	// PIDDigits is the number of digits of that pid.
	PIDDigits = 10
	// Name is the process name that containers see.
	Name = "pause"
	// Ready is said when the process is cut off from the host.
	Ready = "ready"
	// ID is the user and group that the process runs as.
	ID = 65535
)
