// Package hack holds the rules of the tree as tests, and in its directories the scripts and programs of development. It
// is imported by nothing.
package hack
