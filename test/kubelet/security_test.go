//go:build e2e

package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestSecurityContext looks at one container per case from inside.
func TestSecurityContext(t *testing.T) {
	const status = "grep -E '^%s:' /proc/self/status | sed 's/.*:\\s*//'"
	for _, test := range []struct{ name, image, pod, container, script, want string }{
		{"user", "BUSYBOX", "{}", "{runAsUser: 1234, runAsGroup: 4321}", "id -u; id -g", "1234\n4321"},
		{"image-user", "USERS", "{}", "{}", "id -un; id -G; pwd", "app\n1000 50000\n/srv/app"},
		{"group-of-pod", "BUSYBOX", "{runAsUser: 7, fsGroup: 2000, supplementalGroups: [3000]}", "{}",
			"id -G; stat -c '%g %a' /volume", "0 2000 3000\n2000 2777"},
		{"groups-merge", "USERS", "{runAsUser: 1000, supplementalGroups: [60000], supplementalGroupsPolicy: Merge}", "{}",
			"id -G", "1000 50000 60000"},
		{"groups-strict", "USERS", "{runAsUser: 1000, supplementalGroups: [60000], supplementalGroupsPolicy: Strict}", "{}",
			"id -G", "1000 60000"},
		{"drop-all", "BUSYBOX", "{}", "{capabilities: {drop: [ALL]}}", fmt.Sprintf(status, "CapEff"), "0000000000000000"},
		{"add-one", "BUSYBOX", "{}", "{capabilities: {drop: [ALL], add: [NET_ADMIN]}}",
			fmt.Sprintf(status, "CapEff"), "0000000000001000"},
		{"readonly-root", "BUSYBOX", "{}", "{readOnlyRootFilesystem: true}",
			"touch /x 2>/dev/null || echo no; touch /volume/x /dev/shm/x && echo yes", "no\nyes"},
		{"no-new-privileges", "NNP", "{}", "{runAsUser: 1000, allowPrivilegeEscalation: false}",
			fmt.Sprintf(status, "NoNewPrivs") + "; /nnp", "1\nEffective uid: 1000"},
		{"setuid", "NNP", "{}", "{runAsUser: 1000}", "/nnp", "Effective uid: 0"},
		{"seccomp-none", "BUSYBOX", "{}", "{}", fmt.Sprintf(status, "Seccomp"), "0"},
		{"seccomp-default", "BUSYBOX", "{seccompProfile: {type: RuntimeDefault}}", "{}",
			fmt.Sprintf(status, "Seccomp") + "; unshare -m true 2>/dev/null || echo denied", "2\ndenied"},
		{"seccomp-file", "BUSYBOX", "{}", "{seccompProfile: {type: Localhost, localhostProfile: no-mkdir.json}}",
			"mkdir /volume/x 2>&1 | grep -o 'not permitted'", "not permitted"},
		{"masked-proc", "BUSYBOX", "{}", "{}", "wc -c < /proc/keys; { echo 1 > /proc/sys/kernel/shm_rmid_forced; } 2>&1 | grep -o Read-only", "0\nRead-only"},
		{"privileged", "BUSYBOX", "{}", "{privileged: true}",
			"mount -t tmpfs none /mnt 2>/dev/null || mkdir -p /mnt && mount -t tmpfs none /mnt && echo mounted; ls /dev/loop-control",
			"mounted\n/dev/loop-control"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.name == "seccomp-file" {
				writeSeccompProfile(t)
			}
			t.Parallel()
			p := start(t, fmt.Sprintf(`
securityContext: %s
volumes: [{name: volume, emptyDir: {}}]
containers:
- name: main
  image: %s
  command: [sleep, inf]
  securityContext: %s
  volumeMounts: [{name: volume, mountPath: /volume}]`, test.pod, test.image, test.container))
			p.running(t)
			wantEqual(t, "output of "+test.script, p.shell(t, "main", test.script), test.want)
		})
	}
}

func writeSeccompProfile(t *testing.T) {
	t.Helper()
	dir := filepath.Join(shared.Root, "seccomp")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	profile := `{"defaultAction": "SCMP_ACT_ALLOW",
		"syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}`
	if err := os.WriteFile(filepath.Join(dir, "no-mkdir.json"), []byte(profile), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestUserIsInTheStatus(t *testing.T) {
	t.Parallel()
	p := start(t, `
securityContext: {runAsUser: 1000, supplementalGroups: [60000], supplementalGroupsPolicy: Merge}
containers:
- {name: main, image: USERS, command: [sleep, inf]}`)
	user := p.running(t).Container("main").User.Linux
	slices.Sort(user.SupplementalGroups)
	wantEqual(t, "user", fmt.Sprint(user.UID, user.GID, user.SupplementalGroups), "1000 1000 [1000 50000 60000]")
}

func TestRunAsNonRoot(t *testing.T) {
	for _, test := range []struct{ name, image, context, want string }{
		{"root", "BUSYBOX", "{runAsNonRoot: true}", "image will run as root"},
		{"name", "USERS", "{runAsNonRoot: true}", "cannot verify user is non-root"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := start(t, fmt.Sprintf(`
containers:
- {name: main, image: %s, command: [sleep, inf], securityContext: %s}`, test.image, test.context))
			status := p.wait(t, "a refusal", func(s *Status) bool {
				w := s.Container("main").State.Waiting
				return w != nil && w.Reason == "CreateContainerConfigError"
			})
			wantContains(t, "message", status.Container("main").State.Waiting.Message, test.want)
		})
	}
	t.Run("uid", func(t *testing.T) {
		t.Parallel()
		p := start(t, `
containers:
- {name: main, image: BUSYBOX, command: [sleep, inf], securityContext: {runAsNonRoot: true, runAsUser: 5}}`)
		p.running(t)
	})
}

func TestMissingSeccompProfileIsAnError(t *testing.T) {
	t.Parallel()
	p := start(t, `
containers:
- name: main
  image: BUSYBOX
  command: [sleep, inf]
  securityContext: {seccompProfile: {type: Localhost, localhostProfile: no/such.json}}`)
	status := p.wait(t, "CreateContainerError", func(s *Status) bool {
		w := s.Container("main").State.Waiting
		return w != nil && w.Reason == "CreateContainerError"
	})
	wantContains(t, "message", status.Container("main").State.Waiting.Message, "no/such.json")
}

func TestUserNamespacePod(t *testing.T) {
	t.Parallel()
	dir := hostDir(t)
	if err := os.WriteFile(filepath.Join(dir, "of-root"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, fmt.Sprintf(`
hostUsers: false
securityContext: {fsGroup: 2000}
volumes:
- {name: empty, emptyDir: {}}
- {name: memory, emptyDir: {medium: Memory}}
- {name: host, hostPath: {path: %q}}
- {name: data, image: {reference: DATA}}
containers:
- name: main
  image: BUSYBOX
  command: [sleep, inf]
  volumeMounts:
  - {name: empty, mountPath: /empty}
  - {name: memory, mountPath: /memory}
  - {name: host, mountPath: /host}
  - {name: data, mountPath: /data}
- name: unmasked
  image: BUSYBOX
  command: [sleep, inf]
  securityContext: {procMount: Unmasked}`, dir))
	p.running(t)
	fields := strings.Fields(p.shell(t, "main", "cat /proc/self/uid_map"))
	if len(fields) != 3 || fields[0] != "0" || fields[1] == "0" || fields[2] != "65536" {
		t.Errorf("uid_map is %v", fields)
	}
	out := p.shell(t, "main", "id -u; touch /empty/x /memory/x /host/x; stat -c %u /empty/x /memory/x /host/x /host/of-root; "+
		"cat /data/data/sub/file; stat -c %g /empty")
	wantEqual(t, "inside", out, "0\n0\n0\n0\n0\nfrom the image2000")
	wantEqual(t, "reachable", p.shell(t, "main", "cat /host/of-root; chown 5 /empty/x && stat -c %u /empty/x"), "x5")
	wantEqual(t, "unmasked", p.shell(t, "unmasked", "grep -c ' /proc/' /proc/mounts || true"), "0")
}
