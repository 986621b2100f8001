package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
)

func TestKeeperIsFoundBesideTheDaemonThenInPath(t *testing.T) {
	beside, inPath, configured := t.TempDir(), t.TempDir(), t.TempDir()
	t.Setenv("PATH", inPath)
	if _, err := findKeeper("", beside); err == nil || !strings.Contains(err.Error(), filepath.Join(beside, keeperName)) {
		t.Errorf("no keeper anywhere: error %v, expected the path that was looked at", err)
	}
	for _, dir := range []string{inPath, beside, configured} {
		write(t, filepath.Join(dir, keeperName), "")
	}
	if _, err := findKeeper("", beside); err == nil {
		t.Error("files that are not executable were taken")
	}
	if _, err := findKeeper(filepath.Join(configured, keeperName), beside); err == nil {
		t.Error("configured file that is not executable was taken")
	}
	for _, c := range []struct{ dir, configured string }{
		{inPath, ""}, {beside, ""}, {configured, filepath.Join(configured, keeperName)},
	} {
		want := filepath.Join(c.dir, keeperName)
		if err := os.Chmod(want, 0o755); err != nil {
			t.Fatal(err)
		}
		if got, err := findKeeper(c.configured, beside); err != nil || got != want {
			t.Errorf("found %q, error %v, expected %q", got, err, want)
		}
	}
}

func TestCgroupsThatAreAbsentStopTheStart(t *testing.T) {
	v1 := func(options ...string) (mounts []*mountinfo.Info) {
		for _, o := range options {
			mounts = append(mounts, &mountinfo.Info{FSType: "cgroup", VFSOptions: "rw," + o, Mountpoint: "/sys/fs/cgroup/" + o})
		}
		return mounts
	}
	unified := &mountinfo.Info{FSType: "cgroup2", Mountpoint: "/sys/fs/cgroup"}
	hybrid := &mountinfo.Info{FSType: "cgroup2", Mountpoint: "/sys/fs/cgroup/unified"}
	for name, c := range map[string]struct {
		mounts  []*mountinfo.Info
		missing string
	}{
		"v2":         {[]*mountinfo.Info{unified}, ""},
		"v1":         {v1("memory", "cpu,cpuacct", "cpuset", "pids", "devices", "freezer"), ""},
		"none":       {nil, "memory"},
		"hybrid":     {append(v1("memory", "cpu", "cpuset", "devices", "freezer"), hybrid), "pids"},
		"v2 in hole": {[]*mountinfo.Info{hybrid}, "memory, cpu, cpuset"},
	} {
		err := checkCgroups(c.mounts)
		if (err == nil) != (c.missing == "") || err != nil && !strings.Contains(err.Error(), c.missing) {
			t.Errorf("%s: error %v, expected one with %q", name, err, c.missing)
		}
	}
}
