#!/usr/bin/env bash
# Makes the root filesystem that boot.sh boots: Debian with systemd, and nothing of Gantry. Needs root and, once, some
# 400 MB; what exists is left as it is. usage: root.sh DIRECTORY
set -euo pipefail

root=$1
[ ! -e "$root/.complete" ] || exit 0
command -v debootstrap >/dev/null || { echo "root.sh: debootstrap is missing: apt-get install debootstrap" >&2; exit 1; }
echo "root.sh: making $root, this takes a minute or two"
rm -rf "$root"
debootstrap --variant=minbase \
	--include=systemd,systemd-sysv,dbus,iproute2,iptables,procps,kmod,ca-certificates \
	trixie "$root" >"$root.log" 2>&1 || { tail -n 20 "$root.log" >&2; exit 1; }
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
# Units that want a machine: there is no console, no clock and no kernel log of our own.
for unit in getty@tty1.service console-getty.service systemd-timesyncd.service apt-daily.timer apt-daily-upgrade.timer \
	e2scrub_all.timer fstrim.timer dpkg-db-backup.timer systemd-networkd-wait-online.service; do
	ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
echo machine >"$root/etc/hostname"
: >"$root/etc/machine-id"
touch "$root/.complete"
