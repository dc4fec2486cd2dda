package registry

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/nix"
)

// maxHosts and maxKeys bound what one cache has, and maxHost the length of a host name, in bytes, as the DNS does.
const (
	maxHosts = 64
	maxKeys  = 16
	maxHost  = 253
)

// Check says what is wrong with a record that a person has made, nil if nothing is.
func Check(r *catalog.Cache) error {
	if err := cache.CheckName(r.Name); err != nil {
		return err
	}
	if len(r.Sources) == 0 {
		return fmt.Errorf("a cache has at least one source, %s or %s", catalog.SourceLocal, catalog.SourceDepot)
	}
	for i, s := range r.Sources {
		if s != catalog.SourceLocal && s != catalog.SourceDepot {
			return fmt.Errorf("there is no source named %q; there are %s and %s", s, catalog.SourceLocal, catalog.SourceDepot)
		}
		if slices.Contains(r.Sources[:i], s) {
			return fmt.Errorf("the source %s is there twice", s)
		}
	}
	if r.Priority < 0 || r.Priority > math.MaxUint16 {
		return fmt.Errorf("the priority is %d, want 0 to %d", r.Priority, math.MaxUint16)
	}
	if len(r.Hosts) > maxHosts || len(r.Keys) > maxKeys {
		return fmt.Errorf("it has %d hosts and %d keys, want at most %d and %d", len(r.Hosts), len(r.Keys), maxHosts, maxKeys)
	}
	for i, h := range r.Hosts {
		if err := checkHost(h); err != nil {
			return err
		}
		if slices.Contains(r.Hosts[:i], h) {
			return fmt.Errorf("the host %s is there twice", h)
		}
	}
	for i, k := range r.Keys {
		if slices.ContainsFunc(r.Keys[:i], func(other nix.SecretKey) bool { return other.Name() == k.Name() }) {
			return fmt.Errorf("two keys are named %s, and clients tell keys apart by their names", k.Name())
		}
	}
	return nil
}

// checkHost says what is wrong with a host name in a record.
func checkHost(host string) error {
	if host == "" || len(host) > maxHost || host != HostName(host) ||
		strings.ContainsFunc(host, func(c rune) bool {
			return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_'
		}) {
		return fmt.Errorf("%q is not a host name in lower case and without a port, such as cache.example.org", host)
	}
	return nil
}
