package catalog_test

import (
	"strings"
	"testing"

	"firn/internal/catalog"
)

func TestCheckCacheName(t *testing.T) {
	for _, name := range []string{"main", "a", "0", "a-b_c.d", strings.Repeat("a", 64), "narinfo", "ls", "nar-cache", "logs", "v2"} {
		if err := catalog.CheckCacheName(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{
		"", ".", "..", ".a", "-a", "_a", "A", "a/b", "a b", "a\n", "ä", "a\x00", "a%20", strings.Repeat("a", 65),
		"nar", "log", "realisations", "build-trace-v2", "debuginfo", "version", "health", "metrics", "robots.txt", "nix-cache-info", "api",
		"x.narinfo", "x.ls",
	} {
		if err := catalog.CheckCacheName(name); err == nil {
			t.Errorf("%q is taken for a name of a cache", name)
		}
	}
}
