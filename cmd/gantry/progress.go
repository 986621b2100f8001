package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/cri/operator"
)

// progressView shows how far a pull is. It is used from one goroutine.
type progressView interface {
	// update tells of blobs that changed.
	update(blobs []*operator.BlobProgress)
	// finish ends the view; complete says that the image is there.
	finish(complete bool)
}

// newProgressView returns bars for a terminal and lines for anything else.
func newProgressView(w io.Writer) progressView {
	if f, ok := w.(*os.File); ok && isTerminal(f) {
		return &barView{w: w, size: func() (int, int) { return terminalSize(f) }}
	}
	return &lineView{w: w, started: time.Now(), told: map[string]bool{}}
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// terminalSize returns columns and lines.
func terminalSize(f *os.File) (columns, lines int) {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 || size.Row == 0 {
		return 80, 24
	}
	return int(size.Col), int(size.Row)
}

// silentView shows nothing.
type silentView struct{}

func (silentView) update([]*operator.BlobProgress) {}
func (silentView) finish(bool)                     {}

// lineView prints a line for each blob that is complete: for logs and pipes.
type lineView struct {
	w       io.Writer
	started time.Time
	told    map[string]bool
}

func (v *lineView) update(blobs []*operator.BlobProgress) {
	for _, b := range blobs {
		if b.GetState() != operator.BlobProgress_DONE || v.told[b.GetDigest()] {
			continue
		}
		v.told[b.GetDigest()] = true
		fmt.Fprintf(v.w, "%s %s done, %s\n", kindOf(b), shortID(b.GetDigest()), humanBytes(max(b.GetTotal(), b.GetOffset())))
	}
}

func (v *lineView) finish(bool) {}

// barView draws a bar per blob and draws it again in the same place.
type barView struct {
	w     io.Writer
	size  func() (columns, lines int)
	blobs []*operator.BlobProgress
	// drawn is how many lines the last picture had.
	drawn int
	// complete is set when the image is there, unpacked.
	complete bool
}

func (v *barView) update(blobs []*operator.BlobProgress) {
	for _, b := range blobs {
		v.set(b)
	}
	if len(v.blobs) > 0 {
		v.draw()
	}
}

func (v *barView) set(b *operator.BlobProgress) {
	for i, old := range v.blobs {
		if old.GetDigest() == b.GetDigest() {
			v.blobs[i] = b
			return
		}
	}
	v.blobs = append(v.blobs, b)
}

// draw moves to the first line of the last picture and paints over it. It is one write, so that it does not flicker.
func (v *barView) draw() {
	columns, height := v.size()
	lines := v.picture(columns, height-1)
	var out strings.Builder
	if v.drawn > 0 {
		fmt.Fprintf(&out, "\x1b[%dA", v.drawn)
	}
	for _, line := range lines {
		fmt.Fprintf(&out, "\r\x1b[K%s\n", line)
	}
	for range v.drawn - len(lines) {
		out.WriteString("\r\x1b[K\n")
	}
	v.drawn = max(v.drawn, len(lines))
	_, _ = io.WriteString(v.w, out.String())
}

// picture returns the lines: a bar per blob, but when they are more than fit, those that are complete in one line.
func (v *barView) picture(columns, most int) []string {
	var bars []string
	complete := 0
	for _, b := range v.blobs {
		if b.GetState() == operator.BlobProgress_DONE {
			complete++
			if len(v.blobs)+1 > most {
				continue
			}
		}
		bars = append(bars, bar(b, columns))
	}
	last := fmt.Sprintf("%d of %d complete", complete, len(v.blobs))
	if complete == len(v.blobs) && !v.complete {
		last += ", unpacking"
	}
	if len(bars)+1 > most {
		bars = bars[:max(0, most-1)]
	}
	return append(bars, last)
}

func (v *barView) finish(complete bool) {
	if complete && len(v.blobs) > 0 {
		v.complete = true
		v.draw()
	}
}

// bar draws one blob in at most columns-1 columns: "layer 0123456789abc [====>    ] 1.2 MiB / 3.0 MiB".
func bar(b *operator.BlobProgress, columns int) string {
	head := fmt.Sprintf("%-8s %s ", kindOf(b), shortID(b.GetDigest()))
	tail := humanBytes(b.GetOffset())
	if b.GetTotal() > 0 {
		tail += " / " + humanBytes(b.GetTotal())
	}
	if b.GetState() == operator.BlobProgress_DONE {
		tail = "done, " + humanBytes(max(b.GetTotal(), b.GetOffset()))
	}
	tail = fmt.Sprintf(" %-21s", tail)
	width := min(columns-1-len(head)-len(tail)-2, 50)
	if width < 5 {
		line := head + strings.TrimSpace(tail)
		return line[:min(len(line), max(columns-1, 0))]
	}
	full := 0
	switch {
	case b.GetState() == operator.BlobProgress_DONE:
		full = width
	case b.GetTotal() > 0:
		full = int(int64(width) * min(b.GetOffset(), b.GetTotal()) / b.GetTotal())
	}
	fill := strings.Repeat("=", full)
	if full < width {
		fill += ">" + strings.Repeat(" ", width-full-1)
	}
	return strings.TrimRight(head+"["+fill+"]"+tail, " ")
}

// kindOf names a blob by its media type.
func kindOf(b *operator.BlobProgress) string {
	switch t := b.GetMediaType(); {
	case strings.Contains(t, "layer") || strings.Contains(t, "rootfs"):
		return "layer"
	case strings.Contains(t, "config") || strings.Contains(t, "container.image"):
		return "config"
	case strings.Contains(t, "manifest") || strings.Contains(t, "index"):
		return "manifest"
	}
	return "blob"
}
