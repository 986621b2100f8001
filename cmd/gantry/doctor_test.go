package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/cri/operator"
)

// expect checks the level of a finding and that its text has a part.
func expect(t *testing.T, what string, f finding, l level, part string) {
	t.Helper()
	if f.level != l || !strings.Contains(f.text, part) {
		t.Errorf("%s: found %s %q, expected %s with %q", what, f.level, f.text, l, part)
	}
}

func TestDoctorJudgesTheKernel(t *testing.T) {
	expect(t, "overlay", checkOverlay("nodev\tproc\nnodev\toverlay\n\text4"), levelOK, "")
	expect(t, "no overlay", checkOverlay("nodev\tproc\nnodev\toverlayfs2"), levelFail, "modprobe")
	expect(t, "no /proc/filesystems", checkOverlay(""), levelFail, "overlay")

	v1 := []*mountinfo.Info{
		{FSType: "cgroup", VFSOptions: "rw,cpu,cpuacct"}, {FSType: "cgroup", VFSOptions: "rw,memory"},
		{FSType: "cgroup", VFSOptions: "cpuset"}, {FSType: "cgroup", VFSOptions: "pids"},
		{FSType: "cgroup", VFSOptions: "devices"}, {FSType: "cgroup", VFSOptions: "freezer"},
	}
	expect(t, "v1", checkCgroups(v1, ""), levelWarn, "failCgroupV1")
	expect(t, "v1 without freezer", checkCgroups(v1[:5], ""), levelFail, "freezer")
	v2 := []*mountinfo.Info{{FSType: "cgroup2", Mountpoint: "/sys/fs/cgroup"}}
	expect(t, "v2", checkCgroups(v2, "cpuset cpu io memory hugetlb pids"), levelOK, "v2")
	expect(t, "v2 without memory", checkCgroups(v2, "cpuset cpu io pids"), levelFail, "memory")
	expect(t, "no cgroups", checkCgroups(nil, ""), levelFail, "memory")

	expect(t, "seccomp", checkSeccomp("kill_process kill_thread trap errno log allow"), levelOK, "")
	expect(t, "no seccomp", checkSeccomp(""), levelFail, "RuntimeDefault")

	expect(t, "no pidfd", checkPidfd(false, "4.19.0"), levelFail, "5.3")
	expect(t, "pidfd", checkPidfd(true, "5.10.0-amd64"), levelOK, "pidfd_open")

	expect(t, "criu", criuFinding("Looks good.\n", nil), levelOK, "good")
	expect(t, "no criu", criuFinding("", &exec.Error{Name: "criu", Err: exec.ErrNotFound}), levelWarn, "install")
	expect(t, "old criu", criuFinding("Error (criu/vdso.c:381): vdso\nmore", errors.New("exit status 1")), levelWarn, "vdso.c")
	expect(t, "user ns", checkUserNamespaces("1000"), levelOK, "1000")
	expect(t, "user ns off", checkUserNamespaces("0"), levelWarn, "hostUsers")
	expect(t, "no user ns", checkUserNamespaces(""), levelWarn, "hostUsers")
}

func TestDoctorJudgesTheNetworkConfiguration(t *testing.T) {
	conf, bin := t.TempDir(), t.TempDir()
	write := func(dir, name, text string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, "no directory", checkCNI(filepath.Join(conf, "none"), bin), levelFail, "no CNI configuration")
	write(conf, "00-readme.txt", "", 0o644)
	expect(t, "no configuration", checkCNI(conf, bin), levelFail, "--embedded-network")

	write(conf, "20-net.conf", `{"name":"late","type":"x"}`, 0o644)
	write(conf, "10-net.conflist", `{"name":"first",
		"plugins":[{"type":"bridge","ipam":{"type":"host-local"}},{"type":"portmap"}]}`, 0o644)
	expect(t, "no plugins", checkCNI(conf, bin), levelFail, "plugin bridge")
	write(bin, "bridge", "", 0o755)
	write(bin, "portmap", "", 0o755)
	write(bin, "host-local", "", 0o644)
	expect(t, "plugin without x", checkCNI(conf, bin), levelFail, "plugin host-local")
	if err := os.Chmod(filepath.Join(bin, "host-local"), 0o755); err != nil {
		t.Fatal(err)
	}
	expect(t, "all there", checkCNI(conf, bin), levelOK, "with bridge, host-local, portmap")

	write(conf, "05-net.json", `{"name":`, 0o644)
	expect(t, "no JSON", checkCNI(conf, bin), levelFail, "05-net.json")
	write(conf, "05-net.json", `{"name":"n","plugins":[]}`, 0o644)
	expect(t, "empty list", checkCNI(conf, bin), levelFail, "at least one plugin")
}

func TestDoctorJudgesTheDisk(t *testing.T) {
	disk := func(free, freeInodes uint64) finding {
		return diskFinding("/r", &unix.Statfs_t{Bsize: 4096, Blocks: 100, Bavail: free, Files: 100, Ffree: freeInodes})
	}
	expect(t, "plenty", disk(50, 50), levelOK, "200 KiB (50%)")
	expect(t, "little", disk(14, 50), levelWarn, "(14%)")
	expect(t, "none", disk(4, 50), levelFail, "(4%)")
	expect(t, "no inodes", disk(50, 1), levelFail, "1% of inodes")
	unlimited := diskFinding("/r", &unix.Statfs_t{Bsize: 1, Blocks: 2, Bavail: 1})
	expect(t, "inodes without limit", unlimited, levelOK, "100% of inodes")
	expect(t, "no directory", checkDisk("/no/such/directory"), levelFail, "no such file")
}

func TestDoctorJudgesKeeperAndConditions(t *testing.T) {
	keeper := func(build, err string) finding {
		return checkKeeper(&operator.InfoResponse{
			Version: "v2", Keeper: &operator.KeeperInfo{Path: "/k", Build: build, Pid: 5, Live: 3, Error: err},
		})
	}
	expect(t, "same build", keeper("v2", ""), levelOK, "3 processes")
	expect(t, "other build", keeper("v1", ""), levelWarn, "not the daemon")
	expect(t, "dead", keeper("", "connection refused"), levelFail, "connection refused (binary /k)")

	got := checkConditions([]*runtime.RuntimeCondition{
		{Type: runtime.RuntimeReady, Status: true},
		{Type: runtime.NetworkReady, Reason: "NoNetwork", Message: "no configuration"},
		{Type: "Other"},
	})
	if len(got) != 3 {
		t.Fatalf("findings: %v", got)
	}
	expect(t, "runtime", got[0], levelOK, "")
	expect(t, "network", got[1], levelFail, "NoNetwork: no configuration")
	expect(t, "other", got[2], levelWarn, "")
	expect(t, "silent daemon", checkConditions(nil)[0], levelFail, "does not tell")
}

func TestReportFailsOnlyForFailures(t *testing.T) {
	var out bytes.Buffer
	if err := report(&out, []finding{ok("a", "x"), warn("b", "y %d", 1)}); err != nil {
		t.Errorf("error %v without a failure", err)
	}
	if !strings.Contains(out.String(), "warn  b                y 1\n") {
		t.Errorf("printed %q", out.String())
	}
	if err := report(&out, []finding{ok("a", "x"), fail("b", "y")}); err == nil || err.Error() != "1 of 2 checks failed" {
		t.Errorf("error %v", err)
	}
}

func TestDoctorWithoutDaemonStillLooksAtTheNode(t *testing.T) {
	findings := diagnose(t.Context(), &connector{"unix://" + filepath.Join(t.TempDir(), "none")})
	expect(t, "daemon", findings[0], levelFail, "is it running?")
	seen := map[string]bool{}
	for _, f := range findings {
		seen[f.what] = true
	}
	for _, what := range []string{"overlay", "cgroups", "seccomp", "pidfd", "user namespaces", "network", "disk"} {
		if !seen[what] {
			t.Errorf("no finding on %s", what)
		}
	}
}
