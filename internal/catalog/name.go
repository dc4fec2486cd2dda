package catalog

import (
	"fmt"
	"slices"
	"strings"
)

// maxCacheName is the length of the longest name of a cache, in bytes.
const maxCacheName = 64

// reservedNames are what a server answers below its root, so that no cache can be there.
var reservedNames = []string{
	"nar", "log", "realisations", "build-trace-v2", "debuginfo", "nix-cache-info",
	"version", "health", "metrics", "robots.txt", "favicon.ico", "api",
}

// CheckCacheName returns an error if name is none that a cache can have:
// 1 to 64 letters a-z, digits, '-', '_' and '.', the first of them a letter or digit.
func CheckCacheName(name string) error {
	if name == "" || len(name) > maxCacheName {
		return fmt.Errorf("name of a cache: %q has not 1 to %d characters", name, maxCacheName)
	}
	for i, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case i > 0 && (c == '-' || c == '_' || c == '.'):
		default:
			return fmt.Errorf("name of a cache: %q: want letters a-z, digits, '-', '_' and '.', a letter or digit first", name)
		}
	}
	if slices.Contains(reservedNames, name) || strings.HasSuffix(name, ".narinfo") || strings.HasSuffix(name, ".ls") {
		return fmt.Errorf("name of a cache: %q is the name of something that every cache has", name)
	}
	return nil
}
