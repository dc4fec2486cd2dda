package nix

import (
	"fmt"
	"strconv"
	"strings"
)

// MaxCacheInfoSize is the size in bytes of the longest nix-cache-info that is parsed.
const MaxCacheInfoSize = 64 << 10

// CacheInfo is what a cache says of itself in nix-cache-info.
type CacheInfo struct {
	StoreDir      StoreDir // of all its paths; a client with another one refuses the cache
	WantMassQuery bool     // whether clients may ask for many paths at once (nix-env -qas)
	Priority      int      // among a client's caches, the lowest is asked first
}

// ParseCacheInfo parses a nix-cache-info as it is found in caches: unknown fields and lines
// without a colon are skipped, and so are spaces around values. Without StoreDir it is [DefaultStoreDir];
// a Priority that is no number, which Nix refuses, is an error.
func ParseCacheInfo(text []byte) (CacheInfo, error) {
	info := CacheInfo{StoreDir: DefaultStoreDir}
	if len(text) > MaxCacheInfoSize {
		return CacheInfo{}, fmt.Errorf("parse nix-cache-info: it is longer than %d bytes", MaxCacheInfoSize)
	}
	for line := range strings.SplitSeq(string(text), "\n") {
		key, value, err := cutLineTolerant(line)
		switch key {
		case "StoreDir":
			info.StoreDir, err = ParseStoreDir(value)
		case "WantMassQuery":
			info.WantMassQuery = value == "1"
		case "Priority":
			if info.Priority, err = strconv.Atoi(value); err != nil {
				err = fmt.Errorf("%s is no number", quote(value))
			}
		}
		if err != nil {
			return CacheInfo{}, fmt.Errorf("parse nix-cache-info: %s: %w", key, err)
		}
	}
	return info, nil
}

// AppendText appends the text form.
func (c CacheInfo) AppendText(dst []byte) []byte {
	dst = append(dst, "StoreDir: "...)
	dst = append(dst, c.StoreDir...)
	dst = append(dst, "\nWantMassQuery: "...)
	if c.WantMassQuery {
		dst = append(dst, '1')
	} else {
		dst = append(dst, '0')
	}
	dst = append(dst, "\nPriority: "...)
	dst = strconv.AppendInt(dst, int64(c.Priority), 10)
	return append(dst, '\n')
}
