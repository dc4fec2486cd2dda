//go:build !race

package nar_test

// ranges is how many parts of a dump are compared.
const ranges = 1000
