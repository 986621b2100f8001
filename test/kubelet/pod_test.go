//go:build e2e

package kubelet

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/test/e2e/images"
)

// imageNames replaces the names of images in specs.
var imageNames = strings.NewReplacer(
	"AGNHOST", images.Agnhost, "BUSYBOX", images.Busybox, "DATA", images.Data, "USERS", images.Users, "NNP", images.NNP,
	"WEB", images.Web,
)

// patience is how long a test waits for what has to happen: long, since the machine may be busy.
const patience = 4 * time.Minute

func timeout(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// testPod is a pod of a test; its methods end the test when something goes wrong.
type testPod struct{ *Pod }

// start writes a static pod named after the test for the shared kubelet. It is removed at the end of the test.
func start(t *testing.T, spec string) testPod {
	t.Helper()
	return startOn(t, shared, Manifest{Spec: spec})
}

func startOn(t *testing.T, k *Kubelet, m Manifest) testPod {
	t.Helper()
	if m.Name == "" {
		m.Name = podName(t)
	}
	m.Spec = imageNames.Replace(m.Spec)
	if !strings.Contains(m.Spec, "terminationGracePeriodSeconds") { // most run sleep, which hears no SIGTERM
		m.Spec = "terminationGracePeriodSeconds: 3\n" + strings.TrimSpace(m.Spec)
	}
	p, err := k.Create(m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := p.Delete(ctx); err != nil {
			t.Error(err)
		}
	})
	return testPod{p}
}

// podName is the test's name as a DNS label.
func podName(t *testing.T) string {
	var b strings.Builder
	for _, r := range strings.TrimPrefix(t.Name(), "Test") {
		switch {
		case 'A' <= r && r <= 'Z':
			if b.Len() > 0 {
				b.WriteByte('-')
			}
			b.WriteRune(r + 'a' - 'A')
		case 'a' <= r && r <= 'z' || '0' <= r && r <= '9':
			b.WriteRune(r)
		default:
			b.WriteByte('-')
		}
	}
	name := b.String()
	return strings.Trim(name[:min(len(name), 50)], "-")
}

func (p testPod) wait(t *testing.T, what string, wanted func(*Status) bool) *Status {
	t.Helper()
	status, err := p.Wait(timeout(t), what, wanted)
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// running waits until the pod runs and is ready.
func (p testPod) running(t *testing.T) *Status {
	t.Helper()
	return p.wait(t, "running and ready", func(s *Status) bool { return s.Phase == "Running" && s.Ready() })
}

// finished waits until the pod has succeeded or failed.
func (p testPod) finished(t *testing.T) *Status {
	t.Helper()
	return p.wait(t, "the end", func(s *Status) bool { return s.Phase == "Succeeded" || s.Phase == "Failed" })
}

// logs is the log of a container.
func (p testPod) logs(t *testing.T, container string) string {
	t.Helper()
	text, err := p.Logs(timeout(t), container, url.Values{})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// logsHave waits until a container's log holds a text.
func (p testPod) logsHave(t *testing.T, container, text string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%q in the log of %s", text, container), func() error {
		log, err := p.Logs(timeout(t), container, url.Values{})
		if err == nil && !strings.Contains(log, text) {
			err = fmt.Errorf("log is %q", log)
		}
		return err
	})
}

// shell runs a script in a container and returns its output without white space around it.
func (p testPod) shell(t *testing.T, container, script string) string {
	t.Helper()
	result, err := p.Exec(timeout(t), container, nil, "sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	if result.Failure != "" {
		t.Fatalf("%s: %s%s: %s", script, result.Stdout, result.Stderr, result.Failure)
	}
	return strings.TrimSpace(result.Stdout)
}

// eventually tries until there is no error.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("wait for %s: %v", what, err)
		}
	}
}

func wantEqual[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}

func wantContains(t *testing.T, what, got, want string) {
	t.Helper()
	if !strings.Contains(got, want) {
		t.Errorf("%s is %q, want %q in it", what, got, want)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
