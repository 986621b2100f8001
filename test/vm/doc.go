// Package vm tests an installed node from inside: gantryd as a unit of systemd, the systemd cgroup driver on cgroup v2,
// AppArmor. Its tests run in the virtual machine of hack/vm, by `make vm-test`, and not on a developer's machine, whose
// daemon they would kill.
package vm
