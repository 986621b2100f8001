package keeperd

import (
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/crilog"
)

// What a keeper that is killed leaves to be written again is what is in the log and still in the FIFO. The log is a file
// that takes nothing, so that each write tells what the FIFO has at that moment.
func TestAKillRepeatsNoMoreThanOneWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	writer, err := openFIFO(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(writer.Fd(), unix.F_SETPIPE_SZ, hotSize); err != nil {
		t.Fatal(err)
	}
	reader, err := openReader(path)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(reader.Fd())
	log, err := crilog.Open("/proc/self/oom_score_adj")
	if err != nil {
		t.Fatal(err)
	}
	line := strings.Repeat("x", 99) + "\n"
	all := 4 * writeSize / len(line) * len(line)
	if _, err := writer.WriteString(strings.Repeat(line, all/len(line))); err != nil {
		t.Fatal(err)
	}
	_ = writer.Close()
	var mu sync.Mutex
	left := []int{all}
	p := &pump{pool: newPumpPool(), stream: crilog.Stdout, source: reader, log: log, report: func(error) {
		n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		left = append(left, n)
	}}
	p.start(false)
	<-p.done
	mu.Lock()
	defer mu.Unlock()
	if len(left) < 2 || left[1] != all {
		t.Fatalf("at the writes the FIFO had %v bytes, expected %d at first", left, all)
	}
	for i, n := range left[2:] {
		if wrote := left[i+1] - n; wrote <= 0 || wrote > writeSize {
			t.Errorf("after a write of %d bytes the FIFO has %d, expected at most %d to be written again", wrote, n, writeSize)
		}
	}
	if last := left[len(left)-1]; last > writeSize {
		t.Errorf("the last write is of %d bytes, expected %d at most", last, writeSize)
	}
}
