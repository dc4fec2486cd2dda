package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

const (
	// heapGrowth is about how many bytes are allocated between two collections. What is live is a few megabytes where nobody pushes,
	// and collecting it as often as Go does by default takes a tenth of the narinfos per second.
	heapGrowth = 13 << 20

	// A large heap is buffers of compressions and of SSH, in which there is nothing to look for: collecting it often costs little,
	// and keeps what eight pushes at once take below 150 MB. So it grows by no less than leastGrowth per cent, and by no more than heapGrowth where that is more.
	leastGrowth = 15
	mostGrowth  = 800
)

// setCollector has the collector run after heapGrowth bytes, whatever is live, unless the environment says otherwise.
// (A ballast would do the same with one line, but what the runtime keeps of freed memory is a share of all that there is, ballast included.)
func setCollector() {
	if os.Getenv("GOGC") != "" {
		return
	}
	percent := 0
	samples := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}}
	// An object that nobody has is finalised after every collection, and takes itself back.
	type witness struct{ _ *byte }
	var adjust func(*witness)
	adjust = func(w *witness) {
		metrics.Read(samples)
		var base uint64 // of which the percentage is one
		for _, s := range samples {
			base += s.Value.Uint64()
		}
		want := min(max(int(heapGrowth*100/max(base, 1)), leastGrowth), mostGrowth)
		if want < percent*9/10 || want > percent*11/10 { // the world stops for it
			percent = want
			debug.SetGCPercent(percent)
		}
		runtime.SetFinalizer(w, adjust)
	}
	adjust(new(witness))
}
