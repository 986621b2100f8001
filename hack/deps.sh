#!/usr/bin/env bash
# Installs the Debian packages that building and testing need, and only those that are missing; with the argument vm also
# those of the virtual machine of `make vm-test`.
set -euo pipefail

command -v go >/dev/null || { echo "deps: Go is missing: install the version that go.mod names" >&2; exit 1; }

missing=()
need() { # need PACKAGE TEST...: the package is missing if the test fails
	local package=$1
	shift
	"$@" >/dev/null 2>&1 || missing+=("$package")
}
have() { command -v "$1"; }
# The test images are made from the dynamically linked busybox: the static one runs its applets without exec.
dynamic_busybox() { [ -x /bin/busybox ] && grep -q ld-linux /bin/busybox; }
seccomp() { pkg-config --exists libseccomp && [ -e "$(pkg-config --variable=libdir libseccomp)/libseccomp.a" ]; }

need git have git
need gcc have gcc
need libc6-dev test -e /usr/include/stdlib.h
need pkg-config have pkg-config
need libseccomp-dev seccomp
need busybox dynamic_busybox
need iptables have iptables
need nftables have nft
need iproute2 have ip
need util-linux have ipcmk
need criu have criu
need ca-certificates test -e /etc/ssl/certs/ca-certificates.crt
if [ "${1:-}" = vm ]; then
	need qemu-system-x86 have qemu-system-x86_64
	need debootstrap have debootstrap
	need e2fsprogs have mke2fs
fi

criu() { "$(dirname "$0")/criu.sh" || echo "deps: no CRIU that works here: tests of checkpoints are skipped" >&2; }

if [ ${#missing[@]} -eq 0 ]; then
	criu
	exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
	echo "deps: these Debian packages are missing, install them as root: ${missing[*]}" >&2
	exit 1
fi
echo "deps: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}"
criu
