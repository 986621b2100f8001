package main

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"time"
)

// The picture's measures, in pixels.
const (
	svgRow   = 18  // height of a row
	svgNames = 330 // width of the names
	svgTimes = 80  // width of the durations
	svgBars  = 800 // width of all calls together
	svgTop   = 44  // height of the title and the axis
	svgWidth = svgNames + svgTimes + svgBars + 20
)

// svgColours are the bars', by depth.
var svgColours = []string{"#1f4e79", "#2e86c1", "#28a08c", "#d68910", "#a569bd"}

// svgFailed is the colour of a call that failed.
const svgFailed = "#c0392b"

// printTraceSVG writes a picture that needs no other file.
func printTraceSVG(w io.Writer, pod *tracedPod) error {
	rows, total := pod.rows()
	height := svgTop + svgRow*len(rows) + 12
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" `+
		`font-family="sans-serif" font-size="12">`+"\n", svgWidth, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", svgWidth, height)
	title := fmt.Sprintf("%s  %s  %d calls, %s ms in them", pod.Pod, shortID(pod.ID), len(pod.Calls), milliseconds(total))
	fmt.Fprintf(&b, `<text x="8" y="18" font-weight="bold">%s</text>`+"\n", escaped(title))
	svgAxis(&b, total, height)
	for i, r := range rows {
		svgBar(&b, r, total, svgTop+svgRow*i)
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// svgX is where a time is.
func svgX(at, total time.Duration) float64 {
	if total <= 0 {
		return svgNames + svgTimes
	}
	return svgNames + svgTimes + svgBars*float64(at)/float64(total)
}

// svgAxis draws a line for each tenth of the time.
func svgAxis(b *strings.Builder, total time.Duration, height int) {
	const parts = 10
	for i := range parts + 1 {
		at := total * time.Duration(i) / parts
		x := svgX(at, total)
		if total <= 0 {
			x += float64(svgBars) * float64(i) / parts
		}
		fmt.Fprintf(b, `<line x1="%.1f" y1="%d" x2="%.1[1]f" y2="%d" stroke="#dddddd"/>`+"\n", x, svgTop-4, height)
		fmt.Fprintf(b, `<text x="%.1f" y="%d" text-anchor="middle" fill="#777777" font-size="10">%.1f</text>`+"\n",
			x, svgTop-8, float64(at)/float64(time.Millisecond))
	}
}

// svgBar draws one row; its tooltip says when it was.
func svgBar(b *strings.Builder, r traceRow, total time.Duration, y int) {
	colour, weight := svgColours[r.depth%len(svgColours)], "normal"
	if r.failed != "" {
		colour = svgFailed
	}
	if r.depth == 0 {
		weight = "bold"
	}
	x := svgX(r.at, total)
	width := max(svgX(r.at+r.took, total)-x, 0.8)
	hint := fmt.Sprintf("%s: at %s ms, took %s ms", r.name, milliseconds(r.since), milliseconds(r.took))
	if r.failed != "" {
		hint += ", failed: " + r.failed
	}
	fmt.Fprintf(b, `<g><title>%s</title><text x="%d" y="%d" font-weight="%s">%s</text>`,
		escaped(hint), 8+14*r.depth, y+13, weight, escaped(r.name))
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, svgNames+svgTimes-12, y+13, milliseconds(r.took))
	fmt.Fprintf(b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/></g>`+"\n", x, y+3, width, svgRow-6, colour)
}

// escaped makes text safe in XML, also what XML has no character for.
func escaped(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder gives no error
	return b.String()
}
