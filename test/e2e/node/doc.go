// Package node runs a node for tests and demonstrations: a registry, the daemon with directories of its own, clients
// for it, and a look at what it left behind. It is a harness around the built programs, not part of the product.
package node
