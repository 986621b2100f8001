// gantry-keeper is the parent of all container processes of a node. gantryd starts it; see package keeperd for what it
// does. It is not meant to be run by hand.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"github.com/gantry-cri/gantry/sandbox/keeper"
	"github.com/gantry-cri/gantry/sandbox/keeperd"
)

// version is set by the linker.
var version = "unknown"

func init() {
	keeperd.Init()
	// The main goroutine keeps the main thread: see keeperd.Serve.
	runtime.LockOSThread()
}

func main() {
	state := flag.String("state", "", "state `directory` of the daemon; the keeper's is <directory>/keeper")
	readyFD := flag.Int("ready-fd", -1, "`descriptor` on which to say that the keeper listens")
	plainExec := flag.Bool("plain-exec", false, "start every exec by libcontainer, for comparison")
	plainMounts := flag.Bool("plain-mounts", false, "leave all mounts of a container to libcontainer, for comparison")
	plainExits := flag.Bool("plain-exits", false, "learn exit codes as on a kernel before 6.15, for tests")
	printVersion := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	if *printVersion {
		fmt.Printf("gantry-keeper %s, protocol %d, %s\n", version, keeper.ProtocolVersion, runtime.Version())
		return
	}
	if *state == "" || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "usage: gantry-keeper --state DIRECTORY")
		os.Exit(2)
	}
	config := keeperd.Config{
		StateDir: *state, Build: version, PlainExec: *plainExec, PlainMounts: *plainMounts, PlainExits: *plainExits,
	}
	if *readyFD >= 0 {
		syscall.CloseOnExec(*readyFD)
		config.Ready = os.NewFile(uintptr(*readyFD), "ready")
	}
	if err := keeperd.Serve(config); err != nil {
		fmt.Fprintf(os.Stderr, "gantry-keeper: %v\n", err)
		os.Exit(1)
	}
}
