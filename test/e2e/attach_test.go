//go:build e2e

package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// attach attaches to the container.
func (c *container) attach(t *testing.T, kinds ...string) *session {
	t.Helper()
	req := &runtime.AttachRequest{ContainerId: c.id, Tty: c.config.Tty}
	for _, kind := range kinds {
		req.Stdin, req.Stdout, req.Stderr = req.Stdin || kind == "stdin", req.Stdout || kind == "stdout", req.Stderr || kind == "stderr"
	}
	resp, err := c.node.Runtime.Attach(timeout(t), req)
	if err != nil {
		t.Fatal(err)
	}
	return openSession(t, resp.Url, kinds...)
}

func withInput(c *runtime.ContainerConfig) { c.Stdin = true }

func TestAttachedClientsShareTheContainer(t *testing.T) {
	c := runPod(t).start(t, "c", `echo before; while read l; do [ "$l" = end ] && exit 3; echo "got $l"; done`, withInput)
	c.waitLog(t, "before")
	first := c.attach(t, "stdin", "stdout", "stderr")
	first.write(t, "stdin", "one\n")
	first.wait(t, "got one\n")
	second := c.attach(t, "stdin", "stdout")
	second.write(t, "stdin", "two\n")
	first.wait(t, "got two\n")
	second.wait(t, "got two\n")
	wantEqual(t, "what a late client got", second.output(), "got two\n")
	c.waitLog(t, "got two")

	// One that goes takes nobody with it, nor does the daemon.
	first.conn.Close()
	second.write(t, "stdin", "three\n")
	second.wait(t, "got three\n")
	shared.Kill()
	restart(t)
	third := c.attach(t, "stdin", "stdout")
	third.write(t, "stdin", "four\n")
	third.wait(t, "got four\n")
	wantEqual(t, "what a client got after a restart", third.output(), "got four\n")
	third.write(t, "stdin", "end\n")
	wantEqual(t, "result of an attach to a container that exits", third.result(t), "")
	wantEqual(t, "exit code", c.waitExit(t).ExitCode, 3)
	wantEqual(t, "log", c.logText(t), "before\ngot one\ngot two\ngot three\ngot four")
}

func TestAttachAfterTheKeeperDied(t *testing.T) {
	for _, tty := range []bool{false, true} {
		t.Run(fmt.Sprintf("tty %v", tty), func(t *testing.T) {
			kinds := map[bool][]string{false: {"stdin", "stdout"}, true: {"stdin", "stdout", "resize"}}[tty]
			c := runPod(t).start(t, "c", `while read l; do echo "got $l"; done; echo over`, withInput,
				func(c *runtime.ContainerConfig) { c.Tty = tty })
			s := c.attach(t, kinds...)
			s.write(t, "stdin", "one\n")
			s.wait(t, "got one")
			s.write(t, "stdin", "last\n") // which the next keeper may find again, but nothing before it
			s.wait(t, "got last")
			old := keeperPID(t, shared)
			killKeeper(t, shared)
			if got := s.result(t); !strings.Contains(got, "unavailable") {
				t.Errorf("result is %q, expected that the keeper is unavailable", got)
			}
			awaitKeeper(t, shared, old)
			s = c.attach(t, kinds...)
			s.write(t, "stdin", "two\n")
			s.wait(t, "got two")
			if strings.Contains(s.output(), "one") {
				t.Errorf("a new client got old output: %q", s.output())
			}
		})
	}
}

func TestInputEndsAfterTheKeeperDied(t *testing.T) {
	c := runPod(t).start(t, "c", "cat; echo over", withInput, func(c *runtime.ContainerConfig) { c.StdinOnce = true })
	s := c.attach(t, "stdin", "stdout")
	s.write(t, "stdin", "one\n")
	s.wait(t, "one\n")
	killKeeper(t, shared)
	wantEqual(t, "exit code", c.waitExit(t).ExitCode, 0)
	// A keeper that is killed before it has discarded what it wrote leaves it to its successor to write again.
	lines := slices.Compact(strings.Split(c.logText(t), "\n"))
	wantEqual(t, "log", strings.Join(lines, "\n"), "one\nover")
}

func TestInputEndsOnceOrNever(t *testing.T) {
	p := runPod(t)
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			once := p.start(t, "once-"+transport, "cat; echo; echo over", withInput, func(c *runtime.ContainerConfig) { c.StdinOnce = true })
			watcher := once.attach(t, "stdin", "stdout") // holds a write end too
			input := strings.Repeat("x", 300_000)
			out, err := streamsOf(t, shared, strings.NewReader(input), "attach", "-r", transport, "-i", once.id)
			if err != nil || out != input+"\nover\n" {
				t.Errorf("got %d bytes, expected %d: %v", len(out), len(input)+6, err)
			}
			wantEqual(t, "result of the other client", watcher.result(t), "")
			wantEqual(t, "exit code", once.waitExit(t).ExitCode, 0)

			never := p.start(t, "never-"+transport, "while read l; do echo got $l; done; echo over", withInput)
			if _, err := streamsOf(t, shared, strings.NewReader("one\n"), "attach", "-r", transport, "-i", never.id); err != nil {
				t.Errorf("a client whose input ends has detached: %v", err)
			}
			never.waitLog(t, "got one")
			if _, err := streamsOf(t, shared, strings.NewReader("two\n"), "attach", "-r", transport, "-i", never.id); err != nil {
				t.Error(err)
			}
			never.waitLog(t, "got two")
			wantEqual(t, "state", never.status(t).State, runtime.ContainerState_CONTAINER_RUNNING)
		})
	}
}

func TestInputEndsWithTheDaemon(t *testing.T) {
	c := runPod(t).start(t, "c", "cat; echo over", withInput, func(c *runtime.ContainerConfig) { c.StdinOnce = true })
	s := c.attach(t, "stdin", "stdout")
	s.write(t, "stdin", "one\n")
	s.wait(t, "one\n")
	shared.Kill()
	c.waitLog(t, "over")
	restart(t)
	wantEqual(t, "exit code", c.waitExit(t).ExitCode, 0)
}

func TestAttachToTerminal(t *testing.T) {
	c := runPod(t).start(t, "c", "while read l; do stty size; done", withInput, func(c *runtime.ContainerConfig) { c.Tty = true })
	s := c.attach(t, "stdin", "stdout", "resize")
	s.write(t, "resize", `{"Width":91,"Height":17}`)
	eventually(t, "the size has arrived", func() bool {
		s.write(t, "stdin", "\n")
		time.Sleep(20 * time.Millisecond)
		return strings.Contains(s.output(), "17 91")
	})
	// Another client, with a terminal of its own. It gets the keys to detach again and again: those that come before it
	// has its terminal in raw mode are lost.
	crictl := append([]string{filepath.Join(shared.Tools, "crictl")}, shared.CrictlArgs()...)
	command := "stty rows 33 cols 77; (for i in $(seq 100); do sleep 1; echo; printf '\\020\\021'; done) | script -qec '" +
		strings.Join(crictl, " ") + " attach -it " + c.id + "' /dev/null"
	out, err := exec.CommandContext(timeout(t), "script", "-qec", command, "/dev/null").CombinedOutput()
	if err != nil && !strings.Contains(string(out), "detach") {
		t.Errorf("attach with crictl: %v, %q", err, out)
	}
	for _, req := range []*runtime.AttachRequest{
		{ContainerId: c.id, Stdout: true}, {ContainerId: c.id, Stdout: true, Tty: true, Stderr: true}, {ContainerId: c.id, Tty: true},
	} {
		_, err := shared.Runtime.Attach(timeout(t), req)
		wantCode(t, err, codes.InvalidArgument)
	}
}
