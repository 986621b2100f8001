//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// logLine is one line of a CRI log.
type logLine struct {
	stream, tag, text string
}

// readWhole reads a log. The end of a record that is just being written may show later than its beginning: then it reads
// again.
func readWhole(t *testing.T, path string) []byte {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) == 0 || b[len(b)-1] == '\n' || time.Now().After(end) {
			return b
		}
	}
}

// readLog parses a log file; a line that is not in the CRI's format fails the test.
func readLog(t *testing.T, paths ...string) []logLine {
	t.Helper()
	var lines []logLine
	for _, path := range paths {
		for raw := range strings.Lines(string(readWhole(t, path))) {
			fields := strings.SplitN(strings.TrimSuffix(raw, "\n"), " ", 4)
			if len(fields) != 4 || !strings.HasSuffix(raw, "\n") {
				t.Fatalf("%s: line is cut or not in the log format: %q", path, raw)
			}
			if _, err := time.Parse(time.RFC3339Nano, fields[0]); err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			if !slices.Contains([]string{"stdout", "stderr"}, fields[1]) || fields[2] != "P" && fields[2] != "F" {
				t.Fatalf("%s: not in the log format: %q", path, raw)
			}
			lines = append(lines, logLine{fields[1], fields[2], fields[3]})
		}
	}
	return lines
}

// logText is what the container wrote, both streams, line by line.
func (c *container) logText(t *testing.T) string {
	t.Helper()
	var texts []string
	for _, line := range readLog(t, c.logPath) {
		texts = append(texts, line.text)
	}
	return strings.Join(texts, "\n")
}

// waitLog waits until the container has written a line, in one record or in several.
func (c *container) waitLog(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		b, _ := os.ReadFile(c.logPath)
		if strings.Contains("\n"+said(string(b))+"\n", "\n"+text+"\n") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the log does not say %q but:\n%s\n%s", text, b, c.report())
		}
	}
}

// report says what the node knows of a container that does not do what it should: a failure may never come again.
func (c *container) report() string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	response, err := c.node.Runtime.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
	said := fmt.Sprintf("%v\n%v %v\n", response.GetStatus(), response.GetInfo(), err)
	logs, _ := filepath.Glob(filepath.Join(c.node.Dir, "*.log"))
	deeper, _ := filepath.Glob(filepath.Join(c.node.Dir, "*", "*.log"))
	for _, log := range append(logs, deeper...) {
		b, _ := os.ReadFile(log)
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, c.id) {
				said += filepath.Base(log) + ": " + line
			}
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range processes {
		if b, _ := os.ReadFile(dir + "/cgroup"); !strings.Contains(string(b), c.id) {
			continue
		}
		for _, file := range []string{"comm", "wchan", "syscall", "stack"} {
			b, err := os.ReadFile(filepath.Join(dir, file))
			said += fmt.Sprintf("%s/%s: %s %v\n", dir, file, b, err)
		}
	}
	return said
}

// waitCount waits until a counter has come to a number, which is in the log as it is now.
func (c *container) waitCount(t *testing.T, least int) {
	t.Helper()
	eventually(t, fmt.Sprintf("the container counts to %d", least), func() bool {
		b, _ := os.ReadFile(c.logPath)
		last := 0
		for line := range strings.Lines(said(string(b))) {
			if n, err := strconv.Atoi(strings.TrimSuffix(line, "\n")); err == nil && strings.HasSuffix(line, "\n") {
				last = n
			}
		}
		return last >= least
	})
}

// said joins the records of a log.
func said(log string) string {
	var b strings.Builder
	for raw := range strings.Lines(log) {
		fields := strings.SplitN(raw, " ", 4)
		if len(fields) < 4 {
			continue // being written
		}
		if fields[2] == "P" {
			fields[3] = strings.TrimSuffix(fields[3], "\n")
		}
		b.WriteString(fields[3])
	}
	return b.String()
}

// wantCounting checks that the texts are the numbers from 1 on, none missing, twice or out of order.
func wantCounting(t *testing.T, lines []logLine, atLeast int) {
	t.Helper()
	for i, line := range lines {
		if line.text != fmt.Sprint(i+1) {
			t.Fatalf("line %d of the log is %q", i+1, line.text)
		}
	}
	if len(lines) < atLeast {
		t.Fatalf("log has %d lines, expected at least %d", len(lines), atLeast)
	}
}

// wantNoGap checks that the texts are the numbers from 1 on, none missing. A keeper that is killed between writing and
// discarding what it wrote leaves it to its successor to write again: repeated is allowed, lost is not.
func wantNoGap(t *testing.T, lines []logLine, atLeast int) {
	t.Helper()
	last := 0
	for i, line := range lines {
		n, err := strconv.Atoi(line.text)
		if err != nil || n < 1 || n > last+1 {
			t.Fatalf("line %d of the log is %q, after %d", i+1, line.text, last)
		}
		last = n
	}
	if last < atLeast {
		t.Fatalf("log counts to %d, expected at least %d", last, atLeast)
	}
}

// counter writes numbers from 1 on as fast as it can until it is told to end.
const counter = `i=0; trap 'exit 0' TERM; while :; do i=$((i+1)); echo $i; done`

func TestLogHasBothStreamsAndLongLines(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "writer", `echo out; echo err >&2; head -c 40000 /dev/zero | tr '\0' x; echo; printf unfinished`)
	c.waitExit(t)
	var long strings.Builder
	var rest []logLine
	for _, line := range readLog(t, c.logPath) {
		if strings.HasPrefix(line.text, "xxx") {
			long.WriteString(line.text)
			continue
		}
		rest = append(rest, line)
	}
	wantEqual(t, "length of the long line", long.Len(), 40000)
	for _, want := range []logLine{{"stdout", "F", "out"}, {"stderr", "F", "err"}} {
		if !slices.Contains(rest, want) {
			t.Errorf("log does not hold %v: %v", want, rest)
		}
	}
	if last := rest[len(rest)-1]; last.text != "unfinished" && !slices.ContainsFunc(rest, func(l logLine) bool { return l.text == "unfinished" }) {
		t.Errorf("the unfinished line is missing: %v", rest)
	}
	wantEqual(t, "log path in status", c.status(t).LogPath, c.logPath)
}

func TestRotationLosesAndCutsNoLine(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "counter", counter)
	c.waitLog(t, "100")
	var files []string
	for i := range 5 {
		rotated := fmt.Sprintf("%s.%d", c.logPath, i)
		if err := os.Rename(c.logPath, rotated); err != nil {
			t.Fatal(err)
		}
		files = append(files, rotated)
		_, err := p.node.Runtime.ReopenContainerLog(timeout(t), &runtime.ReopenContainerLogRequest{ContainerId: c.id})
		if err != nil {
			t.Fatalf("reopen log: %v", err)
		}
		size := fileSize(t, rotated)
		time.Sleep(100 * time.Millisecond)
		wantEqual(t, "size of the rotated file after the reopening", fileSize(t, rotated), size)
	}
	c.waitCount(t, 1000)
	if err := c.stop(t, 60); err != nil {
		t.Fatal(err)
	}
	wantCounting(t, readLog(t, append(files, c.logPath)...), 1000)
}

func TestReopenOfAnExitedContainerMakesNoFileOnError(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "short", "echo done")
	c.waitExit(t)
	if err := os.Rename(c.logPath, c.logPath+".1"); err != nil {
		t.Fatal(err)
	}
	_, err := p.node.Runtime.ReopenContainerLog(timeout(t), &runtime.ReopenContainerLogRequest{ContainerId: c.id})
	if _, statErr := os.Stat(c.logPath); err != nil && statErr == nil {
		t.Errorf("reopening failed (%v) and made a file", err)
	}
	files, _ := filepath.Glob(c.logPath + "*")
	if len(files) == 0 {
		t.Error("the rotated log is gone")
	}
}

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}
