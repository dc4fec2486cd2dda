package main

import (
	"os"
	"runtime/debug"
)

// How Go's garbage collector works in a server; see docs/adr/0086-garbage-collector.md.
const (
	// gcPercent is how much the heap may grow between two collections, in per cent of what is live.
	gcPercent = 200
	// memoryLimit is from how many bytes on it collects sooner than that. What a server has live is
	// below, also with many pushes and questions at once.
	memoryLimit = 1 << 30
)

// setCollector sets up the garbage collector, unless the environment says otherwise.
func setCollector() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
}
