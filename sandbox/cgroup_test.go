package sandbox

import (
	"testing"

	"github.com/containerd/errdefs"
)

func TestCgroupPaths(t *testing.T) {
	for name, tc := range map[string]struct {
		driver, configured       string
		parent, oci, fs          string
		own, wantInvalidArgument bool
	}{
		"cgroupfs, kubelet's parent": {
			driver: DriverCgroupfs, configured: "/kubepods/burstable/pod1", parent: "/kubepods/burstable/pod1",
			oci: "/kubepods/burstable/pod1/c", fs: "/kubepods/burstable/pod1/c",
		},
		"cgroupfs, no parent": {
			driver: DriverCgroupfs, parent: "/gantry/s", oci: "/gantry/s/c", fs: "/gantry/s/c", own: true,
		},
		"systemd, kubelet's parent": {
			driver: DriverSystemd, configured: "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice",
			parent: "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice",
			oci:    "kubepods-burstable-pod1.slice:gantry:c",
			fs:     "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/gantry-c.scope",
		},
		"systemd, test suite's parent": {
			driver: DriverSystemd, configured: "/test.slice", parent: "/test.slice", oci: "test.slice:gantry:c", fs: "/test.slice/gantry-c.scope",
		},
		"systemd, no parent": {
			driver: DriverSystemd, parent: "/gantry.slice", oci: "gantry.slice:gantry:c", fs: "/gantry.slice/gantry-c.scope",
		},
		"systemd, not a slice": {driver: DriverSystemd, configured: "/kubepods/pod1", wantInvalidArgument: true},
		"dots":                 {driver: DriverCgroupfs, configured: "/a/../b", wantInvalidArgument: true},
	} {
		m := &Manager{config: Config{CgroupDriver: tc.driver, CgroupParent: "/gantry"}}
		parent, own, err := m.cgroupParent("s", tc.configured)
		if tc.wantInvalidArgument {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s: %v, expected an invalid argument", name, err)
			}
			continue
		}
		if err != nil || parent != tc.parent || own != tc.own {
			t.Errorf("%s: parent %q own %t, %v; expected %q %t", name, parent, own, err, tc.parent, tc.own)
		}
		if got := m.cgroupsPath(parent, "c"); got != tc.oci {
			t.Errorf("%s: OCI path %q, expected %q", name, got, tc.oci)
		}
		if got := m.cgroupfsPath(parent, "c"); got != tc.fs {
			t.Errorf("%s: path %q, expected %q", name, got, tc.fs)
		}
	}
}
