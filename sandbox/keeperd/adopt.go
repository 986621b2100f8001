package keeperd

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/gantry-cri/gantry/sandbox/crilog"
	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// adoptAll takes over what a keeper of before left: live containers at once, dead ones when the daemon hands over their
// pidfd or says that none follows. It never fails: what cannot be read is left for delete, and told.
func (k *Keeper) adoptAll() {
	ids, err := k.layout.ids()
	if err != nil {
		k.log.printf("adopt: %v", err)
	}
	found := 0
	for _, id := range ids {
		state, err := k.adoptOne(id)
		if err != nil {
			k.log.printf("adopt %s: %v", id, err)
		}
		if state != stateExited {
			found++
		}
	}
	k.gatherReapers()
	// The living count too: the daemon has their terminals.
	k.settled = found == 0
}

// adoptOne returns the state that the container is in now; what was half-made is removed.
func (k *Keeper) adoptOne(id string) (state, error) {
	r, err := k.layout.readRecord(id)
	if err != nil {
		return stateExited, errors.Join(err, k.removeRemains(id, cgroupRef{}))
	}
	status, err := keeper.ReadStatus(r.dir())
	if err != nil || status.PID == 0 || status.BootID != keeper.BootID() {
		// A start that was never answered, one that failed, or another boot.
		if err == nil && !status.Exited() {
			status.Finished, status.ExitCode, status.Error = time.Now(), unknownExit, unknownExitText
			err = keeper.WriteStatus(r.dir(), status)
		}
		if os.IsNotExist(err) {
			err = nil
		}
		return stateExited, errors.Join(err, k.removeRemains(id, r.cgroup()))
	}
	c := newContainer(id, r.dir())
	c.pid, c.startTime, c.status = status.PID, status.StartTime, *status
	c.terminal = r.Start != nil && k.hasTerminal(id)
	c.cgroup = k.findCgroup(id, r)
	if !status.Exited() {
		k.oom.open(c.cgroup.counter())
	}
	k.mu.Lock()
	k.containers[id] = c
	k.mu.Unlock()
	switch {
	case status.Exited():
		c.state = stateExited
		close(c.enrolled)
		close(c.gone)
		return stateExited, k.release(c)
	case k.adoptLive(c, r):
		return stateRunning, nil
	}
	c.state = stateLost
	close(c.enrolled)
	return stateLost, nil
}

func (k *Keeper) hasTerminal(id string) bool {
	p, err := k.layout.readProcess(id)
	return err == nil && p.Terminal
}

// findCgroup finds the cgroup by libcontainer's state, else by the record.
func (k *Keeper) findCgroup(id string, r *record) cgroup {
	// Not libcontainer.Load: it waits for ever for a cgroup that is half frozen, as a checkpoint that was killed leaves
	// it.
	var state struct {
		CgroupPaths map[string]string `json:"cgroup_paths"`
	}
	if err := readJSON(k.layout.libcontainerState(id), &state); err == nil {
		return cgroup{paths: state.CgroupPaths}
	}
	ref := r.cgroup()
	if ref.path == "" {
		if spec, err := k.layout.readSpec(id); err == nil && spec.Linux != nil {
			ref.path = spec.Linux.CgroupsPath
		}
	}
	if ref.path == "" {
		return cgroup{}
	}
	m, err := newManager(id, ref.path, ref.systemd)
	if err != nil {
		return cgroup{}
	}
	return cgroup{paths: m.GetPaths()}
}

// adoptLive makes a container that lives a running one.
func (k *Keeper) adoptLive(c *container, r *record) bool {
	pidfd, err := openPIDFD(c.pid)
	if err != nil {
		return false
	}
	// In this order: the pidfd is of the process that the start time then proves to be ours. A zombie may be no more than
	// the first thread of a process that goes on without it.
	s, err := readStat(c.pid)
	if err != nil || s.startTime != c.startTime || hasExited(pidfd) {
		_ = pidfd.Close()
		return false
	}
	c.pidfd = pidfd
	k.openAdopted(c, r)
	k.thawAbandoned(c)
	left := c.execCgroups()
	k.enrol(c)
	go endExecs(left)
	return true
}

// openAdopted resumes the log. A terminal's master comes with adopt.
func (k *Keeper) openAdopted(c *container, r *record) {
	if r.Start == nil {
		return
	}
	open := func(path string) (*output, error) {
		log, err := crilog.Resume(path)
		if err != nil || c.terminal {
			return &output{log: log}, err
		}
		return k.openOutput(c.id, log, nil)
	}
	out, err := open(r.Start.LogPath)
	if err != nil {
		k.log.printf("resume log of %s: %v: its output is dropped", c.id, err)
		if out, err = open(""); err != nil {
			log, _ := crilog.Open("")
			out = &output{log: log}
		}
	}
	c.out = out
}

// handleAdopt takes the descriptors that the daemon kept.
func (k *Keeper) handleAdopt(_ context.Context, call *keeper.Call) error {
	var req keeper.AdoptRequest
	if err := call.Decode(&req); err != nil {
		return err
	}
	c, err := k.find(req.ID)
	if err != nil {
		return err
	}
	files := call.Files
	if len(files) == 0 || (req.Terminal && len(files) < 2) {
		return keeper.Errorf(keeper.KindInvalid, "adopt: %d descriptors", len(files))
	}
	var master *os.File
	if req.Terminal {
		master = files[1]
	}
	switch k.stateOf(c) {
	case stateLost:
		k.attachTerminal(c, master)
		k.bury(c, files[0])
	case stateRunning:
		k.attachTerminal(c, master)
	}
	return call.Reply(struct{}{})
}

// attachTerminal resumes the log of a terminal.
func (k *Keeper) attachTerminal(c *container, master *os.File) {
	if master == nil || !c.terminal || c.out == nil {
		return
	}
	var copies [2]*os.File
	for i := range copies {
		fd, err := dup(master)
		if err != nil {
			k.log.printf("resume terminal of %s: %v", c.id, err)
			keeper.CloseFiles(copies[:])
			return
		}
		copies[i] = os.NewFile(uintptr(fd), "terminal")
	}
	if !c.out.setMaster(copies[0]) {
		keeper.CloseFiles(copies[:])
		return
	}
	c.out.add(k, c.id, crilog.Stdout, copies[1], true)
}

// bury records the exit of a container that died while no keeper lived. pidfd is the one that the daemon kept, or nil.
func (k *Keeper) bury(c *container, pidfd *os.File) {
	c.burial.Do(func() {
		code := int32(noCode)
		if status, ok := k.exitOf(pidfd, c.pid, c.startTime); ok {
			code = codeOf(status)
		}
		if r, err := k.layout.readRecord(c.id); err == nil && c.out == nil {
			// Its last words are in the FIFOs if the daemon kept the read ends.
			k.openAdopted(c, r)
		}
		k.finish(c, code, time.Now())
	})
}

// handleSettle calls lost what the daemon did not hand over.
func (k *Keeper) handleSettle(_ context.Context, call *keeper.Call) error {
	k.mu.Lock()
	var lost []*container
	for _, c := range k.containers {
		if c.state == stateLost {
			lost = append(lost, c)
		}
	}
	k.mu.Unlock()
	for _, c := range lost {
		k.bury(c, nil)
	}
	k.mu.Lock()
	k.settled = true
	k.mu.Unlock()
	return call.Reply(struct{}{})
}
