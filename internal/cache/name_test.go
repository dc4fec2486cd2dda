package cache_test

import (
	"strings"
	"testing"

	"firn/internal/cache"
)

func TestCheckName(t *testing.T) {
	for _, name := range []string{"main", "a", "0", "a-b_c.d", strings.Repeat("a", 64), "narinfo", "ls", "nar-cache", "logs", "v2"} {
		if err := cache.CheckName(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{
		"", ".", "..", ".a", "-a", "_a", "A", "a/b", "a b", "a\n", "ä", "a\x00", "a%20", strings.Repeat("a", 65),
		"nar", "log", "realisations", "build-trace-v2", "debuginfo", "version", "health", "metrics", "robots.txt", "nix-cache-info", "favicon.ico", "api", "push", "pins", "_",
		"x.narinfo", "x.ls",
	} {
		if err := cache.CheckName(name); err == nil {
			t.Errorf("%q is taken for a name of a cache", name)
		}
	}
}
