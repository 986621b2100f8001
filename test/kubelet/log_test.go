//go:build e2e

package kubelet

import (
	"bufio"
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
  command: [sh, -c, "seq 1 100; echo to stderr >&2; head -c 100000 /dev/zero | tr '\\0' x; echo; echo -n no newline"]`)
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
	wantContains(t, "log", all, "to stderr\n")
	wantContains(t, "log", all, strings.Repeat("x", 100000)+"\n")
	if !strings.HasSuffix(all, "no newline") {
		t.Errorf("log ends with %q", all[max(0, len(all)-20):])
	}
	// Which of the two streams comes first is nobody's promise.
	wantEqual(t, "limited log", get(url.Values{"limitBytes": {"4"}}), all[:4])
	first, _, _ := strings.Cut(get(url.Values{"timestamps": {"true"}}), "\n")
	stamp, line, _ := strings.Cut(first, " ")
	want, _, _ := strings.Cut(all, "\n")
	if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil || line != want {
		t.Errorf("first line with a time is %q, want %q", first, want)
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
	var files []string
	eventually(t, "a rotated and a compressed file", func() error {
		files, _ = filepath.Glob(filepath.Join(dir, "0.log.*"))
		if !slices.ContainsFunc(files, func(f string) bool { return strings.HasSuffix(f, ".gz") }) {
			return fmt.Errorf("files are %v", files)
		}
		return nil
	})
	slices.Sort(files) // by time
	next := 1
	for _, file := range append(files, filepath.Join(dir, "0.log")) {
		next = countLines(t, file, next)
	}
	wantEqual(t, "lines", next-1, lines)
}

// countLines checks that the lines of a log file go on from a number and returns the next one.
func countLines(t *testing.T, file string, next int) int {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var reader io.Reader = f
	if strings.HasSuffix(file, ".gz") {
		if reader, err = gzip.NewReader(f); err != nil {
			t.Fatal(err)
		}
	}
	for scanner := bufio.NewScanner(reader); scanner.Scan(); {
		fields := strings.Fields(scanner.Text())
		if len(fields) > 3 && fields[3] == "complete" {
			continue
		}
		if len(fields) != 6 || fields[2] != "F" || fields[4] != fmt.Sprint(next) {
			t.Fatalf("%s: line is %q, want number %d", filepath.Base(file), scanner.Text(), next)
		}
		next++
	}
	return next
}
