//go:build !race

package depot_test

// faultStep is by how many calls further on the next fault is.
const faultStep = 1
