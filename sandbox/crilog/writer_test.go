package crilog

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 600, time.FixedZone("x", 3600))

const stamp = "2026-01-02T02:04:05.0000006Z"

func TestFormat(t *testing.T) {
	full := strings.Repeat("x", MaxContent)
	for _, c := range []struct {
		name, in string
		final    bool
		want     string
		done     int
	}{
		{"nothing", "", true, "", 0},
		{"a line", "hello\n", false, " F hello\n", 6},
		{"an empty line", "\n", false, " F \n", 1},
		{"an unterminated line waits", "a\nbc", false, " F a\n", 2},
		{"an unterminated line at the end", "a\nbc", true, " F a\n P bc\n", 4},
		{"a line of just the limit", full + "\n", false, " F " + full + "\n", MaxContent + 1},
		{"a longer line", full + "yz\n", false, " P " + full + "\n F yz\n", MaxContent + 3},
		{"the limit without an end", full, false, " P " + full + "\n", MaxContent},
		{"the limit at the end", full, true, " P " + full + "\n", MaxContent},
		{"carriage returns and zeros stay", "a\r\x00\n", false, " F a\r\x00\n", 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, done := format(nil, epoch, Stdout, []byte(c.in), c.final)
			want := ""
			for _, record := range strings.SplitAfter(c.want, "\n") {
				if record != "" {
					want += stamp + " stdout" + record
				}
			}
			if string(got) != want || done != c.done {
				t.Errorf("got %d %q, want %d %q", done, got, c.done, want)
			}
		})
	}
}

var record = regexp.MustCompile(`^[0-9TZ:.-]+ (stdout|stderr) ([PF]) `)

// parse undoes format: what a reader of the log puts together again.
func parse(t *testing.T, log []byte) []byte {
	t.Helper()
	var out []byte
	for _, line := range bytes.SplitAfter(log, []byte("\n")) {
		if len(line) == 0 {
			continue
		}
		m := record.FindSubmatch(line)
		if m == nil || !bytes.HasSuffix(line, []byte("\n")) {
			t.Fatalf("bad record %q", line)
		}
		content := line[len(m[0]):]
		if len(content)-1 > MaxContent {
			t.Fatalf("record of %d bytes", len(content)-1)
		}
		if m[2][0] == 'P' {
			content = content[:len(content)-1]
		}
		out = append(out, content...)
	}
	return out
}

func FuzzFormatKeepsEveryByte(f *testing.F) {
	f.Add([]byte("a\nb"), 1)
	f.Add([]byte(strings.Repeat("z", 40000)+"\n"), 16384)
	f.Fuzz(func(t *testing.T, data []byte, cut int) {
		if cut < 1 {
			cut = 1
		}
		var log, waiting []byte
		for rest := data; len(rest) > 0; {
			k := min(cut, len(rest))
			waiting = append(waiting, rest[:k]...)
			rest = rest[k:]
			var n int
			log, n = format(log, epoch, Stderr, waiting, len(rest) == 0)
			waiting = waiting[n:]
			if len(waiting) >= MaxContent {
				t.Fatalf("%d bytes left waiting", len(waiting))
			}
		}
		if got := parse(t, log); !bytes.Equal(got, data) {
			t.Fatalf("got %q, want %q", got, data)
		}
	})
}

func TestReopenSwapsTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	w, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	appendAll(t, w, "before\n")
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	appendAll(t, w, "meanwhile\n")
	if err := w.Reopen(); err != nil {
		t.Fatal(err)
	}
	appendAll(t, w, "after\n")
	for file, want := range map[string]string{path + ".old": "before\nmeanwhile\n", path: "after\n"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(parse(t, b)); got != want {
			t.Errorf("%s holds %q, want %q", file, got, want)
		}
	}
	if info, _ := os.Stat(path); info.Mode().Perm()&0o137 != 0 {
		t.Errorf("mode is %o", info.Mode().Perm())
	}
}

func TestReopenThatFailsKeepsTheOldFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	w, err := Open(filepath.Join(dir, "0.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := os.Rename(dir, dir+"2"); err != nil {
		t.Fatal(err)
	}
	if err := w.Reopen(); !os.IsNotExist(unwrapAll(err)) {
		t.Fatalf("reopen: %v", err)
	}
	appendAll(t, w, "still here\n")
	b, _ := os.ReadFile(filepath.Join(dir+"2", "0.log"))
	if got := string(parse(t, b)); got != "still here\n" {
		t.Errorf("old file holds %q", got)
	}
}

func unwrapAll(err error) error {
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return err
		}
		err = u.Unwrap()
	}
}

func TestFullDiskDropsAndGoesOn(t *testing.T) {
	w := &Writer{path: "/dev/full", now: time.Now}
	f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.file = f
	if n, err := w.Append(Stdout, []byte("lost\n"), false); n != 5 || err == nil {
		t.Fatalf("got %d, %v", n, err)
	}
	if w.file == nil {
		t.Error("a full disk closed the file")
	}
}

func TestEmptyPathDrops(t *testing.T) {
	w, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	appendAll(t, w, "x\n")
	if err := w.Reopen(); err != nil {
		t.Error(err)
	}
}

func appendAll(t *testing.T, w *Writer, s string) {
	t.Helper()
	if n, err := w.Append(Stdout, []byte(s), false); err != nil || n != len(s) {
		t.Fatalf("append: %d, %v", n, err)
	}
}

func BenchmarkAppend(b *testing.B) {
	w, err := Open(filepath.Join(b.TempDir(), "log"))
	if err != nil {
		b.Fatal(err)
	}
	data := bytes.Repeat([]byte(strings.Repeat("y", 99)+"\n"), 640)
	b.SetBytes(int64(len(data)))
	for written := 0; b.Loop(); {
		if _, err := w.Append(Stdout, data, false); err != nil {
			b.Fatal(err)
		}
		if written += len(data); written > 128<<20 { // the disk is shared
			_ = w.file.Truncate(0)
			written = 0
		}
	}
}
