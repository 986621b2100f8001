//go:build e2e

package kubelet

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestLogQueries(t *testing.T) {
	t.Parallel()
	p := start(t, `
restartPolicy: Never
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, "seq 1 100; head -c 100000 /dev/zero | tr '\\0' x; echo; echo -n no newline"]
- name: other
  image: BUSYBOX
  command: [sh, -c, "echo to stderr >&2"]`)
	p.finished(t)
	get := func(query url.Values) string {
		t.Helper()
		text, err := p.Logs(timeout(t), "main", query)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	all := get(nil)
	wantContains(t, "log", all, "99\n100\n")
	// By itself: a line of another stream may come between the parts of a long one.
	other, err := p.Logs(timeout(t), "other", nil)
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "log of standard error", other, "to stderr\n")
	wantContains(t, "log", all, strings.Repeat("x", 100000)+"\n")
	if !strings.HasSuffix(all, "no newline") {
		t.Errorf("log ends with %q", all[max(0, len(all)-20):])
	}
	wantEqual(t, "limited log", get(url.Values{"limitBytes": {"4"}}), all[:4])
	first, _, _ := strings.Cut(get(url.Values{"timestamps": {"true"}}), "\n")
	stamp, line, _ := strings.Cut(first, " ")
	if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil || line != "1" {
		t.Errorf("first line with a time is %q, want %q", first, "1")
	}
}

func TestLogIsFollowed(t *testing.T) {
	t.Parallel()
	p := start(t, `
restartPolicy: Never
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, "for i in 1 2 3 4 5 6; do echo line $i; sleep 0.5; done"]`)
	p.wait(t, "the container", func(s *Status) bool {
		state := s.Container("main").State
		return state.Running != nil || state.Terminated != nil
	})
	text, err := p.Logs(timeout(t), "main", url.Values{"follow": {"true"}}) // ends with the container
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "followed log", text, "line 1\nline 2\nline 3\nline 4\nline 5\nline 6\n")
}

// TestLogRotation: the kubelet rotates at 200 KiB and looks every 3 s. All that was written is in the files, in order.
func TestLogRotation(t *testing.T) {
	t.Parallel()
	const lines = 4000
	p := start(t, fmt.Sprintf(`
containers:
- name: main
  image: BUSYBOX
  command:
  - sh
  - -c
  - |
    i=0
    while [ $i -lt %d ]; do
      i=$((i+1)); printf 'line %%d %%0100d\n' $i 0
      [ $((i %% 50)) = 0 ] && sleep 0.2
    done
    echo complete
    exec sleep 10000`, lines))
	p.running(t)
	p.logsHave(t, "main", "complete\n")
	dir := filepath.Join(shared.PodLogs, fmt.Sprintf("%s_%s_%s", Namespace, p.Name, p.UID(timeout(t))), "main")
	var log []byte
	eventually(t, "a rotated and a compressed file, and no rotation while they are read", func() (err error) {
		log, err = rotatedLog(dir)
		return err
	})
	next := 1
	for line := range strings.Lines(string(log)) {
		fields := strings.Fields(line)
		if len(fields) > 3 && fields[3] == "complete" {
			continue
		}
		if len(fields) != 6 || fields[2] != "F" || fields[4] != fmt.Sprint(next) {
			t.Fatalf("line is %q, want number %d", line, next)
		}
		next++
	}
	wantEqual(t, "lines", next-1, lines)
}

// rotatedLog reads all files of a log in the order of writing. It is an error when none is compressed yet, and when the
// kubelet rotates or compresses meanwhile.
func rotatedLog(dir string) ([]byte, error) {
	list := func() (files []string, state string) {
		files, _ = filepath.Glob(filepath.Join(dir, "0.log.*"))
		slices.Sort(files) // by time
		files = append(files, filepath.Join(dir, "0.log"))
		for _, file := range files {
			if info, err := os.Stat(file); err == nil {
				state += fmt.Sprintln(file, info.Size(), info.ModTime())
			}
		}
		return files, state
	}
	files, before := list()
	var log []byte
	compressed := 0
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		name, gz := strings.CutSuffix(file, ".gz")
		if gz {
			compressed++
			reader, err := gzip.NewReader(bytes.NewReader(b))
			if err != nil {
				return nil, err
			}
			if b, err = io.ReadAll(reader); err != nil {
				return nil, err
			}
		}
		if strings.HasSuffix(name, ".tmp") || gz && slices.Contains(files, name) {
			return nil, fmt.Errorf("one is being compressed: %v", files)
		}
		log = append(log, b...)
	}
	if _, after := list(); after != before || compressed == 0 {
		return nil, fmt.Errorf("%d of the files are compressed: before\n%safter\n%s", compressed, before, after)
	}
	return log, nil
}
