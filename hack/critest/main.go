// Command critest runs the Kubernetes conformance suite for CRI runtimes against the built daemon, in namespaces of its
// own, with images made here; or, with -endpoint, against a daemon that runs. Arguments after -- are passed to the suite
// (-parallel=4, -ginkgo.focus=...). It is run from the top of the tree by `make critest`; it is not the suite itself.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/gantry-cri/gantry/test/e2e/images"
	"github.com/gantry-cri/gantry/test/e2e/node"
)

// summary matches the lines in which the suite says how it went.
var summary = regexp.MustCompile(`(?m)^.*(Ran \d+ of \d+ Specs|\d+ Passed \| \d+ Failed).*$`)

func main() {
	endpoint := flag.String("endpoint", "", "`address` of a daemon that runs, which has to find the suite's images; default one of our own")
	flag.Parse()
	if *endpoint != "" {
		if err := suite(context.Background(), filepath.Join(".work", "critest"), *endpoint, "as asked", flag.Args()); err != nil {
			fail(err)
		}
		return
	}
	if !node.Isolated() { // inside there is no network to download modules from
		if err := build(); err != nil {
			fail(err)
		}
	}
	inner, code := node.Isolate()
	if !inner {
		os.Exit(code)
	}
	if err := run(); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "critest:", err)
	os.Exit(1)
}

func build() error {
	set, err := images.Build(context.Background(), images.Critest())
	if err != nil {
		return err
	}
	cmd := exec.Command("hack/critest/build.sh", set.Digest(images.CritestDigestRef))
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return cmd.Run()
}

func run() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	work, err := filepath.Abs(".work")
	if err != nil {
		return err
	}
	tools := filepath.Join(work, "bin")
	registry, err := node.StartRegistry(ctx, tools, filepath.Join(node.Dir(), "registry"), false)
	if err != nil {
		return err
	}
	defer registry.Stop()
	if err := images.Push(ctx, images.Registry{Address: registry.Address}, images.Critest()); err != nil {
		return err
	}
	n, err := node.New(node.Options{
		Dir: filepath.Join(node.Dir(), "node"), Bin: filepath.Join(filepath.Dir(work), "bin"), Tools: tools,
		Mirror: registry.Address, EmbeddedNetwork: true, Verbosity: 2,
	})
	if err != nil {
		return err
	}
	if err := n.Start(ctx); err != nil {
		return err
	}
	defer n.Close()
	dir := filepath.Join(work, "critest")
	err = suites(ctx, dir, n.Address)
	if log, readErr := os.ReadFile(n.LogFile()); readErr == nil {
		os.WriteFile(filepath.Join(dir, "gantryd.log"), log, 0o644)
	}
	if err != nil {
		return fmt.Errorf("%w (the daemon's log is %s)", err, filepath.Join(dir, "gantryd.log"))
	}
	return nil
}

// suites runs critest with the arguments after --, or without them in the three ways that count: streams by SPDY, streams
// by WebSocket, and four specs at a time.
func suites(ctx context.Context, dir, endpoint string) error {
	if flag.NArg() > 0 {
		return suite(ctx, dir, endpoint, "as asked", flag.Args())
	}
	return errors.Join(
		suite(ctx, dir, endpoint, "SPDY", nil),
		suite(ctx, dir, endpoint, "WebSocket", []string{"-websocket-exec", "-websocket-attach", "-websocket-portforward"}),
		suite(ctx, dir, endpoint, "parallel", []string{"-parallel=4"}),
	)
}

// leftovers are the directories that critest makes for itself and, run in parallel, does not remove.
func leftovers() []string {
	found, _ := filepath.Glob(filepath.Join(os.TempDir(), "cri-test*")) // the pattern is good
	return found
}

// tidy removes the leftovers that are not among those of before.
func tidy(before []string) {
	for _, dir := range leftovers() {
		if !slices.Contains(before, dir) {
			_ = os.RemoveAll(dir)
		}
	}
}

// suite runs critest once, passing its output on, and repeats its summary at the end. What it skips is checked: a spec
// that is skipped for a reason of the runtime's own would be a failure that nobody sees.
func suite(ctx context.Context, dir, endpoint, name string, more []string) error {
	fmt.Printf("\n=== critest %s\n", name)
	report := filepath.Join(dir, "report.json")
	_ = os.Remove(report)
	args := append([]string{"--runtime-endpoint=" + endpoint, "--image-endpoint=" + endpoint, "--ginkgo.no-color",
		"--ginkgo.json-report=" + report}, more...)
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "critest"), args...)
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH")) // for ginkgo
	defer tidy(leftovers())
	var output bytes.Buffer
	cmd.Stdout = io.MultiWriter(os.Stdout, &output)
	cmd.Stderr = cmd.Stdout
	err := cmd.Run()
	fmt.Printf("\n--- critest %s\n", name)
	for _, line := range summary.FindAllString(output.String(), -1) {
		fmt.Println(line)
	}
	if err != nil {
		return fmt.Errorf("critest %s: %w", name, err)
	}
	if slices.Contains(more, "-parallel=4") {
		return nil // ginkgo's processes write no report together; the serial runs check what is skipped
	}
	return checkSkipped(report)
}

// checkSkipped reads ginkgo's report and returns an error for every skipped spec that this machine can run: benchmarks,
// and what needs a kernel module that is not there, are the exceptions.
func checkSkipped(file string) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read critest's report: %w", err)
	}
	var reports []struct {
		SpecReports []struct {
			State                   string
			LeafNodeType            string
			LeafNodeText            string
			ContainerHierarchyTexts []string
		}
	}
	if err := json.Unmarshal(raw, &reports); err != nil {
		return fmt.Errorf("read critest's report: %w", err)
	}
	var errs []error
	skipped := map[string]int{}
	for _, r := range reports {
		for _, spec := range r.SpecReports {
			if spec.State != "skipped" || spec.LeafNodeType != "It" {
				continue
			}
			text := strings.Join(append(spec.ContainerHierarchyTexts, spec.LeafNodeText), " ")
			reason := skipReason(text)
			if reason == "" {
				errs = append(errs, fmt.Errorf("skipped without a reason that holds here: %s", text))
			}
			skipped[reason]++
		}
	}
	for reason, count := range skipped {
		fmt.Printf("skipped: %d (%s)\n", count, reason)
	}
	return errors.Join(errs...)
}

// skipReason says why a spec may be skipped on this machine; "" means that it may not.
func skipReason(text string) string {
	lacks := func(path string) bool { _, err := os.Stat(path); return err != nil }
	switch {
	case strings.Contains(text, "AppArmor") && lacks("/sys/module/apparmor"):
		return "the kernel has no AppArmor"
	case strings.Contains(text, "SELinux") && lacks("/sys/fs/selinux/enforce"):
		return "the kernel has no SELinux"
	case strings.Contains(strings.ToLower(text), "benchmark"):
		return "a benchmark, not asked for"
	}
	return ""
}
