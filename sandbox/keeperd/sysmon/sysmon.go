// Package sysmon lets the thread of Go's runtime that watches the others sleep longer. runtime.sysmon looks every 20 µs, of
// which the kernel makes 70, who is in a system call, takes the processor away from who still is at the next look, and wakes
// another thread, which as a rule finds nothing to do. The keeper waits in system calls most of the time, and an init of
// libcontainer, with its one processor, always. The runtime has no setting for it, but it sleeps by the kernel's timers,
// and how late these may be is for each thread to say (PR_SET_TIMERSLACK).
//
// The package is linked into a program and has nothing to call. What the program executes never has the slack.
package sysmon

// #cgo CFLAGS: -Wall -Wextra -O2
// #cgo LDFLAGS: -Wl,--wrap=pthread_create
import "C"
