package stage

// #include "stage.h"
import "C"

import (
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// Error says at which step a command could not be started, in the words that libcontainer has for it.
type Error struct {
	step, arg    int
	name, detail string
	errno        unix.Errno
}

// Unwrap returns the errno.
func (e *Error) Unwrap() error { return e.errno }

// The steps whose words are not in the table.
const (
	stepCgroup     = C.STEP_CGROUP
	stepRlimit     = C.STEP_RLIMIT
	stepCWD        = C.STEP_CWD
	stepCWDOutside = C.STEP_CWD_OUTSIDE
	stepNotFound   = C.STEP_NOT_FOUND
	stepStat       = C.STEP_STAT
	stepAccess     = C.STEP_ACCESS
	stepRelative   = C.STEP_RELATIVE
	stepExec       = C.STEP_EXEC
)

// words are those of the steps that have an errno and nothing else to tell.
var words = map[int]string{
	C.STEP_REQUEST:      "read request",
	C.STEP_PROC:         "open /proc",
	C.STEP_OOM_SCORE:    "failed to update /proc/self/oom_score_adj",
	C.STEP_DUMPABLE:     "failed to set process as non-dumpable",
	C.STEP_NAMESPACES:   "join namespaces",
	C.STEP_ROOT:         "become root of the user namespace",
	C.STEP_FORK:         "fork",
	C.STEP_SESSION:      "setsid",
	C.STEP_KEYRING:      "unable to join session keyring: unable to create session key",
	C.STEP_KEY_LABEL:    "set keyring label",
	C.STEP_TERMINAL:     "make terminal",
	C.STEP_EXEC_LABEL:   "set SELinux label",
	C.STEP_SECCOMP:      "unable to init seccomp: error loading seccomp filter into kernel: error loading seccomp filter",
	C.STEP_BOUNDING:     "unable to apply bounding set",
	C.STEP_KEEP_CAPS:    "unable to set keep caps",
	C.STEP_STREAMS:      "unable to setup user: give streams to user",
	C.STEP_GROUPS:       "unable to setup user: setgroups",
	C.STEP_GID:          "unable to setup user: setgid",
	C.STEP_UID:          "unable to setup user: setuid",
	C.STEP_CAPABILITIES: "unable to apply caps: can't apply capabilities",
	C.STEP_APPARMOR:     "apparmor failed to apply profile",
	C.STEP_CLOSE:        "close descriptors",
}

// Error implements error.
func (e *Error) Error() string {
	switch e.step {
	case stepCgroup:
		return fmt.Sprintf("error adding process to cgroups: write %s: %v", e.detail, e.errno)
	case stepRlimit:
		return fmt.Sprintf("error setting rlimit type %d: %v", e.arg, e.errno)
	case stepCWD:
		return fmt.Sprintf("chdir to cwd (%q) set in config.json failed: %v", e.detail, e.errno)
	case stepCWDOutside:
		return "current working directory is outside of container mount namespace root " +
			"-- possible container breakout detected"
	case stepNotFound:
		return (&exec.Error{Name: e.name, Err: exec.ErrNotFound}).Error()
	case stepStat:
		return (&exec.Error{Name: e.name, Err: &os.PathError{Op: "stat", Path: e.name, Err: e.errno}}).Error()
	case stepAccess:
		return (&exec.Error{Name: e.name, Err: e.errno}).Error()
	case stepRelative:
		return (&exec.Error{Name: e.name, Err: exec.ErrDot}).Error()
	case stepExec:
		return (&os.PathError{Op: "exec", Path: e.detail, Err: e.errno}).Error()
	}
	text, ok := words[e.step]
	if !ok {
		text = fmt.Sprintf("step %d", e.step)
	}
	return fmt.Sprintf("%s: %v", text, e.errno)
}
