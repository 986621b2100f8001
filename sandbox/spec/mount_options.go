package spec

import (
	"fmt"
	"slices"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// mountOptionGroups are the options that a bind mount can have; those of one group contradict each other.
var mountOptionGroups = [][]string{
	{"ro", "rw", "rro"},
	{"dev", "nodev"},
	{"exec", "noexec"},
	{"suid", "nosuid"},
	{"diratime", "nodiratime"},
	{"symfollow", "nosymfollow"},
	{"noatime", "relatime", "strictatime"},
}

// imageOptions are what an image volume has besides ro: the Kubernetes API promises noexec, and nothing of an image
// should be a device or raise privileges.
var imageOptions = []string{"nodev", "nosuid", "noexec"}

// mountOptions returns the options of the readonly fields and mount_options. Of options that contradict each other the
// last stays; only readonly yields to none.
func mountOptions(field string, m *runtime.Mount) ([]string, error) {
	var options []string
	if m.GetImage() != nil {
		options = append(options, imageOptions...)
	}
	switch {
	case m.GetRecursiveReadOnly() && m.GetImage() == nil: // an image has no mounts below its top
		options = append(options, "rro")
	case m.GetReadonly():
		options = append(options, "ro")
	}
	for i, option := range m.GetMountOptions() {
		group := optionGroup(option)
		field := fmt.Sprintf("%s.mount_options[%d]", field, i)
		if group == nil || option == "rro" {
			return nil, invalid(field, option, "an option of a bind mount such as nodev, nosuid or noexec")
		}
		if m.GetReadonly() && option == "rw" {
			return nil, invalid(field, option, "no rw on a readonly mount")
		}
		if m.GetReadonly() && option == "ro" {
			continue
		}
		options = slices.DeleteFunc(options, func(earlier string) bool { return slices.Contains(group, earlier) })
		// A bind mount is writable by itself; to say so would clear the flags that the source has.
		if option != "rw" {
			options = append(options, option)
		}
	}
	return options, nil
}

func optionGroup(option string) []string {
	for _, group := range mountOptionGroups {
		if slices.Contains(group, option) {
			return group
		}
	}
	return nil
}
