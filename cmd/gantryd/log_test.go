package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"log"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc/codes"
	"k8s.io/klog/v2"
)

// formatVariable makes TestLogProcess log in a process of its own: the set-up is for a whole process.
const formatVariable = "GANTRYD_TEST_LOG_FORMAT"

func TestLogProcess(t *testing.T) {
	format := os.Getenv(formatVariable)
	if format == "" {
		return // only a part of the tests below
	}
	if err := setupLogging(os.Stderr, format, 3); err != nil {
		t.Fatal(err)
	}
	klog.InfoS("Hello", "sandbox", "s1", "pid", 5, "duration", time.Second, "code", codes.NotFound)
	klog.V(3).InfoS("Shown", "container", "c1")
	klog.V(4).InfoS("Hidden")
	klog.ErrorS(errors.New("broken"), "Failed", "image", "i1")
	logrus.Debug("hidden debug")
	logrus.Warn("from logrus")
	log.Print("from log")
	klog.Flush()
}

// logged returns the lines that TestLogProcess writes.
func logged(t *testing.T, format string) []string {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestLogProcess$")
	cmd.Env = append(os.Environ(), formatVariable+"="+format)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	return strings.Split(strings.TrimSpace(stderr.String()), "\n")
}

func TestJSONLogIsOneObjectPerLine(t *testing.T) {
	byMessage := map[string]map[string]any{}
	for _, line := range logged(t, logFormatJSON) {
		var object map[string]any
		if err := json.Unmarshal([]byte(line), &object); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		byMessage[object["msg"].(string)] = object
		if object["ts"] == nil || object["level"] == nil {
			t.Errorf("line without ts or level: %s", line)
		}
	}
	for message, want := range map[string]map[string]any{
		"Hello":       {"level": "info", "sandbox": "s1", "pid": 5.0, "v": nil, "duration": "1s", "code": "NotFound"},
		"Shown":       {"level": "info", "container": "c1", "v": 3.0},
		"Failed":      {"level": "error", "err": "broken", "image": "i1"},
		"from logrus": {"level": "warning"},
		"from log":    {"level": "info"},
	} {
		for key, value := range want {
			if got := byMessage[message][key]; got != value {
				t.Errorf("%s: %s is %v, expected %v", message, key, got, value)
			}
		}
	}
	if len(byMessage) != 5 {
		t.Errorf("%d messages, expected 5: %v", len(byMessage), byMessage)
	}
}

func TestTextLogIsKlogs(t *testing.T) {
	text := strings.Join(logged(t, logFormatText), "\n")
	for _, want := range []string{`"Hello" sandbox="s1" pid=5`, `"Shown" container="c1"`,
		`"Failed" err="broken" image="i1"`, "from logrus", "from log"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in:\n%s", want, text)
		}
	}
	if strings.Contains(strings.ToLower(text), "hidden") {
		t.Errorf("too verbose:\n%s", text)
	}
}
