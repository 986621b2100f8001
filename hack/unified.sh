#!/usr/bin/env bash
# Runs a command where cgroup v2 is all there is: unified.sh COMMAND... On a machine of v1 the controllers stay there, so
# nothing can be limited; but cgroups are made, entered, frozen, killed and removed as on v2. Where the machine has v2
# itself, or the user is not root, there is nothing to do.
set -euo pipefail
[ "$(id -u)" -eq 0 ] && [ "$(stat -fc %T /sys/fs/cgroup)" != cgroup2fs ] || exit 0
exec unshare --mount --propagation private sh -c \
	'umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec "$@"' unified "$@"
