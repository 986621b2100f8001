package images

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

const busyboxPath = "/bin/busybox"

// libraryDirs is where the dynamic linker of Debian looks, by architecture-independent patterns.
var libraryDirs = []string{"/lib/*-linux-gnu*", "/usr/lib/*-linux-gnu*", "/lib64", "/lib", "/usr/lib"}

// busyboxEntries are a small root filesystem around Debian's dynamically linked busybox. Its applets are hard links:
// symbolic ones would make masking one of them mask all, and the statically linked busybox runs applets without exec.
func busyboxEntries() ([]entry, error) {
	binary, err := os.ReadFile(busyboxPath)
	if err != nil {
		return nil, fmt.Errorf("read busybox (Debian package busybox): %w", err)
	}
	libraries, err := libraryEntries(busyboxPath)
	if err != nil {
		return nil, err
	}
	list, err := exec.Command(busyboxPath, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list applets of busybox: %w", err)
	}
	entries := []entry{
		dir("bin", 0o755), dir("dev", 0o755), dir("etc", 0o755), dir("home", 0o755), dir("lib", 0o755),
		dir("lib64", 0o755), dir("proc", 0o555), dir("root", 0o700), dir("sys", 0o555), dir("tmp", 0o1777),
		dir("usr", 0o755), dir("usr/sbin", 0o755), dir("var", 0o755), dir("var/run", 0o755),
		text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/sh\n"+
			"nobody:x:65534:65534:nobody:/nonexistent:/bin/sh\n"),
		text("etc/group", "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n"),
		file("bin/busybox", 0o755, binary),
	}
	entries = append(entries, libraries...)
	applets := strings.Fields(string(list))
	for _, applet := range applets {
		if applet != "busybox" {
			entries = append(entries, entry{name: "bin/" + applet, mode: 0o755, link: "bin/busybox"})
		}
	}
	if !slices.Contains(applets, "ipcs") {
		entries = append(entries, script("bin/ipcs", "exec cat /proc/sysvipc/shm\n"))
	}
	if !slices.Contains(applets, "pgrep") {
		entries = append(entries, script("bin/pgrep", "exec pidof \"$@\"\n"))
	}
	return entries, nil
}

// libraryEntries are the dynamic linker and the libraries that a program needs, at the paths where they are here.
func libraryEntries(program string) ([]entry, error) {
	linker, err := interpreter(program)
	if err != nil {
		return nil, err
	}
	paths := []string{linker}
	for queue := []string{program}; len(queue) > 0; queue = queue[1:] {
		needed, err := neededLibraries(queue[0])
		if err != nil {
			return nil, err
		}
		for _, path := range needed {
			if !slices.Contains(paths, path) && filepath.Base(path) != filepath.Base(linker) {
				paths, queue = append(paths, path), append(queue, path)
			}
		}
	}
	var entries []entry
	for _, path := range paths {
		body, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read library: %w", err)
		}
		if parent := filepath.Dir(path); parent != "/lib" && parent != "/lib64" {
			entries = append(entries, dir(strings.TrimPrefix(parent, "/"), 0o755))
		}
		entries = append(entries, file(strings.TrimPrefix(path, "/"), 0o755, body))
	}
	return entries, nil
}

func interpreter(program string) (string, error) {
	f, err := elf.Open(program)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", program, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			b := make([]byte, p.Filesz)
			if _, err := p.ReadAt(b, 0); err != nil {
				return "", fmt.Errorf("read interpreter of %s: %w", program, err)
			}
			return strings.TrimRight(string(b), "\x00"), nil
		}
	}
	return "", errors.New(program + " is statically linked: install Debian's package busybox, not busybox-static")
}

func neededLibraries(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	defer f.Close()
	names, err := f.ImportedLibraries()
	if err != nil {
		return nil, fmt.Errorf("read libraries of %s: %w", path, err)
	}
	var paths []string
	for _, name := range names {
		found, err := findLibrary(name)
		if err != nil {
			return nil, fmt.Errorf("library of %s: %w", path, err)
		}
		paths = append(paths, found)
	}
	return paths, nil
}

func findLibrary(name string) (string, error) {
	for _, pattern := range libraryDirs {
		matches, err := filepath.Glob(filepath.Join(pattern, name))
		if err != nil {
			return "", fmt.Errorf("find %s: %w", name, err)
		}
		if len(matches) > 0 {
			return matches[0], nil
		}
	}
	return "", fmt.Errorf("find %s: not in %s", name, strings.Join(libraryDirs, " "))
}
