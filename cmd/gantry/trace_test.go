package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/cri/operator"
)

// startedPod is a timeline with all that there can be in one: nesting, a gap between calls, a step without end, a failure.
func startedPod() *operator.TraceResponse {
	const ms = int64(time.Millisecond)
	begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano()
	return &operator.TraceResponse{Id: strings.Repeat("ab", 32), Pod: "default/web", Calls: []*operator.TraceCall{
		{Method: "RunPodSandbox", Begin: begin, Duration: 60 * ms, Steps: []*operator.TraceStep{
			{Name: "write record", Start: 0, Duration: ms / 4},
			{Name: "attach network", Start: ms, Duration: 50 * ms},
			{Name: "bridge", Parent: 2, Start: 10 * ms, Duration: 40 * ms},
		}},
		{
			Method: "StartContainer", Container: "a<b>&\"c\"\x01", Begin: begin + 1000*ms, Duration: 40 * ms,
			Error: "no such <file>", Steps: []*operator.TraceStep{{Name: "ask the keeper", Start: 20 * ms, Duration: -1}},
		},
	}}
}

func TestTraceText(t *testing.T) {
	want := `default/web  ababababababa  2 calls, 100.00 ms in them
                        at ms    took ms
RunPodSandbox            0.00      60.00  ██████████████████████████████
  write record           0.00       0.25  ▏
  attach network         1.00      50.00  █████████████████████████
    bridge              10.00      40.00       ████████████████████
StartContainer web    1000.00      40.00                                ████████████████████
  failed: no such <file>
  ask the keeper      1020.00     20.00+                                          ██████████
`
	response := startedPod()
	response.Calls[1].Container = "web"
	var out bytes.Buffer
	if err := printTrace(&out, tracedPodOf(response), traceText); err != nil {
		t.Fatal(err)
	}
	if out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", out.String(), want)
	}
}

func TestTraceJSON(t *testing.T) {
	var out bytes.Buffer
	if err := printTrace(&out, tracedPodOf(startedPod()), traceJSON); err != nil {
		t.Fatal(err)
	}
	var got tracedPod
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	run, start := got.Calls[0], got.Calls[1]
	if len(run.Steps) != 2 || run.Steps[1].Steps[0].Name != "bridge" || run.Steps[1].Steps[0].Nanoseconds != 40e6 {
		t.Errorf("steps of the first call are %+v", run.Steps)
	}
	if start.Error != "no such <file>" || start.Steps[0].Nanoseconds != -1 {
		t.Errorf("second call is %+v", start)
	}
}

// shape is an element of a picture with the attributes that the test looks at.
type shape struct {
	name, fill string
	x, width   string
}

func shapes(t *testing.T, picture string) (all []shape, text string) {
	t.Helper()
	for decoder := xml.NewDecoder(strings.NewReader(picture)); ; {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return all, text
		}
		if err != nil {
			t.Fatalf("the picture is no XML: %v\n%s", err, picture)
		}
		switch token := token.(type) {
		case xml.CharData:
			text += string(token) + "\n"
		case xml.StartElement:
			s := shape{name: token.Name.Local}
			for _, a := range token.Attr {
				switch a.Name.Local {
				case "fill":
					s.fill = a.Value
				case "x":
					s.x = a.Value
				case "width":
					s.width = a.Value
				case "href", "src":
					t.Errorf("the picture needs %s", a.Value)
				}
			}
			all = append(all, s)
		}
	}
}

func TestTraceSVG(t *testing.T) {
	var out bytes.Buffer
	if err := printTrace(&out, tracedPodOf(startedPod()), traceSVG); err != nil {
		t.Fatal(err)
	}
	all, text := shapes(t, out.String())
	var bars []shape
	for _, s := range all {
		if s.name == "rect" && s.x != "" {
			bars = append(bars, s)
		}
	}
	want := []shape{
		{"rect", svgColours[0], "410.0", "480.0"}, {"rect", svgColours[1], "410.0", "2.0"},
		{"rect", svgColours[1], "418.0", "400.0"}, {"rect", svgColours[2], "490.0", "320.0"},
		{"rect", svgFailed, "890.0", "320.0"}, {"rect", svgColours[1], "1050.0", "160.0"},
	}
	if len(bars) != len(want) {
		t.Fatalf("bars are %+v, expected %+v", bars, want)
	}
	for i := range want {
		if bars[i] != want[i] {
			t.Errorf("bar %d is %+v, expected %+v", i, bars[i], want[i])
		}
	}
	for _, words := range []string{"default/web", `StartContainer a<b>&"c"`, "failed: no such <file>", "bridge: at 10.00 ms, took 40.00 ms"} {
		if !strings.Contains(text, words) {
			t.Errorf("no %q in the picture's text:\n%s", words, text)
		}
	}
}

// What a daemon might send that makes no sense ends nowhere badly.
func TestTraceOfNonsense(t *testing.T) {
	for name, response := range map[string]*operator.TraceResponse{
		"nothing": {},
		"no time": {Calls: []*operator.TraceCall{{Method: "RunPodSandbox", Steps: []*operator.TraceStep{{Name: "step"}}}}},
		"own parent": {Calls: []*operator.TraceCall{{Duration: 5, Steps: []*operator.TraceStep{
			{Name: "itself", Parent: 1}, {Name: "later", Parent: 3}, {Name: "nobody", Parent: -7}}}}},
	} {
		for _, format := range []traceFormat{traceText, traceJSON, traceSVG} {
			var out bytes.Buffer
			if err := printTrace(&out, tracedPodOf(response), format); err != nil {
				t.Errorf("%s as %s: %v", name, format, err)
			}
			if format == traceSVG {
				shapes(t, out.String())
			}
		}
	}
}

func TestTracePod(t *testing.T) {
	address := (&fakeDaemon{}).start(t)
	for _, pod := range []string{"2222", "default/web"} {
		out, _, err := run(t, address, "", "trace", "pod", pod)
		if err != nil || !strings.Contains(out, "\n    bridge ") || !strings.HasPrefix(out, "default/web  2222222222222  1 calls") {
			t.Errorf("%s: printed %q, error %v", pod, out, err)
		}
	}
	if _, _, err := run(t, address, "", "trace", "pod", "3"); err == nil || !strings.Contains(err.Error(), `timeline of pod "3"`) {
		t.Errorf("unknown pod: error %v", err)
	}
	if _, _, err := run(t, address, "", "trace", "pod", "2", "-o", "png"); err == nil || !strings.Contains(err.Error(), "text, svg or json") {
		t.Errorf("unknown format: error %v", err)
	}
}
