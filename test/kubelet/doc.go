// Package kubelet runs a real, unmodified kubelet on the daemon and tests what the two do together. It is a harness
// around the built programs, with tests beside it; it is no part of the product.
//
// `make kubelet-test` runs the tests with three sets of feature gates, as root: `make k8s` builds Kubernetes into .work/bin
// (many minutes the first time). `make kubelet-short` needs only the kubelet. One test alone, when all is built:
//
//	go test -tags e2e -count=1 -v -parallel 60 -run TestX ./test/kubelet/ [-gates A=true,B=false] [-kubelet-v 4]
//
// The test program runs again in namespaces and cgroups of its own (node.Isolate); Furnish then gives it a /var and an
// address. TestMain starts a registry, one gantryd (package test/e2e/node, socket /run/gantry/gantry.sock) and one
// kubelet, which the tests share. A test writes a static pod and looks at what becomes of it:
//
//	pod := start(t, `
//	containers:
//	- {name: main, image: BUSYBOX, command: [sleep, inf]}`)
//	status := pod.running(t)
//	out := pod.shell(t, "main", "hostname")
//
// Names of images in capitals are replaced (see imageNames). Tests that kill a daemon are serial, so that they have the
// node for themselves; all others call t.Parallel and run together. A kubelet with another configuration (Options.Gates,
// Options.Config) is made by New, with directories, a port and a CgroupRoot of its own. What the kubelet serves is had
// by Kubelet.Get: "/stats/summary", "/metrics/cadvisor", "/pods".
//
// A ControlPlane is etcd and a kube-apiserver; TestWithAPIServer has one, with a daemon and a kubelet of its own, for what
// a kubelet does for pods of an API server only. A second node of it has small disks, which fill (testDiskPressure).
package kubelet
