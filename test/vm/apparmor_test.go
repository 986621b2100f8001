//go:build e2e

package vm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const denyProfile = "gantry-vm-deny"

// denyProfileText lets everything but writing below /denied.
const denyProfileText = `profile ` + denyProfile + ` flags=(attach_disconnected,mediate_deleted) {
  file, capability, network, mount, umount, signal, ptrace, unix,
  deny /denied/** wl,
}
`

func appArmor(kind runtime.SecurityProfile_ProfileType, name string) func(*runtime.ContainerConfig) {
	return func(c *runtime.ContainerConfig) {
		c.Linux.SecurityContext.Apparmor = &runtime.SecurityProfile{ProfileType: kind, LocalhostRef: name}
	}
}

func named(name string) func(*runtime.ContainerConfig) {
	return func(c *runtime.ContainerConfig) { c.Metadata.Name, c.LogPath = name, name+".log" }
}

const showProfile = "cat /proc/1/attr/current; cat /proc/self/attr/current"

// mounting is what the default profile denies even to one that has the capability.
const mounting = "mkdir -p /mnt && mount -t tmpfs none /mnt && umount /mnt && echo mounted || echo denied"

func withSysAdmin(c *runtime.ContainerConfig) {
	c.Linux.SecurityContext.Capabilities = &runtime.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
	c.Linux.SecurityContext.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}
}

func TestNodeAppArmorDefault(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "sleep 1000", named("default"), withSysAdmin)
	wantEqual(t, "profiles", c.exec(t, showProfile), "gantry-default (enforce)\ngantry-default (enforce)")
	wantEqual(t, "mount under the default profile", c.exec(t, mounting), "denied")
	u := p.start(t, "sleep 1000", named("unconfined"), withSysAdmin, appArmor(runtime.SecurityProfile_Unconfined, ""))
	wantEqual(t, "profiles", u.exec(t, showProfile), "unconfined\nunconfined")
	wantEqual(t, "mount unconfined", u.exec(t, mounting), "mounted")
	// Somebody who removes profiles that no file in /etc names removes this one.
	file := filepath.Join(t.TempDir(), "default")
	if err := os.WriteFile(file, []byte("profile gantry-default {}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	command(t, "apparmor_parser", "-R", file)
	again := p.start(t, "sleep 1000", named("again"))
	wantEqual(t, "profile after it was removed", again.exec(t, "cat /proc/1/attr/current"), "gantry-default (enforce)")
	// Signals from outside and among the container's own processes pass the profile.
	wantEqual(t, "kill inside", again.exec(t, "sleep 100 & kill -TERM $!; wait $!; echo $?"), "143")
	if _, err := installed.Runtime.StopContainer(timeout(t), &runtime.StopContainerRequest{ContainerId: again.id}); err != nil {
		t.Error(err)
	}
}

func TestNodeAppArmorLocalhost(t *testing.T) {
	file := filepath.Join(t.TempDir(), denyProfile)
	if err := os.WriteFile(file, []byte(denyProfileText), 0o644); err != nil {
		t.Fatal(err)
	}
	command(t, "apparmor_parser", "-r", "-K", file)
	t.Cleanup(func() { command(t, "apparmor_parser", "-R", file) })
	p := runPod(t)
	c := p.start(t, "sleep 1000", appArmor(runtime.SecurityProfile_Localhost, denyProfile))
	want := denyProfile + " (enforce)"
	wantEqual(t, "profiles", c.exec(t, showProfile), want+"\n"+want)
	wantEqual(t, "write", c.exec(t, "mkdir /denied /allowed; echo x > /allowed/f && cat /allowed/f"), "x")
	wantEqual(t, "denied write", c.exec(t, "echo x > /denied/f && echo written || echo denied"), "denied")
}

func TestNodeAppArmorProfileThatIsNotLoaded(t *testing.T) {
	p := runPod(t)
	config := containerConfig("c", "sleep 1000")
	appArmor(runtime.SecurityProfile_Localhost, "gantry-vm-missing")(config)
	_, err := p.tryCreate(t, config)
	if err == nil || !strings.Contains(err.Error(), "gantry-vm-missing") {
		t.Errorf("the error does not name the profile: %v", err)
	}
}
