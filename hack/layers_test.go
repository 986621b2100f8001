package hack

import (
	"go/ast"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	libcontainer = "github.com/opencontainers/runc"
	libcni       = "github.com/containernetworking/cni/libcni"
	containerdd  = "github.com/containerd/containerd/api/services" // the daemon's API, not the libraries
	grpc         = "google.golang.org/grpc"
	nftables     = "github.com/google/nftables"
	netlink      = "github.com/vishvananda/netlink"
	bbolt        = "go.etcd.io/bbolt"
	kubernetes   = "k8s.io"
	otel         = "go.opentelemetry.io"
)

// layer is what a package, and all below it, may never import. Paths without a dot in their first element are ours, or
// the standard library's.
type layer struct {
	top       string
	forbidden []string
}

// layers reads the table of ARCHITECTURE.md: the package is in backquotes in the first column, what it may never import
// is so in the last.
func layers(t *testing.T) []layer {
	t.Helper()
	text, err := os.ReadFile("../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## Who may import whom\n")
	section, _, _ = strings.Cut(section, "\n## ")
	quoted := regexp.MustCompile("`([^`]+)`")
	var all []layer
	for line := range strings.Lines(section) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 5 || !strings.Contains(cells[1], "`") {
			continue
		}
		l := layer{top: quoted.FindStringSubmatch(cells[1])[1]}
		for _, match := range quoted.FindAllStringSubmatch(cells[3], -1) {
			l.forbidden = append(l.forbidden, match[1])
		}
		all = append(all, l)
	}
	if len(all) < 10 {
		t.Fatalf("the table has %d rows only", len(all))
	}
	return all
}

// Every package of the product that is not a part of another has a row, and every row a package.
func TestEveryPackageHasARow(t *testing.T) {
	rows := map[string]bool{}
	for _, l := range layers(t) {
		rows[l.top] = true
	}
	found := map[string]bool{}
	for _, p := range packages(t) {
		found[p.Rel] = true
		first, _, _ := strings.Cut(p.Rel, "/")
		if strings.Count(p.Rel, "/") < 2 && !slices.Contains([]string{"cmd", "hack", "test"}, first) && !rows[p.Rel] {
			t.Errorf("%s has no row in ARCHITECTURE.md", p.Rel)
		}
	}
	for top := range rows {
		if !found[top] {
			t.Errorf("ARCHITECTURE.md has a row for %s, which does not exist", top)
		}
	}
}

// onlyImporters names what one package alone, with what is part of it, imports, commands apart.
var onlyImporters = map[string][]string{
	libcontainer: {"sandbox/keeperd", "sandbox/keeperd/stage", "sandbox/keeperd/profiles", "sandbox/keeperd/premount", "cmd/gantry-keeper"},
	libcni:       {"cni"},
	containerdd:  {"cri/cadvisor"},
	nftables:     {"cni/embedded"},
	netlink:      {"cni/embedded", "test/e2e/node", "test/kubelet", "test/cluster"},
	otel:         {"cri/otlp"},
}

// keeperdMayImport is all that the keeper may import of ours.
var keeperdMayImport = []string{"sandbox/keeper", "sandbox/crilog", "sandbox/keeperd"}

func full(path string) string {
	first, _, _ := strings.Cut(path, "/")
	switch first {
	case "cri", "cni", "sandbox", "imageservice", "cmd":
		return module + "/" + path
	}
	return path
}

func TestLayers(t *testing.T) {
	rules := layers(t)
	for _, p := range packages(t) {
		for _, rule := range rules {
			if !within(p.Rel, rule.top) {
				continue
			}
			for _, imported := range p.Imports {
				for _, f := range rule.forbidden {
					// A standard package is forbidden by itself: net/netip does no I/O.
					bad := within(imported, full(f)) && (strings.Contains(f, ".") || full(f) != f || imported == f)
					if bad && !within(p.Rel, f) {
						t.Errorf("%s imports %s, which %s must never import", p.Rel, imported, rule.top)
					}
				}
			}
		}
	}
}

func TestOnlyImporters(t *testing.T) {
	for _, p := range packages(t) {
		for dependency, importers := range onlyImporters {
			for _, imported := range p.Imports {
				if within(imported, dependency) && !slices.Contains(importers, p.Rel) {
					t.Errorf("%s imports %s: only %s may", p.Rel, imported, strings.Join(importers, " and "))
				}
			}
		}
	}
}

func TestKeeperdImportsTheProtocolOnly(t *testing.T) {
	for _, p := range packages(t) {
		if !within(p.Rel, "sandbox/keeperd") {
			continue
		}
		for _, imported := range p.Imports {
			ours, ok := strings.CutPrefix(imported, module+"/")
			if ok && !slices.ContainsFunc(keeperdMayImport, func(may string) bool { return within(ours, may) }) {
				t.Errorf("%s imports %s: of ours it may import %s only", p.Rel, imported, strings.Join(keeperdMayImport, ", "))
			}
		}
	}
}

// Nothing imports a command, and the product nothing that is around it.
func TestProductImportsNoTestCode(t *testing.T) {
	for _, p := range packages(t) {
		if within(p.Rel, "hack") || within(p.Rel, "test") {
			continue
		}
		for _, imported := range p.Imports {
			for _, top := range []string{"hack", "test", "cmd"} {
				if within(imported, module+"/"+top) && !within(p.Rel, top) {
					t.Errorf("%s imports %s", p.Rel, imported)
				}
			}
		}
	}
}

// The keeper is executed again for every container: what it links costs each start.
func TestKeeperLinksNoServers(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-tags", "seccomp,netgo,osusergo", module+"/cmd/gantry-keeper").Output()
	if err != nil {
		t.Fatalf("list what the keeper links: %v", err)
	}
	for dependency := range strings.Lines(string(out)) {
		dependency = strings.TrimSpace(dependency)
		for _, f := range []string{grpc, kubernetes, "net/http", "crypto/tls", "github.com/spf13/cobra",
			"github.com/containerd/containerd", otel, "google.golang.org/protobuf/types/dynamicpb"} {
			if within(dependency, f) {
				t.Errorf("gantry-keeper links %s", dependency)
			}
		}
	}
}

// The daemon has no cgo and starts no containers itself.
func TestDaemonLinksNoLibcontainer(t *testing.T) {
	for _, command := range []string{"gantryd", "gantry"} {
		out, err := exec.Command("go", "list", "-deps", module+"/cmd/"+command).Output()
		if err != nil {
			t.Fatalf("list what %s links: %v", command, err)
		}
		for dependency := range strings.Lines(string(out)) {
			if within(strings.TrimSpace(dependency), libcontainer+"/libcontainer") {
				t.Errorf("%s links %s", command, strings.TrimSpace(dependency))
			}
		}
	}
}

// The translation of a container's configuration may name the kernel's constants but not ask the kernel anything.
func TestSpecTakesConstantsOnlyOfTheKernel(t *testing.T) {
	constant := regexp.MustCompile(`^([A-Z][A-Z0-9_]*|Signal)$`)
	for _, p := range packages(t) {
		if p.Rel != "sandbox/spec" {
			continue
		}
		set, files := parse(t, p)
		for _, file := range files {
			ast.Inspect(file, func(n ast.Node) bool {
				selector, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				if x, ok := selector.X.(*ast.Ident); ok && x.Name == "unix" && !constant.MatchString(selector.Sel.Name) {
					t.Errorf("%s: unix.%s is neither a constant nor the type of one", set.Position(selector.Pos()), selector.Sel.Name)
				}
				return true
			})
		}
	}
}
