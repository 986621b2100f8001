// Package system tests what only a booted systemd can show: the unit, the Debian package, and the stand-ins for
// containerd that kind's node needs. Run it by `make system`; it needs root.
package system
