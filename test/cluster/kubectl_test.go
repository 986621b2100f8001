//go:build e2e

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func fetch(t *testing.T, address string) string {
	t.Helper()
	var body []byte
	eventually(t, "an answer of "+address, func() error {
		response, err := http.Get("http://" + address)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		body, err = io.ReadAll(response.Body)
		return err
	})
	return string(body)
}

func TestLogs(t *testing.T) {
	s := newSpace(t)
	lines := inShort(20, 100)
	s.apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: main}
spec:
  restartPolicy: Never
  containers:
  - {name: main, image: BUSYBOX, command: [sh, -c, "for i in $(seq %d); do echo line $i; usleep 50000; done"]}`, lines))
	s.kubectl(t, "wait", "--for=jsonpath={.status.containerStatuses[0].state}", "pod/main", "--timeout=5m")
	var followed string
	eventually(t, "the container to run", func() (err error) {
		followed, err = s.try(timeout(t), "", "logs", "-f", "main")
		return err
	})
	var want strings.Builder
	for i := range lines {
		fmt.Fprintf(&want, "line %d\n", i+1)
	}
	wantEqual(t, "followed log", followed, want.String())
	wantEqual(t, "last line", s.kubectl(t, "logs", "--tail=1", "main"), fmt.Sprint("line ", lines))
}

func TestExec(t *testing.T) {
	s := newSpace(t)
	s.sleeper(t, "main")
	_, err := s.try(timeout(t), "", "exec", "main", "--", "sh", "-c", "exit 12")
	if err == nil || !strings.Contains(err.Error(), "exit code 12") {
		t.Errorf("a command that exits with 12: %v", err)
	}
	data := strings.Repeat("0123456789abcde\n", 100_000)
	out, err := s.try(timeout(t), data, "exec", "-i", "main", "--", "cat")
	if err != nil || out != data {
		t.Errorf("cat gave %d bytes of %d, %v", len(out), len(data), err)
	}
	// script is the terminal of kubectl.
	cmd := exec.CommandContext(timeout(t), "script", "-qec",
		fmt.Sprintf("stty rows 33 cols 77; kubectl -n %s exec -it main -- sh", s), "/dev/null")
	// The size may arrive after the shell has begun.
	cmd.Stdin = strings.NewReader("tty; for i in $(seq 600); do stty size | grep -q '^33 77' && break; sleep 0.1; done; " +
		"echo size $(stty size)\nexit 7\n")
	terminal, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("the shell on a terminal: %v", err)
	}
	wantContains(t, "the shell's terminal", string(terminal), "/dev/pts/0")
	wantContains(t, "the shell's terminal", string(terminal), "size 33 77")
}

func TestAttach(t *testing.T) {
	s := newSpace(t)
	s.apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: main}
spec:
  restartPolicy: Never
  containers:
  - {name: main, image: BUSYBOX, stdin: true, stdinOnce: true, command: [sh, -c, "while read line; do echo got $line; done"]}`)
	s.kubectl(t, "wait", "--for=condition=Ready", "pod/main", "--timeout=5m")
	out, err := s.try(timeout(t), "one\ntwo\n", "attach", "-i", "main")
	if err != nil {
		t.Error(err)
	}
	s.kubectl(t, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/main", "--timeout=5m")
	wantEqual(t, "log", s.kubectl(t, "logs", "main"), "got one\ngot two")
	wantContains(t, "what was attached", out, "got ")
}

func TestCopy(t *testing.T) {
	s := newSpace(t)
	s.sleeper(t, "main")
	dir := filepath.Join(t.TempDir(), "tree")
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("some text\n"), 300_000)
	for _, name := range []string{"file", "sub/file"} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s.kubectl(t, "cp", dir, "main:/tmp/copied")
	s.kubectl(t, "cp", "main:/tmp/copied", dir+".back")
	for _, name := range []string{"file", "sub/file"} {
		back, err := os.ReadFile(filepath.Join(dir+".back", name))
		if err != nil || !bytes.Equal(back, data) {
			t.Errorf("the copy of the copy of %s has %d bytes, want %d: %v", name, len(back), len(data), err)
		}
	}
}

func TestPortForward(t *testing.T) {
	s := newSpace(t)
	s.apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: main}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: AGNHOST
    args: [netexec, --http-port=8080]
    readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, timeoutSeconds: 30}`)
	s.kubectl(t, "wait", "--for=condition=Ready", "pod/main", "--timeout=5m")
	ctx, cancel := context.WithCancel(timeout(t))
	defer cancel()
	cmd := exec.CommandContext(ctx, "kubectl", "-n", string(s), "port-forward", "pod/main", ":8080")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	local := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(line)
	if local == "" {
		t.Fatalf("kubectl says %q, %v", line, err)
	}
	for range 3 {
		wantEqual(t, "answer", fetch(t, local+"/hostname"), "main")
	}
	cancel()
	cmd.Wait()
}

func TestDebug(t *testing.T) {
	s := newSpace(t)
	s.sleeper(t, "main")
	s.kubectl(t, "debug", "main", "--image="+imageNames.Replace("BUSYBOX"), "--target=main", "--container=debugger",
		"--profile=general", "--", "sleep", "66666")
	var out string
	eventually(t, "the debugger to run", func() (err error) {
		out, err = s.try(timeout(t), "", "exec", "main", "-c", "debugger", "--", "ps", "-o", "args")
		return err
	})
	wantContains(t, "processes", out, "sleep inf")
	wantContains(t, "processes", out, "sleep 66666")
	name := nodes(t)[0]
	s.kubectl(t, "debug", "node/"+name, "--image="+imageNames.Replace("BUSYBOX"), "--profile=sysadmin",
		"--", "sh", "-c", "chroot /host hostname; exec sleep 1000")
	eventually(t, "the node's debugger", func() error {
		out, err := s.try(timeout(t), "", "logs", "-l", "app.kubernetes.io/managed-by=kubectl-debug")
		if err == nil && strings.TrimSpace(out) != name {
			err = fmt.Errorf("it says %q, want %s", out, name)
		}
		return err
	})
}

func TestTop(t *testing.T) {
	if _, err := space("kube-system").try(timeout(t), "", "get", "deployment", "metrics-server"); err != nil {
		t.Skip("the cluster has no metrics-server: gantry-cluster up -metrics")
	}
	s := newSpace(t)
	s.apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: busy}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: BUSYBOX, command: [sh, -c, "while :; do :; done"], resources: {limits: {cpu: 200m}}}`)
	space("kube-system").rollout(t, "deployment/metrics-server")
	usage := regexp.MustCompile(`(?m)^busy +([1-9]\d*)m +\d+Mi`)
	eventually(t, "the usage of the pod", func() error {
		out, err := s.try(timeout(t), "", "top", "pods")
		if err == nil && !usage.MatchString(out) {
			err = fmt.Errorf("it is %q", out)
		}
		return err
	})
	out := s.kubectl(t, "top", "nodes")
	for _, name := range nodes(t) {
		if !regexp.MustCompile(`(?m)^` + name + ` +\d+m +\d+% +[1-9]\d*Mi`).MatchString(out) {
			t.Errorf("usage of %s is not in %q", name, out)
		}
	}
}
