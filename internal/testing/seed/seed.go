// Package seed gives tests that draw random numbers a seed that a later run can repeat.
package seed

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// Variable is the environment variable that sets the seed. A child process that draws for a test gets it from the test.
const Variable = "FIRN_SEED"

// Of returns the seed of a test: that of the environment, else a random one. It logs the seed, and how to use it again.
// The order in which processes and goroutines run is not part of it, so a second run draws the same and may still go another way.
func Of(tb testing.TB) uint64 {
	tb.Helper()
	n := rand.Uint64()
	if text := os.Getenv(Variable); text != "" {
		var err error
		if n, err = strconv.ParseUint(text, 10, 64); err != nil {
			tb.Fatalf("%s: %v", Variable, err)
		}
	}
	tb.Logf("to draw the same again: %s=%d", Variable, n)
	return n
}

// Rand returns a source for one goroutine of a test, or for one of its parts, that is numbered by stream.
func Rand(seed, stream uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, stream)) }
