//go:build race

package depot_test

// Everything takes ten times as long under the race detector, which looks for something else.
const (
	// faultStep is by how many calls further on the next fault is.
	faultStep = 5
	// largestInParts is the size of the largest NAR that comes in other parts than whole.
	largestInParts = 200 << 10
	// systemPackages is how many packages a system has.
	systemPackages = 10
)
