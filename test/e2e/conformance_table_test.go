package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The table of conformance names every method and field of the API, and only tests that exist.
func TestConformanceTableIsComplete(t *testing.T) {
	b, err := os.ReadFile("../../docs/conformance.md")
	if err != nil {
		t.Fatal(err)
	}
	table := string(b)
	api := (&runtime.VersionRequest{}).ProtoReflect().Descriptor().ParentFile()
	for i := range api.Services().Len() {
		methods := api.Services().Get(i).Methods()
		for j := range methods.Len() {
			if name := string(methods.Get(j).Name()); !strings.Contains(table, "\n| `"+name+"` | ") {
				t.Errorf("method %s has no row", name)
			}
		}
	}
	for i := range api.Messages().Len() {
		message := api.Messages().Get(i)
		rows := rowsOf(table, string(message.Name()))
		if strings.Contains(string(message.Name()), "Windows") {
			continue
		}
		for j := range message.Fields().Len() {
			field := string(message.Fields().Get(j).Name())
			if !strings.Contains(rows, "`"+field+"`") {
				t.Errorf("field %s of %s has no row", field, message.Name())
			}
		}
	}
	known := testNames(t)
	for _, name := range regexp.MustCompile(`\b(Test|Fuzz)[A-Z]\w+`).FindAllString(table, -1) {
		if !known[name] {
			t.Errorf("there is no test %s", name)
		}
	}
}

// rowsOf is what the table says of a message: its section, or the rows of the section of other messages that name it.
func rowsOf(table, message string) string {
	if _, section, ok := strings.Cut(table, "\n### "+message+"\n"); ok {
		rows, _, _ := strings.Cut(section, "\n##")
		return rows
	}
	_, section, _ := strings.Cut(table, "\n### Other messages\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var rows string
	for row := range strings.Lines(section) {
		if names, _, ok := strings.Cut(strings.TrimPrefix(row, "|"), "|"); ok && strings.Contains(names, "`"+message+"`") {
			rows += row
		}
	}
	return rows
}

// testNames are the names of all tests and fuzz tests of the project.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	declaration := regexp.MustCompile(`(?m)^func ((Test|Fuzz)\w+)\(`)
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, match := range declaration.FindAllStringSubmatch(string(b), -1) {
			names[match[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
