package keeperd

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// maxUserFile bounds how much of an image's passwd or group file is read.
const maxUserFile = 16 << 20

// resolveUser finds who u is in the root filesystem's own passwd and group files, which may be missing. Numbers need no
// entry, names do.
func resolveUser(rootfs string, u keeper.User) (keeper.ResolvedUser, error) {
	var r keeper.ResolvedUser
	name, err := resolveUID(rootfs, u.User, &r)
	if err != nil {
		return r, err
	}
	number, isNumber := parseNumber(u.Group)
	matched := false
	var member []uint32
	err = eachLine(rootfs, "etc/group", func(f io.Reader) error {
		_, err := user.ParseGroupFilter(f, func(g user.Group) bool {
			if u.Group != "" && g.Name == u.Group && validID(g.Gid) {
				r.GID, matched = uint32(g.Gid), true
			}
			if name != "" && validID(g.Gid) && slices.Contains(g.List, name) {
				member = append(member, uint32(g.Gid))
			}
			return false
		})
		return err
	})
	if err != nil {
		return r, err
	}
	switch {
	case u.Group == "" || matched:
	case isNumber:
		r.GID = number
	default:
		return r, fmt.Errorf("unable to find group %s: no such entry in the image's /etc/group", u.Group)
	}
	if u.Strict {
		member = nil
	}
	for _, gid := range slices.Concat([]uint32{r.GID}, u.Groups, member) {
		if !slices.Contains(r.Groups, gid) {
			r.Groups = append(r.Groups, gid)
		}
	}
	return r, nil
}

// resolveUID sets UID and the primary GID, and returns the user's name if it has one.
func resolveUID(rootfs, want string, r *keeper.ResolvedUser) (name string, err error) {
	if want == "" {
		want = "0"
	}
	number, isNumber := parseNumber(want)
	matched := false
	err = eachLine(rootfs, "etc/passwd", func(f io.Reader) error {
		_, err := user.ParsePasswdFilter(f, func(e user.User) bool {
			if matched || !validID(e.Uid) || !validID(e.Gid) {
				return false
			}
			if e.Name == want || (isNumber && uint32(e.Uid) == number) {
				name, matched = e.Name, true
				r.UID, r.GID = uint32(e.Uid), uint32(e.Gid)
			}
			return false
		})
		return err
	})
	if err != nil || matched {
		return name, err
	}
	if !isNumber {
		return "", fmt.Errorf("unable to find user %s: no such entry in the image's /etc/passwd", want)
	}
	r.UID = number
	return "", nil
}

func parseNumber(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 31)
	return uint32(n), err == nil
}

func validID(n int) bool { return n >= 0 && n <= math.MaxInt32 }

// eachLine opens a file of the image as if the image were the root: a link cannot lead out of it, and what is not a
// regular file (a FIFO would block) does not count as there.
func eachLine(rootfs, path string, parse func(io.Reader) error) error {
	root, err := unix.Open(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open root filesystem: %w", err)
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open /%s of the image: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	if err := parse(io.LimitReader(f, maxUserFile)); err != nil {
		return fmt.Errorf("read /%s of the image: %w", path, err)
	}
	return nil
}
