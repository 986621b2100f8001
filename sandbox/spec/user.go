package spec

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// addUser says whom the process is to be. Names stay names: only the container's own files can resolve them.
func (b *builder) addUser() error {
	groups, strict, err := supplementalGroups(b.security)
	if err != nil {
		return err
	}
	user, group, err := b.userAndGroup()
	if err != nil {
		return err
	}
	b.user = User{User: user, Group: group, Groups: groups, Strict: strict}
	return nil
}

func (b *builder) userAndGroup() (user, group string, err error) {
	imageUser, imageGroup, _ := strings.Cut(b.image.User, ":")
	user, given, err := b.givenUser()
	if err != nil {
		return "", "", err
	}
	if gid := b.security.GetRunAsGroup(); gid != nil {
		if !given {
			return "", "", invalid(securityField("run_as_group"), gid.GetValue(), "run_as_user or run_as_username with it")
		}
		group, err = idString(securityField("run_as_group"), gid.GetValue())
		return user, group, err
	}
	if !given {
		return imageUser, imageGroup, nil
	}
	// The kubelet sends the image's own user back when the pod names none, and ImageStatus cannot tell it the group
	// of "USER user:group". So the image's user gets the image's group.
	if sameUser(user, imageUser) {
		group = imageGroup
	}
	return user, group, nil
}

// givenUser is the user of the configuration, if it names one.
func (b *builder) givenUser() (user string, given bool, err error) {
	uid, name := b.security.GetRunAsUser(), b.security.GetRunAsUsername()
	switch {
	case uid != nil && name != "":
		return "", false, invalid(securityField("run_as_username"), name, "not both run_as_user and run_as_username")
	case uid != nil:
		user, err = idString(securityField("run_as_user"), uid.GetValue())
		return user, true, err
	case strings.ContainsAny(name, ":\x00\n"):
		return "", false, invalid(securityField("run_as_username"), name, "a user name")
	}
	return name, name != "", nil
}

// sameUser compares the user of the configuration with that of the image, which may be empty (root) or a number in
// another spelling.
func sameUser(user, imageUser string) bool {
	if imageUser == "" {
		imageUser = "0"
	}
	if n, err := strconv.ParseUint(imageUser, 10, 32); err == nil {
		imageUser = strconv.FormatUint(n, 10)
	}
	return user == imageUser
}

func supplementalGroups(sc *runtime.LinuxContainerSecurityContext) (groups []uint32, strict bool, err error) {
	switch policy := sc.GetSupplementalGroupsPolicy(); policy {
	case runtime.SupplementalGroupsPolicy_Merge:
	case runtime.SupplementalGroupsPolicy_Strict:
		strict = true
	default:
		return nil, false, invalid(securityField("supplemental_groups_policy"), policy.String(), "Merge or Strict")
	}
	for i, gid := range sc.GetSupplementalGroups() {
		field := securityField(fmt.Sprintf("supplemental_groups[%d]", i))
		if err := checkID(field, gid); err != nil {
			return nil, false, err
		}
		groups = append(groups, uint32(gid))
	}
	return groups, strict, nil
}

// checkID allows what every reader of /etc/passwd allows: 31 bits.
func checkID(field string, id int64) error {
	if id < 0 || id > math.MaxInt32 {
		return invalid(field, id, "0 to 2147483647")
	}
	return nil
}

func idString(field string, id int64) (string, error) {
	return strconv.FormatInt(id, 10), checkID(field, id)
}
