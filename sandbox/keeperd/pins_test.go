package keeperd_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantry-cri/gantry/sandbox/keeper"
	"github.com/gantry-cri/gantry/sandbox/keeper/pins"
	"github.com/gantry-cri/gantry/sandbox/namespace"
)

// TestPinsOfASandbox starts two containers with the pins of one sandbox, also where an older keeper looked for them: the
// sandbox outlives that keeper.
func TestPinsOfASandbox(t *testing.T) {
	for name, inTable := range map[string]bool{"in a mount namespace of their own": false, "in the node's table": true} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			dir := filepath.Join(pins.Dir(n.dir), "s")
			if err := pins.Open(filepath.Dir(dir)); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := namespace.Remove(dir); err != nil || !pins.Close(filepath.Dir(dir)) {
					t.Errorf("pins are left: %v", err)
				}
			})
			opts := namespace.Options{Net: true, IPC: true, UTS: true, Hostname: "pod-host", InTable: inTable}
			if err := namespace.Make(dir, opts); err != nil {
				t.Fatal(err)
			}
			join := func(r *keeper.StartRequest) {
				r.Spec.Hostname = ""
				for i := range r.Spec.Linux.Namespaces {
					ns := &r.Spec.Linux.Namespaces[i]
					ns.Path = map[specs.LinuxNamespaceType]string{
						specs.NetworkNamespace: filepath.Join(dir, namespace.Net), specs.IPCNamespace: filepath.Join(dir, namespace.IPC),
						specs.UTSNamespace: filepath.Join(dir, namespace.UTS),
					}[ns.Type]
				}
				for i := range r.Spec.Mounts {
					if m := &r.Spec.Mounts[i]; m.Destination == "/dev/shm" {
						m.Type, m.Source, m.Options = "bind", filepath.Join(dir, namespace.Shm), []string{"bind", "rprivate"}
					}
				}
			}
			writer := n.run(join, "sh", "-c", "echo shared >/dev/shm/word")
			if s := writer.wait(); s.ExitCode != 0 {
				t.Fatalf("status %+v: %s", s, writer.output("stderr"))
			}
			reader := n.run(join, "sh", "-c", "cat /dev/shm/word /proc/sys/kernel/hostname; echo /proc/sys/net/ipv4/conf/*")
			if s := reader.wait(); s.ExitCode != 0 {
				t.Fatalf("status %+v: %s", s, reader.output("stderr"))
			}
			want := "shared\npod-host\n/proc/sys/net/ipv4/conf/all /proc/sys/net/ipv4/conf/default /proc/sys/net/ipv4/conf/lo"
			if got := reader.output("stdout"); !strings.HasPrefix(got, want) {
				t.Errorf("inside: %q, want %q", got, want)
			}
			if entries, _ := os.ReadDir(filepath.Join(dir, namespace.Shm)); !inTable && len(entries) > 0 {
				t.Errorf("/dev/shm is a directory of the pins and no mount: %v", entries)
			}
		})
	}
}
