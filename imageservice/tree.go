package imageservice

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links a path may lead over, as in the kernel.
const maxLinks = 40

// tree is what an overlay mount of layers shows, without a mount: the directories of the layers, the uppermost first.
// Nothing outside of them is ever looked at, for symbolic links are followed here, with the top of the tree for "/".
type tree struct {
	layers []string
	// opaque is the attribute of a directory that hides the same directory of the layers below it.
	opaque string
}

// place is a directory or a regular file of a tree.
type place struct {
	// path is where it is in the tree, absolute, without symbolic links.
	path string
	// dirs are the directories that make it up, the uppermost first.
	dirs []string
	// file is the layer's file, where it is one; it has no dirs then.
	file string
}

func (s *store) tree(layers []string) tree {
	t := tree{layers: layers, opaque: "trusted.overlay.opaque"}
	for _, option := range s.overlayOptions {
		if option == "userxattr" {
			t.opaque = "user.overlay.opaque"
		}
	}
	return t
}

// find walks to what is at name. missing is the part of the way, below the place, that the tree does not have.
// Errors: syscall.ENOTDIR, syscall.ELOOP, syscall.ENOENT for a way that goes back from what is missing.
func (t tree) find(name string) (at place, missing []string, err error) {
	at = place{path: "/", dirs: t.layers}
	above := []place{}
	todo := strings.Split(name, "/")
	for links := 0; len(todo) > 0; {
		element := todo[0]
		todo = todo[1:]
		switch {
		case at.file != "":
			return place{}, nil, &fs.PathError{Op: "enter", Path: at.path, Err: syscall.ENOTDIR}
		case element == "" || element == ".":
			continue
		case element == "..":
			if len(missing) > 0 {
				return place{}, nil, &fs.PathError{Op: "enter", Path: name, Err: syscall.ENOENT}
			}
			if len(above) > 0 {
				at, above = above[len(above)-1], above[:len(above)-1]
			}
			continue
		case len(missing) > 0:
			missing = append(missing, element)
			continue
		}
		next, link, err := t.step(at, element)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			missing = append(missing, element)
		case err != nil:
			return place{}, nil, err
		case link != "":
			if links++; links > maxLinks {
				return place{}, nil, &fs.PathError{Op: "follow", Path: path.Join(at.path, element), Err: syscall.ELOOP}
			}
			if path.IsAbs(link) {
				at, above = place{path: "/", dirs: t.layers}, nil
			}
			todo = append(strings.Split(link, "/"), todo...)
		default:
			above = append(above, at)
			at = next
		}
	}
	return at, missing, nil
}

// step goes from a directory to what has that name in it, or returns where the symbolic link of that name leads.
func (t tree) step(at place, name string) (next place, link string, err error) {
	next.path = path.Join(at.path, name)
	for _, dir := range at.dirs {
		file := filepath.Join(dir, name)
		var st unix.Stat_t
		err := unix.Lstat(file, &st)
		kind := st.Mode & unix.S_IFMT
		switch {
		case err == unix.ENOENT:
			continue
		case err != nil:
			return place{}, "", &fs.PathError{Op: "lstat", Path: next.path, Err: err}
		case kind == unix.S_IFDIR:
			next.dirs = append(next.dirs, file)
			hides, err := t.isOpaque(file)
			if err != nil {
				return place{}, "", err
			}
			if !hides {
				continue
			}
		case len(next.dirs) > 0 || kind == unix.S_IFCHR && st.Rdev == 0: // hidden, or a whiteout
		case kind == unix.S_IFLNK:
			link, err := readLink(file)
			return place{}, link, err
		case kind == unix.S_IFREG:
			next.file = file
			return next, "", nil
		default:
			return place{}, "", &fs.PathError{Op: "enter", Path: next.path, Err: syscall.ENOTDIR}
		}
		break
	}
	if len(next.dirs) == 0 {
		return place{}, "", &fs.PathError{Op: "enter", Path: next.path, Err: syscall.ENOENT}
	}
	return next, "", nil
}

func readLink(file string) (string, error) {
	buffer := make([]byte, unix.PathMax)
	n, err := unix.Readlink(file, buffer)
	if err != nil {
		return "", fmt.Errorf("read symbolic link: %w", err)
	}
	return string(buffer[:n]), nil
}

// isOpaque tells whether a directory hides those below it.
func (t tree) isOpaque(dir string) (bool, error) {
	value := make([]byte, 1)
	n, err := unix.Lgetxattr(dir, t.opaque, value)
	switch err {
	case nil:
		return n == 1 && value[0] == 'y', nil
	case unix.ENODATA, unix.ENOTSUP, unix.ERANGE:
		return false, nil
	}
	return false, fmt.Errorf("read whether a layer's directory is opaque: %w", err)
}
