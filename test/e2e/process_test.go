//go:build e2e

package e2e

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/images"
)

func usersImage(c *runtime.ContainerConfig) { c.Image.Image = images.Users }

func security(change func(*runtime.LinuxContainerSecurityContext)) func(*runtime.ContainerConfig) {
	return func(c *runtime.ContainerConfig) { change(c.Linux.SecurityContext) }
}

func TestProcessIsTheImagesUser(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "c", "echo $(id -u) $(id -g) $(id -G) $PWD $FROM_IMAGE $BOTH; sleep 1000", usersImage,
		func(c *runtime.ContainerConfig) { c.Envs = []*runtime.KeyValue{{Key: "BOTH", Value: []byte("config")}} })
	c.waitLog(t, "1000 1000 1000 50000 /srv/app image config")
	wantEqual(t, "user and directory of exec", c.exec(t, "echo $(id -u) $(id -G) $PWD $BOTH"), "1000 1000 50000 /srv/app config")
	user := c.status(t).GetUser().GetLinux()
	wantEqual(t, "uid in status", user.GetUid(), 1000)
	if groups := user.GetSupplementalGroups(); !slices.Contains(groups, 50000) || !slices.Contains(groups, 1000) {
		t.Errorf("groups in status are %v", groups)
	}
}

func TestUserGroupAndSupplementalGroups(t *testing.T) {
	const show = "echo $(id -u) $(id -g) $(id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' ')"
	for _, test := range []struct {
		name   string
		change func(*runtime.LinuxContainerSecurityContext)
		want   string
	}{
		{"uid without passwd entry", func(s *runtime.LinuxContainerSecurityContext) {
			s.RunAsUser = &runtime.Int64Value{Value: 4321}
		}, "4321 0 0"},
		{"uid and gid", func(s *runtime.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsGroup = &runtime.Int64Value{Value: 4321}, &runtime.Int64Value{Value: 77}
		}, "4321 77 77"},
		{"name", func(s *runtime.LinuxContainerSecurityContext) { s.RunAsUsername = "nobody" }, "65534 65534 65534"},
		{"merged groups", func(s *runtime.LinuxContainerSecurityContext) {
			s.RunAsUser, s.SupplementalGroups = &runtime.Int64Value{Value: 1000}, []int64{7}
		}, "1000 1000 7 1000 50000"},
		{"strict groups", func(s *runtime.LinuxContainerSecurityContext) {
			s.RunAsUser, s.SupplementalGroups = &runtime.Int64Value{Value: 1000}, []int64{7}
			s.SupplementalGroupsPolicy = runtime.SupplementalGroupsPolicy_Strict
		}, "1000 1000 7 1000"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := runPod(t)
			wantEqual(t, "user", strings.TrimSpace(p.output(t, "c", show, usersImage, security(test.change))), test.want)
		})
	}
}

func TestWorkingDirectoryIsMade(t *testing.T) {
	p := runPod(t)
	got := p.output(t, "c", "pwd", func(c *runtime.ContainerConfig) { c.WorkingDir = "/not/there/yet" })
	wantEqual(t, "working directory", got, "/not/there/yet")
}

// capabilitiesOf reads a set of the container's first process.
func (c *container) capabilities(t *testing.T, set string) uint64 {
	t.Helper()
	text := c.exec(t, "grep "+set+" /proc/1/status | tr -dc 0-9a-f | tail -c 16")
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != 8 {
		t.Fatalf("capability set %s is %q", set, text)
	}
	value, err := strconv.ParseUint(text, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func TestCapabilities(t *testing.T) {
	const chown, netRaw, netAdmin = 0, 13, 12
	p := runPod(t)
	defaults := p.start(t, "defaults", "sleep 1000")
	if caps := defaults.capabilities(t, "CapEff"); caps&(1<<chown) == 0 || caps&(1<<netAdmin) != 0 {
		t.Errorf("default capabilities are %x", caps)
	}
	changed := p.start(t, "changed", "sleep 1000", security(func(s *runtime.LinuxContainerSecurityContext) {
		s.Capabilities = &runtime.Capability{AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"CHOWN", "NET_RAW"}}
	}))
	if caps := changed.capabilities(t, "CapEff"); caps&(1<<netAdmin) == 0 || caps&(1<<chown|1<<netRaw) != 0 {
		t.Errorf("changed capabilities are %x", caps)
	}
	none := p.start(t, "none", "sleep 1000", security(func(s *runtime.LinuxContainerSecurityContext) {
		s.Capabilities = &runtime.Capability{DropCapabilities: []string{"ALL"}}
	}))
	wantEqual(t, "capabilities after dropping all", none.capabilities(t, "CapBnd"), 0)
	wantEqual(t, "ambient capabilities", defaults.capabilities(t, "CapAmb"), 0)
}

func TestReadonlyRootfs(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "c", "sleep 1000", security(func(s *runtime.LinuxContainerSecurityContext) { s.ReadonlyRootfs = true }))
	if r := c.execSync(t, 60, "touch", "/file"); r.ExitCode == 0 || !strings.Contains(string(r.Stderr), "Read-only") {
		t.Errorf("writing to the root: code %d, %s", r.ExitCode, r.Stderr)
	}
	c.exec(t, "touch /dev/shm/file")
}

func TestMaskedAndReadonlyPaths(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "c", "sleep 1000", security(func(s *runtime.LinuxContainerSecurityContext) {
		s.MaskedPaths = []string{"/proc/keys", "/etc/passwd", "/proc/scsi", "/no/such/path"}
		s.ReadonlyPaths = []string{"/proc/sys", "/etc"}
	}))
	wantEqual(t, "size of a masked file", c.exec(t, "cat /proc/keys /etc/passwd | wc -c"), "0")
	wantEqual(t, "entries of a masked directory", c.exec(t, "ls -A /proc/scsi | wc -l"), "0")
	for _, path := range []string{"/etc/new", "/proc/sys/kernel/domainname"} {
		if r := c.execSync(t, 60, "sh", "-c", "echo x > "+path); r.ExitCode == 0 {
			t.Errorf("read-only %s is writable", path)
		}
	}
	// Without lists nothing is masked: the kubelet sends the defaults.
	open := p.start(t, "open", "sleep 1000")
	open.exec(t, "grep -q . /proc/keys && echo x > /etc/new")
}

func TestNoNewPrivileges(t *testing.T) {
	for name, want := range map[string]string{"false": "0", "true": "1000"} {
		t.Run(name, func(t *testing.T) {
			p := runPod(t)
			got := p.output(t, "c", "", func(c *runtime.ContainerConfig) {
				c.Image.Image, c.Command = images.NNP, nil
				c.Linux.SecurityContext.RunAsUser = &runtime.Int64Value{Value: 1000}
				c.Linux.SecurityContext.NoNewPrivs = name == "true"
			})
			wantEqual(t, "output of a setuid program", got, "Effective uid: "+want)
		})
	}
}

func TestSeccomp(t *testing.T) {
	profile := filepath.Join(t.TempDir(), "deny-mkdir.json")
	err := os.WriteFile(profile, []byte(`{"defaultAction": "SCMP_ACT_ALLOW",
		"syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}`), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, command string
		profile       *runtime.SecurityProfile
		mode          string
		allowed       bool
	}{
		{"nil", "unshare -m true", nil, "0", true},
		{"unconfined", "unshare -m true",
			&runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}, "0", true},
		{"runtime default", "unshare -m true",
			&runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}, "2", false},
		{"localhost", "mkdir /tmp/new",
			&runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: profile}, "2", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := runPod(t)
			c := p.start(t, "c", "sleep 1000", security(func(s *runtime.LinuxContainerSecurityContext) {
				s.Seccomp = test.profile
				// The default profile of AppArmor denies part of what unshare does.
				s.Apparmor = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}
				if test.allowed {
					s.Capabilities = &runtime.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
				}
			}))
			wantEqual(t, "seccomp mode", c.exec(t, "grep Seccomp: /proc/1/status | tr -dc 0-9"), test.mode)
			r := c.execSync(t, 60, "sh", "-c", test.command)
			wantEqual(t, "whether it is allowed: "+test.command, r.ExitCode == 0, test.allowed)
			wantEqual(t, "seccomp mode of an exec", c.exec(t, "grep Seccomp: /proc/self/status | tr -dc 0-9"), test.mode)
		})
	}
}

func TestTerminal(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "c", "tty; echo err >&2; sleep 1000", func(c *runtime.ContainerConfig) { c.Tty, c.Stdin = true, true })
	eventually(t, "log shows a terminal", func() bool {
		b, _ := os.ReadFile(c.logPath)
		return strings.Contains(string(b), "/dev/pts/") && strings.Contains(string(b), "err")
	})
	for _, line := range readLog(t, c.logPath) {
		wantEqual(t, "stream of a terminal", line.stream, "stdout")
	}
	// crictl wants a terminal itself: script gives it one, of a size that has to arrive.
	crictl := append([]string{filepath.Join(shared.Tools, "crictl")}, shared.CrictlArgs()...)
	command := "stty rows 33 cols 77; " + strings.Join(crictl, " ") + " exec -it " + c.id + " sh -c 'tty; for i in $(seq 600); do stty size | grep \"33 77\" && break; sleep 0.1; done'"
	out, err := exec.CommandContext(timeout(t), "script", "-qec", command, "/dev/null").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "/dev/pts/") || !strings.Contains(string(out), "33 77") {
		t.Errorf("exec with a terminal of 33 by 77: %v, %q", err, out)
	}
}

func TestPrivileged(t *testing.T) {
	p := runPod(t, func(c *runtime.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	c := p.start(t, "c", "sleep 1000", security(func(s *runtime.LinuxContainerSecurityContext) { s.Privileged = true }))
	c.exec(t, "mkdir /mnt && mount -t tmpfs none /mnt && umount /mnt")
	c.exec(t, "test -c /dev/kmsg")
	if caps := c.capabilities(t, "CapEff"); caps&(1<<21) == 0 {
		t.Errorf("capabilities of a privileged container are %x", caps)
	}
}

func TestExecTellsExitCodeAndStreams(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "c", "sleep 1000")
	r := c.execSync(t, 60, "sh", "-c", "echo out; echo err >&2; exit 7")
	wantEqual(t, "exit code", r.ExitCode, 7)
	wantEqual(t, "stdout", string(r.Stdout), "out\n")
	wantEqual(t, "stderr", string(r.Stderr), "err\n")
	r = c.execSync(t, 60, "sh", "-c", "kill -9 $$")
	wantEqual(t, "exit code of a killed process", r.ExitCode, 137)
	// A child that holds the streams does not hold the call.
	r = c.execSync(t, 20, "sh", "-c", "sleep 300 & echo started")
	wantEqual(t, "stdout with a child left", string(r.Stdout), "started\n")
	if r := c.execSync(t, 30, "sh", "-c", "head -c 40000000 /dev/zero"); r.ExitCode != 0 || len(r.Stdout) > 16<<20 {
		t.Errorf("exec with much output: code %d, %d bytes", r.ExitCode, len(r.Stdout))
	}
}

// The default profile is compiled before the first container, which is given the short form of it.
func TestDefaultSeccompProfileIsReadyBeforeTheFirstContainer(t *testing.T) {
	n := configuredNode(t, "profile", "")
	hello, err := n.KeeperHello()
	if err != nil {
		t.Fatal(err)
	}
	// The keeper's memory for programs, whose third number says how many there are.
	var memory string
	eventually(t, "the keeper keeps programs", func() bool {
		open, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", hello.PID))
		for _, file := range open {
			if to, _ := os.Readlink(file); strings.Contains(to, "gantry-seccomp-filters") {
				memory = file
			}
		}
		return memory != ""
	})
	eventually(t, "the profile and its short form are compiled", func() bool {
		b, err := os.ReadFile(memory)
		if err != nil {
			t.Fatal(err)
		}
		return binary.NativeEndian.Uint32(b[8:]) == 2
	})
	p := runPodOn(t, n, podConfig(t, n, ""))
	i := 0
	eventually(t, "a container is given the short form", func() bool { // when that is verified, which takes a moment more
		i++
		c := p.start(t, fmt.Sprint("c", i), "sleep 1000", security(func(s *runtime.LinuxContainerSecurityContext) {
			s.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}
		}))
		state, err := os.ReadFile(filepath.Join(n.State, "keeper", "lc", c.id, "state.json"))
		if err != nil {
			t.Fatal(err)
		}
		rules := strings.Count(string(state), `"args":`)
		return rules > 0 && rules < 50
	})
	if b, _ := os.ReadFile(memory); binary.NativeEndian.Uint32(b[8:]) != 2 {
		t.Error("the containers have another profile than the one that was compiled beforehand")
	}
}
