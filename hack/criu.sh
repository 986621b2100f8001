#!/usr/bin/env bash
# Puts a CRIU that gets on with new kernels into .work/bin, unless the system's does: Debian 12's (3.17) knows none from
# 6.13 on, and Debian 13's (4.1) cannot capture sockets of 6.18. It is that of the release after those, unpacked below
# .work/criu with the libraries that it needs.
set -euo pipefail
cd "$(dirname "$0")/.."

least=4.2
works() {
	command -v criu >/dev/null && criu check >/dev/null 2>&1 &&
		[ "$(printf '%s\n' "$least" "$(criu --version | awk '{print $2; exit}')" | sort -V | head -1)" = "$least" ]
}
if works || PATH="$PWD/.work/bin:$PATH" works; then
	exit 0
fi
dir=$PWD/.work/criu
hack/later.sh "$dir" criu
mkdir -p .work/bin
# A program and not a script: a shell closes descriptors that CRIU is to inherit.
cat >"$dir/criu.c" <<-EOF
	#include <unistd.h>
	int main(int argc, char **argv)
	{
		char *args[argc + 4];
		args[0] = "criu", args[1] = "--library-path";
		args[2] = "$dir/root/usr/lib/$(uname -m)-linux-gnu", args[3] = "$dir/root/usr/sbin/criu";
		for (int i = 1; i <= argc; i++)
			args[3 + i] = argv[i];
		execv("$(echo "$dir"/root/usr/lib*/ld-linux-*.so.*)", args);
		return 127;
	}
EOF
gcc -O2 -static -o .work/bin/criu "$dir/criu.c"
PATH="$PWD/.work/bin:$PATH"
works || echo "criu: $(criu --version | head -1) does not get on with this kernel either: tests that need it are skipped" >&2
