package keeperd

import (
	"os"

	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // the C part of the re-executed init

	"github.com/gantry-cri/gantry/sandbox/keeperd/marks"
	_ "github.com/gantry-cri/gantry/sandbox/keeperd/podinit" // the init of shared PID namespaces, in C
	"github.com/gantry-cri/gantry/sandbox/keeperd/profiles"
	"github.com/gantry-cri/gantry/sandbox/keeperd/stage"
	_ "github.com/gantry-cri/gantry/sandbox/keeperd/sysmon" // the runtime's watchman, in every process of the binary
)

// Init becomes the init of a container, or a compiler of a seccomp filter, if the process was executed for that, and then
// does not return. Call it first thing, from an init function of the program.
func Init() {
	if len(os.Args) < 2 {
		return
	}
	switch os.Args[len(os.Args)-1] {
	case stage.CompilerVerb: // with "init" before it, it has the filters that an init has
		stage.CompilerMain()
	case profiles.RecordVerb:
		profiles.RecorderMain()
	case "init":
		marks.Begin()
		libcontainer.Init()
	}
}
