package stats

import (
	"context"
	"testing"
	"time"
)

// Who lists gets the layers as they are after the disk has filled, and does not have them measured otherwise.
func TestALayerThatGrowsFastIsInTheNextList(t *testing.T) {
	s, n, c := startFake(t)
	<-n.measured // the round at start
	s.Container(t.Context(), c, 0)
	s.disk.scarceBelow.Store(1) // of any filesystem
	s.CatchUp(t.Context())
	if len(n.measured) != 0 {
		t.Fatal("layers were measured although nothing was written")
	}
	before := s.Container(t.Context(), c, AnyAge).Layer
	then := *s.disk.measured.Load()
	for _, filled := range []space{{then.bytes * 2, then.inodes}, {then.bytes, then.inodes / 2}} {
		s.disk.measured.Store(&filled)
		s.CatchUp(t.Context())
		after := s.Container(t.Context(), c, AnyAge).Layer
		if len(n.measured) != 1 || after == before {
			t.Errorf("after %+v became %+v it was measured %d times", filled, then, len(n.measured))
		}
		<-n.measured
		before = after
	}
	s.disk.scarceBelow.Store(1 << 60) // of none: whatever is written evicts nobody
	s.disk.measured.Store(&space{bytes: 1 << 60})
	s.CatchUp(t.Context())
	if len(n.measured) != 0 {
		t.Error("layers were measured although the disk is all but empty")
	}
}

// A disk that hangs, or is slow, holds nobody up for longer than his patience, and not everybody after him.
func TestLayersThatTakeLongHoldUpFew(t *testing.T) {
	s, n, c := startFake(t)
	<-n.measured // the round at start
	s.measuring <- struct{}{}
	s.disk.measured.Store(&space{bytes: 1 << 60})
	s.disk.scarceBelow.Store(1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.CatchUp(ctx)
	under := s.disk.look()
	if under == nil || s.disk.look() != under {
		t.Fatal("it is begun again although it is under way")
	}
	under.began = under.began.Add(-time.Hour)
	s.CatchUp(t.Context()) // would hang, as nothing is measured while the token is ours
	<-s.measuring
	<-under.done
	if len(n.measured) != 1 || s.Container(t.Context(), c, AnyAge).Layer == nil {
		t.Errorf("it was measured %d times after all", len(n.measured))
	}
	s.disk.measured.Store(&space{bytes: 1 << 60})
	s.CatchUp(t.Context())
	if len(n.measured) != 1 {
		t.Error("a slow disk was measured again at once")
	}
	s.disk.mu.Lock()
	s.disk.restUntil = time.Now().Add(-time.Second)
	s.disk.mu.Unlock()
	<-s.disk.look().done
	if len(n.measured) != 2 {
		t.Errorf("it was measured %d times after the rest, want 2", len(n.measured))
	}
}

// hang has a look begin that does not end before the returned function is called. Its patience lasts an hour.
func hang(s *Sampler) (release func()) {
	s.measuring <- struct{}{}
	s.disk.measured.Store(&space{bytes: 1 << 60})
	s.disk.scarceBelow.Store(1)
	under := s.disk.look()
	under.began = time.Now().Add(time.Hour)
	return func() {
		<-s.measuring
		<-under.done
	}
}

func (d *disk) setLooked(looked time.Time, roomy bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.looked, d.roomy = looked, roomy
}

// Where there is room a list reads memory, and does not wait even for a look that is under way.
func TestAListWaitsForALookOnlyWhereItHasTo(t *testing.T) {
	s, n, _ := startFake(t)
	<-n.measured // the round at start
	release := hang(s)
	s.disk.setLooked(time.Now().Add(time.Hour), true)
	s.CatchUp(t.Context()) // would hang
	for why, known := range map[string]struct {
		age   time.Duration
		roomy bool
	}{
		"the last look is too old": {2 * lookFresh, true},
		"there is little room":     {-time.Hour, false},
	} {
		s.disk.setLooked(time.Now().Add(-known.age), known.roomy)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		s.CatchUp(ctx)
		if ctx.Err() == nil {
			t.Errorf("a list does not wait for the look although %s", why)
		}
		cancel()
	}
	release()
}

func TestTheDiskIsLookedAtWhileListsAreAskedFor(t *testing.T) {
	s, n, _ := startFake(t)
	<-n.measured // the round at start
	looked := func() time.Time {
		s.disk.mu.Lock()
		defer s.disk.mu.Unlock()
		return s.disk.looked
	}
	if s.listsComeIn(time.Now()) || !looked().IsZero() {
		t.Errorf("the disk was looked at, at %s, although nobody asked for a list", looked())
	}
	s.CatchUp(t.Context())
	for range 2 {
		last := looked()
		if last.IsZero() {
			t.Fatal("the list did not wait for a look")
		}
		eventually(t, "a look that nobody asked for", func() bool { return looked().After(last) })
	}
	if !s.listsComeIn(time.Now()) || s.listsComeIn(time.Now().Add(restAfter*s.period)) {
		t.Error("the looks do not end some periods after the last list")
	}
}

func TestAListEndsWithTheSampler(t *testing.T) {
	s, n, c := startFake(t)
	<-n.measured // the round at start
	s.Close()
	s.disk.look().began = time.Now().Add(time.Hour)
	s.CatchUp(t.Context()) // would hang
	if got := s.Container(t.Context(), c, 0); got != nil {
		t.Errorf("got %+v of a sampler that was closed", got)
	}
}

func TestRoomIsWhatNobodyFillsInAMoment(t *testing.T) {
	const gib, mi = 1 << 30, 1 << 20
	for _, test := range []struct {
		free, all     space
		scarce, roomy bool
	}{
		{space{60 * gib, 9 * mi}, space{100 * gib, 10 * mi}, false, true},
		{space{40 * gib, 9 * mi}, space{100 * gib, 10 * mi}, false, false},
		{space{24 * gib, 9 * mi}, space{100 * gib, 10 * mi}, true, false},
		{space{60 * gib, 3 * mi}, space{100 * gib, 10 * mi}, false, false},
		{space{60 * gib, 2 * mi}, space{100 * gib, 10 * mi}, true, false},
		{space{60 * gib, 0}, space{100 * gib, 0}, false, true}, // inodes are not counted
		{space{9 * gib, 9 * mi}, space{10 * gib, 10 * mi}, false, false},
		{space{}, space{}, false, false}, // it could not be looked at
	} {
		if scarce, roomy := test.free.judge(test.all, scarceBelow); scarce != test.scarce || roomy != test.roomy {
			t.Errorf("%+v of %+v: scarce is %t, roomy is %t", test.free, test.all, scarce, roomy)
		}
	}
}
