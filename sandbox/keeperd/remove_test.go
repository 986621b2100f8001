package keeperd

import (
	"context"
	"errors"
	"testing"
)

// A removal that waits for a dead disk, or for a start that cannot be given up, is refused: who asks can ask again.
func TestARemovalDoesNotWaitForever(t *testing.T) {
	k := &Keeper{}
	for _, test := range []struct {
		what    string
		prepare func(*container)
		seconds float64
	}{
		{"the exit is not recorded", func(c *container) { close(c.enrolled) }, 10},
		{"the start does not end", func(*container) {}, 5},
	} {
		var c *container
		took, err := impatient(t, func(ctx context.Context) error {
			c = newContainer("c", t.TempDir())
			c.state = stateExited
			test.prepare(c)
			return k.end(ctx, c)
		})
		if !errors.Is(err, errTimeout) || took.Seconds() != test.seconds {
			t.Errorf("%s: %v after %v", test.what, err, took)
		}
	}
	if took, err := impatient(t, func(ctx context.Context) error {
		c := newContainer("c", t.TempDir())
		c.state = stateExited
		close(c.enrolled)
		close(c.gone)
		return k.end(ctx, c)
	}); err != nil || took != 0 {
		t.Errorf("an exit that is recorded: %v after %v", err, took)
	}
}
