package keeperd

import (
	"fmt"
	"os"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantry-cri/gantry/sandbox/keeper/pins"
)

// onMounts calls f on a thread of its own, in a mount namespace of its own, in which what spec names of the sandbox's
// pins can be opened and mounted. The spec is changed to have paths for that; they lead nowhere once f has returned.
func (k *Keeper) onMounts(id string, spec *specs.Spec, f func() error) error {
	return onThread(func() error {
		var shared []*specs.Mount
		var paths []string
		dir := pins.Dir(k.config.StateDir)
		for i := range spec.Mounts {
			if m := &spec.Mounts[i]; strings.HasPrefix(m.Source, dir+"/") && !pins.InTable(m.Source) {
				shared, paths = append(shared, m), append(paths, m.Source)
			}
		}
		if len(paths) == 0 && !joinsPins(spec, dir) {
			if err := privateMounts(); err != nil {
				return err
			}
			return f()
		}
		view, trees, err := pins.Borrow(dir, paths)
		if err != nil {
			return err
		}
		defer view.Close()
		err = privateMounts()
		for i, tree := range trees {
			if err == nil {
				err = k.place(id, tree, shared[i])
			}
			tree.Close()
		}
		if err != nil {
			return err
		}
		for i := range spec.Linux.Namespaces {
			ns := &spec.Linux.Namespaces[i]
			if path := view.Path(ns.Path); path != ns.Path {
				// libcontainer takes whatever begins with /proc/<number> for /proc/<pid>/ns/user, and would have the
				// mapping of a user namespace from there (GetUserNamespaceMappings, 1.5.2).
				ns.Path = "/proc/." + strings.TrimPrefix(path, "/proc")
			}
		}
		return f()
	})
}

func joinsPins(spec *specs.Spec, dir string) bool {
	for _, ns := range spec.Linux.Namespaces {
		if strings.HasPrefix(ns.Path, dir+"/") {
			return true
		}
	}
	return false
}

// place mounts a pin for one container, beside its root filesystem, and makes that the source of m.
func (k *Keeper) place(id string, tree pins.Tree, m *specs.Mount) error {
	target, err := k.layout.makeMountPoint(id)
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.Destination, err)
	}
	m.Source = target
	return tree.Mount(target)
}

// openPin opens a pin by its path.
func (k *Keeper) openPin(path string) (*os.File, error) {
	if pins.Alive(path) {
		return os.Open(path)
	}
	view, err := pins.Look(pins.Dir(k.config.StateDir))
	if err != nil {
		return nil, err
	}
	defer view.Close()
	return os.Open(view.Path(path))
}
