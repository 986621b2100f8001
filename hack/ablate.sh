#!/usr/bin/env bash
# ablate.sh: takes the techniques that make starts, execs and logs cheap away, one at a time, and measures what each brings:
# the programs without it and those with it, in turn. Arguments are passed to gantry-bench. A technique that is not found in
# the source any more is an error: the list is to be kept true.
set -euo pipefail
cd "$(dirname "$0")/.."
arguments=("$@")

ablate() { # ablate NAME SCENARIOS FILE SED-EXPRESSION
	local name=$1 only=$2 file=$3 expression=$4 tree=$PWD/.work/ablate/$1
	rm -rf "$tree" && mkdir -p "$tree"
	git archive HEAD | tar -x -C "$tree"
	sed -i "$expression" "$tree/$file"
	if git show "HEAD:$file" | cmp -s - "$tree/$file"; then
		echo "ablate: $name is not in $file any more" >&2
		exit 1
	fi
	make --no-print-directory -C "$tree" programs >"$tree/build.log" 2>&1 || { tail "$tree/build.log" >&2; exit 1; }
	echo "--- without $name"
	.work/bin/gantry-bench -runtimes "without=$tree/bin,gantry" -only "$only" -levels '' -network=false \
		-json ".work/ablate/$name.json" "${arguments[@]}" |
		grep -E '^figure|start p50|start, rate|start, CPU of the runtime|ExecSync p50|ExecSync, CPU of the runtime|log: '
	rm -rf "$tree"
}

ablate seccomp-filter-compiled-once 'host network, (1|16) ' sandbox/keeperd/profiles/profiles.go \
	's/if profile == nil || b.cache == nil {/if true {/'
ablate seccomp-profile-in-short 'host network, (1|16) ' sandbox/keeperd/profiles/profiles.go 's/^\tif short == nil {/\tif true {/'
ablate no-x32-where-there-is-none 'host network, 1 ' sandbox/spec/seccomp.go 's/if !b.in.Node.X32 {/if false {/'
ablate rcu-poke 'host network, (1|16) ' sandbox/keeperd/host.go 's/if len(h.cgroups) == 0 ||/if true ||/'
ablate log-level-of-init 'host network, 1 ' sandbox/keeperd/process.go 's/const initLogLevel = "4"/const initLogLevel = ""/'
ablate patient-sysmon '(host network|execs), (1|16) ' sandbox/keeperd/sysmon/sysmon.c 's/^#define SLACK .*/#define SLACK 0UL/'
ablate small-keeper-binary 'host network, (1|16) ' cmd/gantry-keeper/main.go \
	's|^import (|import (\n\t_ "google.golang.org/grpc"\n\t_ "k8s.io/cri-api/pkg/apis/runtime/v1"|'
ablate mounts-made-beforehand 'host network, (1|16) ' sandbox/keeperd/start.go 's/if !k.config.PlainMounts {/if false {/'
ablate bounded-starts-in-flight 'host network, 16 ' sandbox/keeperd/slots.go 's/2\*runtime.NumCPU()/500*runtime.NumCPU()/'
ablate exec-stage-in-C 'execs, (1|16) ' sandbox/keeperd/exec.go 's/if x.made || k.config.PlainExec {/if true {/'
ablate log-in-larger-pieces log sandbox/keeperd/pump.go 's/if p.hot && /if false \&\& /'
ablate log-unknown-to-gos-poller log sandbox/keeperd/stdio.go 's/err = unix.SetNonblock(fd, false)/err = unix.SetNonblock(fd, true)/'
ablate log-without-a-bell-in-a-flood log sandbox/keeperd/pump.go 's/if p.silent != p.hot {/if false {/'
