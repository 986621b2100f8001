package keeperd

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestProcIsReadForZombiesThatStay(t *testing.T) {
	for name, c := range map[string]struct {
		zombies []int // that the looks find
		read    []int // at which of them /proc is read
	}{
		"none":                   {[]int{0, 0, 0}, nil},
		"stages come and go":     {[]int{11, 0, 12, 13, 0, 14, 15, 16, 0}, nil},
		"an orphan":              {[]int{11, 11, 11, 11, 11, 11, 11, 11, 0}, []int{1, 6}},
		"one behind stages":      {[]int{11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21}, []int{5, 10}},
		"the same pid, reused":   {[]int{11, 0, 11, 0}, nil},
		"another one soon after": {[]int{11, 11, 0, 12, 12, 12, 12, 12}, []int{1, 6}},
	} {
		t.Run(name, func(t *testing.T) {
			var l looks
			now := time.Now()
			for i, pid := range c.zombies {
				want := len(c.read) > 0 && c.read[0] == i
				if want {
					c.read = c.read[1:]
				}
				if got := l.due(pid, now); got != want {
					t.Errorf("look %d: /proc is read: %v", i, got)
				}
				if (l.row == 0) != (pid == 0) {
					t.Errorf("look %d: %d looks in a row", i, l.row)
				}
				now = now.Add(lookEvery)
			}
		})
	}
}

func TestAnyZombieNamesOne(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		// It may be that of another test, which reaps it meanwhile.
		s, err := readStat(anyZombie())
		if err == nil && s.state == 'Z' && s.ppid == os.Getpid() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("a child has ended and is not waited for; named is a process of %+v, %v", s, err)
		}
	}
}
