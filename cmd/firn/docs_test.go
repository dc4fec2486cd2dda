package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The handbook lists the metrics that the server has.
func TestDocumentedMetrics(t *testing.T) {
	t.Parallel()
	handbook, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	s := startServer(t, environment(t), "--store", "off", "--listen", "127.0.0.1:0", "--ssh", "127.0.0.1:0", "--compression", "zstd")
	names := func(pattern, text string) (names []string) {
		for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			names = append(names, match[1])
		}
		slices.Sort(names)
		return slices.Compact(names)
	}
	text := s.get(t, "/metrics")
	for tries := 0; tries < 1000 && !strings.Contains(text, "firn_depot_paths 0"); tries++ { // counted after the first who asks
		time.Sleep(10 * time.Millisecond)
		text = s.get(t, "/metrics")
	}
	served := names(`(?m)^# TYPE (firn_\w+) `, text)
	documented := names("(?m)^\\| `(firn_\\w+)` \\|", string(handbook))
	if diff := cmp.Diff(served, documented); diff != "" {
		t.Errorf("docs/operations.md is not in step with /metrics (-served +documented):\n%s", diff)
	}
}
