//go:build race

package depot_test

// faultStep is by how many calls further on the next fault is: each takes ten times as long under the race detector, which looks for something else.
const faultStep = 5
