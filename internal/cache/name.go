package cache

import (
	"fmt"
	"slices"
	"strings"
)

// maxName is the length of the longest name of a cache, in bytes.
const maxName = 64

// reservedNames are what a server answers at its root, or may answer one day, so that no cache can
// have the name. All that is firn's own, and comes from now on, is below /_/ and /NAME/_/; a name
// cannot begin with '_'.
var reservedNames = []string{
	"nar", "log", "realisations", "build-trace-v2", "debuginfo", "nix-cache-info",
	"version", "health", "metrics", "robots.txt", "favicon.ico", "api", "push", "pins",
}

// CheckName returns an error if a cache cannot have the name. It can have 1 to 64 letters a-z,
// digits, '-', '_' and '.', the first of them a letter or digit, unless the name is reserved.
func CheckName(name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("name of a cache: %q has not 1 to %d characters", name, maxName)
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
		return fmt.Errorf("name of a cache: %q is reserved: the server answers something else there", name)
	}
	return nil
}
