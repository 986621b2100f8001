package keeperd

import (
	"context"
	"time"
)

// killWhenGivenUp kills the half-made container when ctx ends, until the returned function is called.
func (k *Keeper) killWhenGivenUp(ctx context.Context, c *container) (stop func()) {
	return whenGivenUp(ctx, func() {
		if dir := k.startingTree(c.id); dir != "" {
			killOnce(dir, treePIDs(dir))
		}
	})
}

// giveUpPause is the pause between two kills of a start that was given up: its processes enter the cgroup only after a
// while.
const giveUpPause = 50 * time.Millisecond

// whenGivenUp calls act when ctx ends, again and again, until stop is called. If ctx had not ended by then act is not
// called at all: so it is not a goroutine that waits for one or the other, which when it gets to run after both, as
// happens on a loaded machine, takes either for what happened.
func whenGivenUp(ctx context.Context, act func()) (stop func()) {
	done := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		for {
			act()
			select {
			case <-done:
				return
			case <-time.After(giveUpPause):
			}
		}
	})
	return func() {
		cancel()
		close(done)
	}
}

// startingTree finds the cgroup of a container that is being made from its record: the goroutine that makes it has the
// object.
func (k *Keeper) startingTree(id string) string {
	r, err := k.layout.readRecord(id)
	if err != nil {
		return ""
	}
	spec, err := k.layout.readSpec(id)
	if err != nil || spec.Linux == nil || r.Start == nil {
		return ""
	}
	m, err := newManager(id, spec.Linux.CgroupsPath, r.Start.SystemdCgroup)
	if err != nil {
		return ""
	}
	return cgroup{paths: m.GetPaths()}.tree()
}
