//go:build e2e

package system

import (
	"bytes"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const (
	endpoint = "runtime-endpoint: unix:///run/gantry/gantry.sock\ntimeout: 60\n"
	network  = `{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}`
	// counts writes a line a moment and ends when it is asked to.
	counts = `trap 'exit 0' TERM; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.1; done`
)

// packaged is a machine with the package installed and a network configured; the daemon is not started.
func packaged(t *testing.T) *box {
	t.Helper()
	b := boot(t)
	b.install()
	b.write(endpoint, "/etc/crictl.yaml")
	b.write(network, "/etc/cni/net.d/10-pods.conflist")
	return b
}

func (b *box) install() string {
	b.Helper()
	debs, err := filepath.Glob(filepath.Join(top, "bin/gantry_*.deb"))
	if err != nil || len(debs) != 1 {
		b.Fatalf("packages %v, %v: make deb builds one", debs, err)
	}
	rel, _ := filepath.Rel(top, debs[0])
	b.put(rel, "/root/gantry.deb", 0o644)
	return b.run("dpkg", "-i", "/root/gantry.deb")
}

// quiet checks that systemd found nothing to complain of.
func (b *box) quiet() {
	b.Helper()
	log := b.run("journalctl", "--no-pager", "-b")
	for _, bad := range []string{"left-over", "remains running", "Failed to", "Unit process", "fdstore", "oom-kill"} {
		for line := range strings.Lines(log) {
			if strings.Contains(line, bad) && strings.Contains(line, "gantry") {
				b.Errorf("systemd complains: %s", line)
			}
		}
	}
	b.want("failed units", b.run("systemctl", "--failed", "--no-legend"), "")
}

func TestPackageInstallsWithoutSurprise(t *testing.T) {
	b := packaged(t)
	if out, err := b.Exec(b.ctx, nil, "systemctl", "is-enabled", "gantryd"); strings.TrimSpace(out) != "disabled" {
		t.Errorf("is-enabled: %q, %v", out, err)
	}
	b.fails("systemctl", "is-active", "gantryd")
	b.want("configuration", b.run("gantryd", "config", "check"), "the configuration is valid")
	b.want("conffiles", b.sh("dpkg-query -W -f '${Conffiles}' gantry | grep -c config.toml"), "1")
	b.run("systemd-analyze", "verify", "--man=no", "/usr/lib/systemd/system/gantryd.service")
	b.want("damaged files", b.run("dpkg", "--verify", "gantry"), "")
	for _, file := range []string{"/usr/share/man/man8/gantryd.8.gz", "/usr/share/man/man1/gantry-image.1.gz",
		"/usr/share/bash-completion/completions/gantry", "/usr/lib/gantry/cni/bridge", "/usr/share/doc/gantry/copyright"} {
		b.run("test", "-s", file)
	}

	b.run("systemctl", "enable", "--now", "gantryd")
	b.want("is-active", b.run("systemctl", "is-active", "gantryd"), "active")
	if out := b.run("crictl", "version"); !strings.Contains(out, "RuntimeName:  gantry") {
		t.Errorf("crictl version: %s", out)
	}
	status := b.run("systemctl", "status", "--no-pager", "gantryd")
	if !strings.Contains(status, "active (running)") || strings.Contains(status, "gantry-keeper") {
		t.Errorf("status of the service: %s", status)
	}
	t.Log(status)
	t.Log(b.run("systemctl", "status", "--no-pager", "gantry-keeper-*.scope"))
	b.quiet()
}

func TestContainerOutlivesTheUnit(t *testing.T) {
	b := packaged(t)
	b.run("systemctl", "start", "gantryd")
	b.feed(bytes.NewReader(archive), "gantry", "image", "import", "-")
	c := b.pod("web", "", counts)
	pid := b.pid(c)
	lives := func(after string) {
		t.Helper()
		b.want("state after "+after, b.run("crictl", "ps", "-q", "--no-trunc"), c)
		b.want("pid after "+after, b.pid(c), pid)
		b.want("exec after "+after, b.run("crictl", "exec", c, "echo", "hello"), "hello")
	}
	lives("the start")
	b.want("cgroup", b.sh("sed -n s/^0:://p /proc/"+pid+"/cgroup"), "/gantry.slice/gantry-"+c+".scope")

	b.run("systemctl", "restart", "gantryd")
	lives("a restart")
	b.run("systemctl", "stop", "gantryd")
	b.run("kill", "-0", pid)
	b.run("systemctl", "start", "gantryd")
	lives("stop and start")
	b.quiet()

	b.run("systemctl", "kill", "-s", "KILL", "gantryd")
	b.eventually("systemctl is-active gantryd && crictl version")
	lives("a kill of the daemon")
	b.run("pkill", "-KILL", "-x", "gantry-keeper") // of this machine's pid namespace, where there is one
	b.eventually("pgrep -x gantry-keeper && crictl exec " + c + " true")
	lives("a kill of the keeper")
	// The reaper of the first one, which the container is a child of now, is in the second one's.
	b.eventually("[ $(systemctl list-units --no-legend 'gantry-keeper-*.scope' | wc -l) = 1 ]")
	b.want("reapers", b.sh("pgrep -c -x gantry-reaper"), "2")
	b.gapless(c)
	b.quiet()

	// A node that is shut down does not wait for the keeper.
	b.run("systemctl", "--no-block", "poweroff")
	if err := b.Wait(b.ctx); err != nil {
		t.Error(err)
	}
}

// gapless checks that no line of counts is missing in the log.
func (b *box) gapless(container string) {
	b.Helper()
	n := 0
	for line := range strings.Lines(b.run("crictl", "logs", container)) {
		n++
		if number, _ := strings.CutPrefix(strings.TrimSpace(line), "line "); number != strconv.Itoa(n) {
			b.Fatalf("line %d of the log is %q", n, line)
		}
	}
	if n == 0 {
		b.Error("the log is empty")
	}
}

func TestPackageUpgradeAndRemoval(t *testing.T) {
	b := packaged(t)
	b.write("verbosity = 2\n", "/etc/gantry/config.toml")
	b.run("systemctl", "enable", "--now", "gantryd")
	b.feed(bytes.NewReader(archive), "gantry", "image", "import", "-")
	c := b.pod("web", "", counts)
	pid := b.pid(c)
	daemon := b.run("systemctl", "show", "-P", "MainPID", "gantryd")

	b.install()
	if again := b.run("systemctl", "show", "-P", "MainPID", "gantryd"); again == daemon {
		t.Errorf("the daemon was not restarted by the upgrade: pid %s", again)
	}
	b.want("configuration after the upgrade", b.run("cat", "/etc/gantry/config.toml"), "verbosity = 2")
	b.want("pid after the upgrade", b.pid(c), pid)

	b.run("dpkg", "-r", "gantry")
	b.fails("systemctl", "is-active", "gantryd")
	b.run("kill", "-0", pid)
	b.want("configuration after the removal", b.run("cat", "/etc/gantry/config.toml"), "verbosity = 2")
	out := b.sh("dpkg --purge gantry 2>&1")
	if !strings.Contains(out, "pods still run") {
		t.Errorf("purge beside a container: %s", out)
	}
	b.run("kill", "-0", pid)
	b.run("test", "-d", "/var/lib/gantry/images")

	b.run("pgrep", "-x", "gantry-keeper")

	b.install()
	b.run("systemctl", "start", "gantryd")
	b.want("the container after all that", b.run("crictl", "ps", "-q", "--no-trunc"), c)
	b.gapless(c)
	b.run("crictl", "rmp", "-af")
	b.takesNetworkAway()
	b.pod("left", "", "exit 0")
	b.eventually("crictl ps -a | grep -q Exited")
	b.quiet()
	b.run("dpkg", "--purge", "gantry")
	b.eventually("! pgrep gantry") // the keeper says that it ends before it does, and its reaper ends after it
	b.want("what a purge leaves", b.sh("ls -d /etc/gantry /var/lib/gantry /run/gantry* /run/netns/gantry-* 2>/dev/null; "+
		"grep -o '/run/gantry[^ ]*' /proc/self/mountinfo; pgrep -l gantry; true"), "")
	b.fails("sh", "-c", "ls /etc/systemd/system/*/gantryd.service")
}

// takesNetworkAway removes the package while the embedded network is there and no pod, and installs it again.
func (b *box) takesNetworkAway() {
	b.Helper()
	b.write("[embedded_network]\nenabled = true\n", "/etc/gantry/conf.d/network.toml")
	b.run("systemctl", "restart", "gantryd")
	const list = "ip link | grep -o gantry0; ip route | grep 10.85.0.0/16; ip -6 route | grep 'unreachable.*1048576'; true"
	if found := b.sh(list); !strings.Contains(found, "gantry0") || !strings.Contains(found, "10.85.0.0/16") {
		b.Errorf("the embedded network has only %q", found)
	}
	b.run("dpkg", "-r", "gantry")
	b.want("what a removal leaves of the embedded network", b.sh(list), "")
	b.run("rm", "/etc/gantry/conf.d/network.toml")
	b.install()
	b.run("systemctl", "start", "gantryd")
}
