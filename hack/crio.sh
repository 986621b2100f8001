#!/usr/bin/env bash
# crio.sh DIR: puts into DIR what CRI-O needs beside itself: its own pinns, built from its module, and conmon and crun of a
# later Debian release, which have to be told where their libraries are: CRI-O runs them without an environment.
set -euo pipefail
dir=$(realpath "$1")
cd "$(dirname "$0")/crio"

if ! command -v patchelf >/dev/null; then
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends patchelf
fi
module=$(go list -m -f '{{.Dir}}' github.com/cri-o/cri-o)
gcc -std=c99 -Os -static -s -o "$dir/pinns" "$module"/pinns/src/*.c

../later.sh "$dir/debian" conmon crun
root=$dir/debian/root
for program in conmon crun; do
	patchelf --set-interpreter "$(echo "$root"/usr/lib*/ld-linux-*.so.*)" --force-rpath \
		--set-rpath "$root/usr/lib/$(uname -m)-linux-gnu" --output "$dir/$program" "$root/usr/bin/$program"
	env -i "$dir/$program" --version | head -1
done
