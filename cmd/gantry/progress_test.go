package main

import (
	"bytes"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/cri/operator"
)

const layerType = "application/vnd.oci.image.layer.v1.tar+gzip"

func layer(digest string, offset, total int64, done bool) *operator.BlobProgress {
	b := &operator.BlobProgress{
		Digest: "sha256:" + strings.Repeat(digest, 64), MediaType: layerType, Offset: offset, Total: total,
		State: operator.BlobProgress_DOWNLOADING,
	}
	if done {
		b.State = operator.BlobProgress_DONE
	}
	return b
}

// screen plays what was written to a terminal and returns its lines. It knows the three sequences that barView uses.
func screen(t *testing.T, written string) []string {
	t.Helper()
	lines, row := []string{""}, 0
	sequence := regexp.MustCompile(`\x1b\[(\d*)([AK])`)
	for written != "" {
		if m := sequence.FindStringSubmatch(written); m != nil && strings.HasPrefix(written, m[0]) {
			written = written[len(m[0]):]
			if m[2] == "K" {
				lines[row] = ""
				continue
			}
			n, err := strconv.Atoi(m[1])
			if err != nil || n > row {
				t.Fatalf("cursor moves %s up from row %d", m[1], row)
			}
			row -= n
			continue
		}
		switch c := written[0]; c {
		case '\n':
			if row++; row == len(lines) {
				lines = append(lines, "")
			}
		case '\r': // always followed by a clear
		default:
			lines[row] += string(c)
		}
		written = written[1:]
	}
	return lines[:len(lines)-1]
}

func TestBarsAreDrawnInPlace(t *testing.T) {
	var out bytes.Buffer
	view := &barView{w: &out, size: func() (int, int) { return 80, 24 }}
	view.update([]*operator.BlobProgress{layer("a", 0, 4096, false)})
	view.update([]*operator.BlobProgress{layer("b", 1024, 2048, false), layer("a", 1024, 4096, false)})
	got := screen(t, out.String())
	if len(got) != 3 || !strings.HasPrefix(got[0], "layer    aaaaaaaaaaaaa [") ||
		!strings.HasPrefix(got[1], "layer    bbbb") {
		t.Fatalf("screen:\n%s", strings.Join(got, "\n"))
	}
	if !strings.HasSuffix(got[0], "] 1.0 KiB / 4.0 KiB") || got[2] != "0 of 2 complete" {
		t.Errorf("screen:\n%s", strings.Join(got, "\n"))
	}
	inside := got[0][strings.Index(got[0], "[")+1 : strings.Index(got[0], "]")]
	if full := strings.Count(inside, "="); full != len(inside)/4 {
		t.Errorf("a quarter is drawn as %q", inside)
	}
	view.update([]*operator.BlobProgress{layer("a", 4096, 4096, true), layer("b", 2048, 2048, true)})
	got = screen(t, out.String())
	if len(got) != 3 || !strings.HasSuffix(got[0], "=] done, 4.0 KiB") || got[2] != "2 of 2 complete, unpacking" {
		t.Errorf("screen:\n%s", strings.Join(got, "\n"))
	}
	view.finish(true)
	if got = screen(t, out.String()); len(got) != 3 || got[2] != "2 of 2 complete" {
		t.Errorf("screen at the end:\n%s", strings.Join(got, "\n"))
	}
}

func TestBarsFitTheTerminal(t *testing.T) {
	for _, size := range [][2]int{{80, 24}, {40, 10}, {20, 5}, {1, 2}} {
		var out bytes.Buffer
		view := &barView{w: &out, size: func() (int, int) { return size[0], size[1] }}
		for i := range int64(40) {
			view.update([]*operator.BlobProgress{{
				Digest: "sha256:" + strconv.Itoa(int(i)), MediaType: layerType, Offset: 1 << 30, Total: 3 << 30,
				State: operator.BlobProgress_State(1 + i%2),
			}})
		}
		lines := view.picture(size[0], size[1]-1)
		if len(lines) > size[1]-1 {
			t.Errorf("%v: %d lines", size, len(lines))
		}
		for _, line := range lines[:len(lines)-1] {
			if len(line) >= size[0] {
				t.Errorf("%v: line of %d: %q", size, len(line), line)
			}
		}
		if last := lines[len(lines)-1]; last != "20 of 40 complete" {
			t.Errorf("%v: last line %q", size, last)
		}
	}
}

func TestLinesForWhatIsNoTerminal(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	view := newProgressView(f)
	view.update([]*operator.BlobProgress{layer("a", 10, 2048, false)})
	view.update([]*operator.BlobProgress{layer("a", 2048, 2048, true)})
	view.update([]*operator.BlobProgress{layer("a", 2048, 2048, true)})
	view.finish(true)
	got, err := os.ReadFile(f.Name())
	if want := "layer aaaaaaaaaaaaa done, 2.0 KiB\n"; err != nil || string(got) != want {
		t.Errorf("printed %q, error %v, expected %q", got, err, want)
	}
}

func TestSizesAndAges(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 150 << 10: "150 KiB", 1<<20 - 1: "1.0 MiB",
		5 << 30: "5.0 GiB", 1 << 62: "4.0 EiB",
	} {
		if got := humanBytes(n); got != want {
			t.Errorf("%d: %q, expected %q", n, got, want)
		}
	}
	for seconds, want := range map[int64]string{-5: "0s", 42: "42s", 119: "119s", 120: "2m", 7200: "2h", 172800: "2d"} {
		if got := humanAge(time.Duration(seconds) * time.Second); got != want {
			t.Errorf("%d s: %q, expected %q", seconds, got, want)
		}
	}
}
