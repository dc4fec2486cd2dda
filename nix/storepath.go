package nix

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

const (
	// pathHashLen is the length of a path hash as text.
	pathHashLen = 32
	// maxNameLen is the longest name of a store path, Nix's own limit:
	// 255 bytes of a file name less the hash, the dash and what Nix appends to it for itself.
	maxNameLen = 211
	// maxStoreDirLen lets a store path fit into 4096 bytes, the longest path of Linux.
	maxStoreDirLen = 4096 - 1 - pathHashLen - 1 - maxNameLen - 1
)

// DefaultStoreDir is where nearly every Nix has its store.
const DefaultStoreDir StoreDir = "/nix/store"

// PathHash is the hash of a store path: 160 bits, in text 32 digits of base 32.
// It is what a narinfo is asked by.
type PathHash [20]byte

// ParsePathHash parses the 32 digits of a path hash.
func ParsePathHash(s string) (PathHash, error) {
	var h PathHash
	if len(s) != pathHashLen {
		return PathHash{}, fmt.Errorf("parse path hash %s: it has %d characters, not %d", quote(s), len(s), pathHashLen)
	}
	if err := decodeNix32(h[:], s); err != nil {
		return PathHash{}, fmt.Errorf("parse path hash %s: %w", quote(s), err)
	}
	return h, nil
}

// String returns the 32 digits.
func (h PathHash) String() string {
	var buf [pathHashLen]byte
	return string(AppendNix32(buf[:0], h[:]))
}

// StoreDir is the directory that store paths lie in: absolute, clean, and never "/".
// It is part of a store path's meaning, not where the files happen to be.
type StoreDir string

// ParseStoreDir checks that s may be a store directory.
func ParseStoreDir(s string) (StoreDir, error) {
	fail := func(cause string) (StoreDir, error) {
		return "", fmt.Errorf("parse store directory %s: %s", quote(s), cause)
	}
	switch {
	case s == "":
		return fail("it is empty")
	case s[0] != '/':
		return fail("it is not absolute")
	case len(s) > maxStoreDirLen:
		return fail(fmt.Sprintf("it is longer than %d bytes", maxStoreDirLen))
	case s == "/":
		return fail("it is the root directory")
	case path.Clean(s) != s:
		return fail("it is not in its shortest form, " + path.Clean(s))
	case checkText(s) != nil:
		return fail(errNotText.Error())
	}
	return StoreDir(s), nil
}

// ParsePath parses a full store path, "/nix/store/<hash>-<name>".
// Unlike Nix it does not clean the path first: there is one text for any store path.
func (d StoreDir) ParsePath(s string) (StorePath, error) {
	base, ok := strings.CutPrefix(s, string(d))
	if ok {
		base, ok = strings.CutPrefix(base, "/")
	}
	if !ok {
		return StorePath{}, fmt.Errorf("parse store path %s: it is not in %s", quote(s), d)
	}
	if err := checkBase(base); err != nil {
		return StorePath{}, fmt.Errorf("parse store path %s: %w", quote(s), err)
	}
	return StorePath{s}, nil
}

// ParseBase parses the last element of a store path, "<hash>-<name>".
func (d StoreDir) ParseBase(s string) (StorePath, error) {
	if err := checkBase(s); err != nil {
		return StorePath{}, fmt.Errorf("parse store path %s: %w", quote(s), err)
	}
	return StorePath{string(d) + "/" + s}, nil
}

// StorePath is a path of a store: "/nix/store/<hash>-<name>", the name of one to 211
// characters out of 0-9 A-Z a-z + - . _ ? =. The zero StorePath stands for none.
type StorePath struct {
	path string // "<store directory>/<hash>-<name>", checked; "" for none
}

// String returns the full path, or "" for none.
func (p StorePath) String() string { return p.path }

// Base returns "<hash>-<name>", or "" for none.
func (p StorePath) Base() string { return p.path[strings.LastIndexByte(p.path, '/')+1:] }

// Dir returns the store directory, or "" for none.
func (p StorePath) Dir() StoreDir {
	return StoreDir(p.path[:max(0, strings.LastIndexByte(p.path, '/'))])
}

// Hash returns the path hash, or the zero hash for none.
func (p StorePath) Hash() PathHash {
	var h PathHash
	if !p.IsZero() {
		// It was decoded once to check it, so it cannot fail.
		_ = decodeNix32(h[:], p.Base()[:pathHashLen])
	}
	return h
}

// Name returns what follows the hash and its dash, or "" for none.
func (p StorePath) Name() string {
	if p.IsZero() {
		return ""
	}
	return p.Base()[pathHashLen+1:]
}

// IsZero reports whether p is none.
func (p StorePath) IsZero() bool { return p.path == "" }

// IsDerivation reports whether p is that of a derivation: its name ends in ".drv".
func (p StorePath) IsDerivation() bool { return strings.HasSuffix(p.path, ".drv") }

// Compare orders store paths by their bytes, as Nix does in fingerprints and narinfos.
func (p StorePath) Compare(q StorePath) int { return strings.Compare(p.path, q.path) }

// SortPaths sorts paths in place, drops duplicates, and returns the rest:
// the order that [PathInfo] has its references in.
func SortPaths(paths []StorePath) []StorePath {
	slices.SortFunc(paths, StorePath.Compare)
	return slices.Compact(paths)
}

var (
	errPathHashMissing = errors.New("it does not begin with 32 characters of hash and a dash")
	errNameLength      = errors.New("its name is not of 1 to 211 characters")
	errNameDots        = errors.New(`its name is "." or "..", or begins with ".-" or "..-"`)
)

// checkBase checks "<hash>-<name>".
func checkBase(s string) error {
	if len(s) <= pathHashLen || s[pathHashLen] != '-' {
		return errPathHashMissing
	}
	for i := range pathHashLen {
		if nix32Values[s[i]] == notDigit {
			return fmt.Errorf("%q is no digit of base 32", s[i])
		}
	}
	return checkName(s[pathHashLen+1:])
}

// checkName checks the name of a store path, by the rules of checkName in Nix's path.cc.
func checkName(s string) error {
	if s == "" || len(s) > maxNameLen {
		return errNameLength
	}
	for i := range len(s) {
		if !isNameByte[s[i]] {
			return fmt.Errorf("%q may not be in its name", s[i])
		}
	}
	if first, _, _ := strings.Cut(s, "-"); first == "." || first == ".." {
		return errNameDots
	}
	return nil
}

// isNameByte tells which bytes may be in the name of a store path.
var isNameByte = func() (is [256]bool) {
	const bytes = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+-._?="
	for i := range len(bytes) {
		is[bytes[i]] = true
	}
	return is
}()
