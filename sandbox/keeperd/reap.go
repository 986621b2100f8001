package keeperd

import (
	"maps"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

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
	for {
		if len(seen) == 0 {
			<-children
		}
		select {
		case <-children:
		case <-time.After(orphanAge):
		}
		if !anyZombie() {
			clear(seen)
			continue
		}
		k.reapOnce(seen)
		// Not at every SIGCHLD: under load there are hundreds a second, and a look goes through /proc.
		time.Sleep(orphanAge / 5)
	}
}

// anyZombie asks whether there is a child to be reaped, without reaping it.
func anyZombie() bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err == nil && info.Signo != 0
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
