//go:build !race

package depot_test

const (
	// faultStep is by how many calls further on the next fault is.
	faultStep = 1
	// largestInParts is the size of the largest NAR that comes in other parts than whole.
	largestInParts = 16 << 20
	// systemPackages is how many packages a system has.
	systemPackages = 40
)
