// Package e2e tests the built programs from outside, through the CRI and crictl, against a real kernel, real CNI plugins
// and a real registry. Its tests have the build tag e2e, need root and the programs in bin and .work/bin, and run in
// namespaces of their own: `make e2e`. There is nothing in it but tests.
package e2e
