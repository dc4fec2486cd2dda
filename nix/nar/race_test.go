//go:build race

package nar_test

// ranges is how many parts of a dump are compared: few, for the race detector looks for something else.
const ranges = 50
