package keeperd

import (
	"maps"
	"os"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reapByPID returns what waits for a child and reaps it, by its pid, which is the child's until then. libcontainer and
// os/exec can do that too, but what they have of a child keeps a descriptor open, with which every process that is
// started begins, and libcontainer's keeps the whole configuration in memory.
func reapByPID(pid int) func() (unix.WaitStatus, error) {
	return func() (status unix.WaitStatus, err error) {
		for err = unix.EINTR; err == unix.EINTR; {
			_, err = unix.Wait4(pid, &status, 0, nil)
		}
		return status, os.NewSyscallError("wait4", err)
	}
}

// orphanAge is how long a zombie is left to whoever may want it.
const orphanAge = 5 * time.Second

// own notes a child that somebody of the keeper waits for.
func (h *host) own(pid int) { h.children.Store(pid, struct{}{}) }

// disown is called when the child was reaped.
func (h *host) disown(pid int) { h.children.Delete(pid) }

// reapOrphans reaps what the keeper inherits as the subreaper: processes of containers without a PID namespace of their
// own, whose parents died. It never waits for any child: libcontainer's stages are children too, of pids that only it
// knows, and it fails when somebody else reaps them. Those it reaps within milliseconds, so a zombie that is nobody's
// of ours and stays one for seconds is an orphan.
func (k *Keeper) reapOrphans(children <-chan os.Signal) {
	seen := map[zombie]time.Time{}
	var l looks
	for {
		if l.row == 0 {
			<-children
		}
		// Not at every SIGCHLD: under load there are hundreds a second, and a look goes through all children.
		time.Sleep(lookEvery)
		if l.due(anyZombie(), time.Now()) {
			k.reapOnce(seen)
		}
		if l.row == 0 {
			clear(seen)
		}
	}
}

// lookEvery is how often it is asked whether there is a zombie.
const lookEvery = orphanAge / 5

// looks tell when it is worth finding the zombies, for which all of /proc has to be read: it takes 15 µs for each process
// of the machine. The kernel names one zombie only. While containers are started there is one at many looks, of a stage,
// and at the next look it is gone.
type looks struct {
	row  int // how many looks in a row there was a zombie
	last int // the zombie of the last look
	read time.Time
}

// due takes note of the zombie that a look found, 0 for none, and reports whether /proc is to be read: when the zombie
// stays, or when there is always another one before those that may stay.
func (l *looks) due(pid int, now time.Time) bool {
	stays := pid == l.last
	l.last = pid
	if pid == 0 {
		l.row = 0
		return false
	}
	l.row++
	if !stays && time.Duration(l.row)*lookEvery <= orphanAge || now.Sub(l.read) < orphanAge {
		return false
	}
	l.read = now
	return true
}

// anyZombie returns the pid of a child to be reaped, without reaping it; 0 if there is none.
func anyZombie() int {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	if err != nil || info.Signo == 0 {
		return 0
	}
	// A union follows the head of siginfo_t (waitid(2)), aligned for pointers: on machines of 64 bits at 16.
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), 16)))
}

// reapOnce notes the zombies and reaps those that were noted orphanAge ago.
func (k *Keeper) reapOnce(seen map[zombie]time.Time) {
	now := time.Now()
	current := map[zombie]bool{}
	for _, z := range zombies() {
		if _, ours := k.host.children.Load(z.pid); ours {
			continue
		}
		current[z] = true
		first, known := seen[z]
		switch {
		case !known:
			seen[z] = now
		case now.Sub(first) >= orphanAge:
			_, _ = unix.Wait4(z.pid, nil, unix.WNOHANG, nil)
		}
	}
	maps.DeleteFunc(seen, func(z zombie, _ time.Time) bool { return !current[z] })
}

// zombie names a process for all time: a pid alone is used again.
type zombie struct {
	pid       int
	startTime uint64
}

// zombies lists the children of the process that have exited.
func zombies() (found []zombie) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	self := os.Getpid()
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if s, err := readStat(pid); err == nil && s.ppid == self && s.state == 'Z' {
			found = append(found, zombie{pid, s.startTime})
		}
	}
	return found
}
