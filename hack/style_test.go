package hack

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

const (
	maxFunctionLines = 80
	maxParameters    = 5
	maxLine          = 130 // characters, a tab is one: the limit of 120, and some for what would read worse broken
)

// vagueFiles are names that say nothing of what is inside.
var vagueFiles = []string{"helpers.go", "helper.go", "utils.go", "util.go", "common.go", "misc.go", "types.go"}

// imposed are functions whose signature another project's interface dictates.
var imposed = map[string]string{
	"cri.ExecInContainer": "k8s.io/cri-streaming's Executor",
	"cri.AttachContainer": "k8s.io/cri-streaming's Attacher",
}

// parse parses the files of a package with their comments, generated ones left out.
func parse(t *testing.T, p pkg) (*token.FileSet, map[string]*ast.File) {
	t.Helper()
	set, parsed := token.NewFileSet(), make(map[string]*ast.File)
	for _, path := range p.files() {
		file, err := parser.ParseFile(set, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		if !ast.IsGenerated(file) {
			parsed[path] = file
		}
	}
	return set, parsed
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range packages(t) {
		_, files := parse(t, p)
		if len(files) == 0 {
			continue
		}
		starts := []string{"package " + p.Name + " "}
		if p.Name == "main" {
			starts = []string{"command " + filepath.Base(p.Dir) + " ", filepath.Base(p.Dir) + " "}
		}
		var docs int
		for _, file := range files {
			if file.Doc == nil {
				continue
			}
			docs++
			text := strings.ToLower(file.Doc.Text())
			if !slices.ContainsFunc(starts, func(start string) bool { return strings.HasPrefix(text, start) }) {
				t.Errorf("%s: the package comment does not begin with %q", p.Rel, starts)
			}
		}
		if docs != 1 {
			t.Errorf("%s has %d package comments, expected one", p.Rel, docs)
		}
	}
}

func TestFileNames(t *testing.T) {
	for _, p := range packages(t) {
		for _, path := range p.files() {
			name := filepath.Base(path)
			if slices.Contains(vagueFiles, name) {
				t.Errorf("%s/%s: name it after the noun inside", p.Rel, name)
			}
			if strings.HasSuffix(name, "_linux.go") {
				t.Errorf("%s/%s: the whole tree is Linux", p.Rel, name)
			}
		}
	}
}

func TestFunctionsAreShort(t *testing.T) {
	for _, p := range packages(t) {
		set, files := parse(t, p)
		for _, file := range files {
			for _, d := range file.Decls {
				f, ok := d.(*ast.FuncDecl)
				if !ok || f.Body == nil {
					continue
				}
				if lines := set.Position(f.End()).Line - set.Position(f.Pos()).Line + 1; lines > maxFunctionLines {
					t.Errorf("%s: %s has %d lines, at most %d", set.Position(f.Pos()), f.Name.Name, lines, maxFunctionLines)
				}
				if n := f.Type.Params.NumFields(); n > maxParameters && imposed[p.Rel+"."+f.Name.Name] == "" {
					t.Errorf("%s: %s has %d parameters, at most %d", set.Position(f.Pos()), f.Name.Name, n, maxParameters)
				}
			}
		}
	}
}

// TestLinesAreShort is about the product, but for what is generated. A row of a table in a test is better not broken.
func TestLinesAreShort(t *testing.T) {
	for _, p := range packages(t) {
		if within(p.Rel, "hack") || within(p.Rel, "test") {
			continue
		}
		_, files := parse(t, p)
		for path := range files {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for i, line := range strings.Split(string(text), "\n") {
				if n := utf8.RuneCountInString(line); n > maxLine {
					t.Errorf("%s:%d has %d characters, at most %d", path, i+1, n, maxLine)
				}
			}
		}
	}
}

func TestExportedIdentifiersAreDocumented(t *testing.T) {
	for _, p := range packages(t) {
		if p.Name == "main" {
			continue
		}
		set, files := parse(t, p)
		for _, file := range files {
			for _, d := range file.Decls {
				for _, name := range undocumented(d) {
					t.Errorf("%s: %s has no comment", set.Position(name.Pos()), name.Name)
				}
			}
		}
	}
}

// undocumented are the exported names that a declaration makes without a comment on it or its group.
func undocumented(d ast.Decl) []*ast.Ident {
	var names []*ast.Ident
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && d.Doc == nil && (d.Recv == nil || exportedReceiver(d.Recv)) {
			names = append(names, d.Name)
		}
	case *ast.GenDecl:
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() && d.Doc == nil && s.Doc == nil {
					names = append(names, s.Name)
				}
			case *ast.ValueSpec:
				for _, name := range s.Names {
					if name.IsExported() && d.Doc == nil && s.Doc == nil && s.Comment == nil {
						names = append(names, name)
					}
				}
			}
		}
	}
	return names
}

func exportedReceiver(receiver *ast.FieldList) bool {
	expr := receiver.List[0].Type
	if star, ok := expr.(*ast.StarExpr); ok {
		expr = star.X
	}
	if index, ok := expr.(*ast.IndexExpr); ok {
		expr = index.X
	}
	name, ok := expr.(*ast.Ident)
	return ok && name.IsExported()
}
