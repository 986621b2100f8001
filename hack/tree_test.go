package hack

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/gantry-cri/gantry"

// pkg is what `go list` tells of a package. Dir is absolute, Rel is the path below the module.
type pkg struct {
	ImportPath, Dir, Name string
	GoFiles, CgoFiles     []string
	Imports               []string
	Rel                   string `json:"-"`
}

// tree lists the packages of the module once.
var tree = sync.OnceValues(func() ([]pkg, error) {
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Dir,Name,GoFiles,CgoFiles,Imports", "./...")
	cmd.Dir = ".."
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	var packages []pkg
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return packages, nil
		} else if err != nil {
			return nil, err
		}
		p.Rel = strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		packages = append(packages, p)
	}
})

func packages(t *testing.T) []pkg {
	t.Helper()
	list, err := tree()
	if err != nil {
		t.Fatalf("list packages: %v", err)
	}
	if len(list) < 5 {
		t.Fatalf("go list found %d packages only", len(list))
	}
	return list
}

// files are the paths of the package's Go files that are no tests.
func (p pkg) files() []string {
	var paths []string
	for _, name := range append(p.GoFiles, p.CgoFiles...) {
		paths = append(paths, filepath.Join(p.Dir, name))
	}
	return paths
}

// within reports whether path is top or below it.
func within(path, top string) bool { return path == top || strings.HasPrefix(path, top+"/") }
