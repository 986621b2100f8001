#!/usr/bin/env bash
# Boots systemd on an overlay of a root filesystem, in namespaces of its own (mount, pid, uts, ipc, net, cgroup), and
# lasts as long as it does. The machine sees cgroup v2 only, and on a host of v1 without controllers: right for units,
# packages and cgroups, not for limits. Kill this process and all of the machine is gone. Needs root.
# usage: boot.sh ROOT SCRATCH; both on a filesystem that is no overlay. Enter with: nsenter -a -t $(cat SCRATCH/pid)
set -euo pipefail

root=$(realpath "$1") scratch=$(realpath "$2")
if [ "${GANTRY_BOOT_STAGE:-}" = "" ]; then
	# Which hierarchy is the unified one, and a cgroup in it that becomes the machine's root.
	unified=$(findmnt -rn -t cgroup2 -o TARGET | head -n 1)
	own=$(sed -n 's/^0:://p' /proc/self/cgroup)
	cgroup="$unified${own%/}/machine-$$"
	mkdir "$cgroup"
	cleanup() { # of what a killed machine leaves: its cgroups
		find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || true
	}
	trap cleanup EXIT
	trap 'kill -KILL "$child" 2>/dev/null || true' TERM INT
	GANTRY_BOOT_STAGE=$cgroup setpriv --pdeathsig KILL unshare --mount --pid --uts --ipc --net --fork \
		--kill-child=KILL --propagation private "$0" "$root" "$scratch" &
	child=$!
	pid=
	while [ -z "$pid" ] && kill -0 "$child"; do
		sleep 0.01
		pid=$(cat "/proc/$child/task/$child/children" 2>/dev/null || true)
	done
	echo ${pid% } >"$scratch/pid"
	wait "$child" || true
	wait "$child" 2>/dev/null || true
	exit
fi

if [ "${GANTRY_BOOT_INNER:-}" = "" ]; then
	echo 0 >"$GANTRY_BOOT_STAGE/cgroup.procs"
	GANTRY_BOOT_INNER=1 exec unshare --cgroup "$0" "$root" "$scratch"
fi

mkdir -p "$scratch/upper" "$scratch/work" "$scratch/root"
target=$scratch/root
mount -t overlay overlay -o "lowerdir=$root,upperdir=$scratch/upper,workdir=$scratch/work" "$target"
mount -t proc proc "$target/proc"
mount -t sysfs sysfs "$target/sys"
mount -t cgroup2 cgroup2 "$target/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$target/run"
mount -t tmpfs -o mode=755 tmpfs "$target/dev"
mkdir -p "$target/dev/pts" "$target/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$target/dev/pts"
mount -t tmpfs tmpfs "$target/dev/shm"
# What is state and not system lies on the host's filesystem, as on a node: an overlay takes no upper layer on another.
for state in var/lib; do
	mkdir -p "$scratch/$state"
	cp -a -n "$target/$state/." "$scratch/$state/"
	mount --bind "$scratch/$state" "$target/$state"
done
ln -s pts/ptmx "$target/dev/ptmx"
ln -s /proc/self/fd "$target/dev/fd"
for node in null:3 zero:5 full:7 random:8 urandom:9; do
	mknod -m 666 "$target/dev/${node%:*}" c 1 "${node#*:}"
done
mknod -m 666 "$target/dev/tty" c 5 0
ip link set lo up
cd "$target"
mkdir -p .old
pivot_root . .old
mount --make-rslave /.old
umount -l /.old
rmdir /.old 2>/dev/null || true
mount --make-rshared /
exec env -i container=gantry-test PATH=/usr/sbin:/usr/bin:/sbin:/bin /sbin/init >/run/init.log 2>&1 </dev/null
