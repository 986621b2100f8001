//go:build docs

package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra/doc"
)

// With the tag docs the program is another one: it writes the man pages of the daemon into the directory that its one
// argument names. The library that does it is no part of the program proper.
func init() {
	command := newCommand()
	command.DisableAutoGenTag = true
	header := &doc.GenManHeader{Section: "8", Source: "Gantry " + version, Manual: "Gantry"}
	if err := doc.GenManTree(command, header, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
