#!/bin/sh
# Puts Gantry in containerd's place on a node image of kind, from the directory that `make kind` fills and this file is
# in. Run it as root inside the image.
set -eu
cd "$(dirname "$0")"

if [ -e /var/lib/containerd/io.containerd.metadata.v1.bolt ] && pgrep -x containerd >/dev/null 2>&1; then
	echo "install.sh: containerd runs here, and this would remove it with its images: stop it first" >&2
	exit 1
fi
rm -f /usr/local/bin/containerd* /usr/local/bin/ctr /usr/local/sbin/runc
rm -rf /var/lib/containerd
install -m 755 -t /usr/bin gantryd gantry gantry-keeper
install -m 755 ctr /usr/local/bin/ctr
ln -s ctr /usr/local/bin/containerd
ln -sf ctr /usr/local/bin/runc
# The daemon's process has to be called containerd, and finds the keeper beside its binary.
install -d /usr/lib/gantry/kind
ln -sf /usr/bin/gantryd /usr/lib/gantry/kind/containerd
cp -r files/. /
install -d /etc/containerd
containerd config dump >/etc/containerd/config.toml # kind patches it; Gantry does not read it
gantryd config check
systemctl enable containerd.service gantry-kind-images.service
