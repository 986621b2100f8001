package crilog

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestResumeCutsOffATornRecord(t *testing.T) {
	const whole = "2026-11-21T00:00:00.123456789Z stdout F a line\n"
	long := strings.Repeat("x", MaxContent)
	for name, tc := range map[string]struct{ before, want string }{
		"nothing torn":          {whole, whole},
		"empty":                 {"", ""},
		"in the time stamp":     {whole + "2026-11-2", whole},
		"in the year":           {whole + "20", whole},
		"in the content":        {whole + "2026-11-21T00:00:00.123456789Z stdout F a li", whole},
		"a long one":            {whole + "2026-11-21T00:00:00.123456789Z stdout P " + long, whole},
		"the first one":         {"2026-11-21T00:00:00.1", ""},
		"not ours":              {"hello", "hello"},
		"not ours at the end":   {whole + "hello", whole + "hello"},
		"no line in a big file": {strings.Repeat("2", maxRecord+1), strings.Repeat("2", maxRecord+1)},
	} {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, []byte(tc.before), 0o640); err != nil {
			t.Fatal(err)
		}
		w, err := Resume(path)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, _ := os.ReadFile(path)
		if string(got) != tc.want {
			t.Errorf("%s: %.80q, expected %.80q", name, got, tc.want)
		}
		if _, err := w.Append(Stdout, []byte("next\n"), false); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got, _ := os.ReadFile(path); !strings.HasSuffix(string(got), " stdout F next\n") {
			t.Errorf("%s: %.80q does not end in the new record", name, got)
		}
		_ = w.Close()
	}
	if w, err := Resume(filepath.Join(t.TempDir(), "new")); err != nil {
		t.Errorf("no file: %v", err)
	} else {
		_ = w.Close()
	}
	if err := func() error { _, err := Resume("/dev/null"); return err }(); err == nil {
		t.Error("a device was taken for a log")
	}
}
