#!/usr/bin/env bash
# Makes the guest's disk and kernel: image.sh DIRECTORY leaves DIRECTORY/root.ext4 and DIRECTORY/vmlinuz. It needs root and
# Debian's mirror (DEBIAN_MIRROR names another), and is run in namespaces of its own, so that no mount of it survives.
set -euo pipefail

dir=${1:?usage: image.sh DIRECTORY}
here=$(cd "$(dirname "$0")" && pwd)
release=trixie
root=$dir/root
packages=systemd,systemd-sysv,dbus,udev,kmod,iproute2,iptables,nftables,conntrack,apparmor,libpam-systemd,sudo
packages+=,e2fsprogs,xfsprogs,ca-certificates,busybox,util-linux,procps,uidmap,criu

rm -rf "$root" "$dir"/*.tmp
debootstrap --variant=minbase --include=$packages $release "$root" ${DEBIAN_MIRROR:-}

# The kernel is unpacked and not installed: installing it would make an initrd that nothing needs, as the drivers of disk
# and file system are built in.
chroot "$root" apt-get -qq update
kernel=$(chroot "$root" apt-cache depends linux-image-cloud-amd64 | sed -n 's/ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
(cd "$root/tmp" && chroot "$root" sh -c "cd /tmp && apt-get -qq -o APT::Sandbox::User=root download $kernel")
dpkg-deb -x "$root"/tmp/linux-image-*.deb "$root"
rm -rf "$root"/tmp/*.deb "$root"/var/cache/apt "$root"/var/lib/apt/lists "$root"/usr/share/{doc,man,locale}
version=$(basename "$root"/boot/vmlinuz-*)
version=${version#vmlinuz-}
chroot "$root" depmod "$version"
cp "$root/boot/vmlinuz-$version" "$dir/vmlinuz.tmp"
rm -rf "$root"/boot/*

# What only costs time at every boot under emulation, Debian's hundred AppArmor profiles above all.
find "$root/etc/apparmor.d" -maxdepth 1 -type f -delete
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
	fstrim.timer getty@.service serial-getty@.service systemd-timesyncd.service systemd-firstboot.service \
	systemd-hwdb-update.service systemd-machine-id-commit.service systemd-journal-catalog-update.service \
	systemd-journal-flush.service systemd-random-seed.service systemd-update-done.service systemd-sysusers.service \
	systemd-update-utmp.service systemd-udev-settle.service ldconfig.service systemd-tpm2-setup.service \
	systemd-tpm2-setup-early.service systemd-pcrphase.service systemd-pcrmachine.service \
	systemd-network-generator.service modprobe@drm.service modprobe@efi_pstore.service proc-sys-fs-binfmt_misc.automount; do
	ln -sf /dev/null "$root/etc/systemd/system/$unit"
done

echo gantry-vm >"$root/etc/hostname"
echo "127.0.0.1 localhost gantry-vm" >"$root/etc/hosts"
systemd-id128 new 2>/dev/null >"$root/etc/machine-id" || tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
echo "LABEL=payload /payload ext4 ro 0 0" >"$root/etc/fstab"
mkdir -p "$root/payload"
install -m 644 -t "$root/etc/systemd/system" "$here/guest/vm-agent.service"
ln -s /etc/systemd/system/vm-agent.service "$root/etc/systemd/system/multi-user.target.wants/"

mke2fs -q -t ext4 -L root -d "$root" "$dir/root.tmp" 6G
rm -rf "$root"
mv "$dir/root.tmp" "$dir/root.ext4"
mv "$dir/vmlinuz.tmp" "$dir/vmlinuz"
