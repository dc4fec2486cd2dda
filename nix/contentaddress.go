package nix

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ContentMethod is how the files of a store path become the bytes that its content address hashes.
type ContentMethod uint8

// The methods of Nix.
const (
	TextMethod ContentMethod = 1 + iota // the bytes of one file, written by Nix itself: derivations, builtins.toFile
	FlatMethod                          // the bytes of one file
	NARMethod                           // the NAR
	GitMethod                           // git's object hash
)

// methods has the text before the hash of each method.
var methods = [...]string{
	TextMethod: "text:",
	FlatMethod: "fixed:",
	NARMethod:  "fixed:r:",
	GitMethod:  "fixed:git:",
}

// String returns the method as Nix's command line names it: "text", "flat", "nar" or "git".
func (m ContentMethod) String() string {
	switch m {
	case TextMethod:
		return "text"
	case FlatMethod:
		return "flat"
	case NARMethod:
		return "nar"
	case GitMethod:
		return "git"
	}
	return fmt.Sprintf("ContentMethod(%d)", uint8(m))
}

// ContentAddress is the claim that a store path is named by its contents:
// "text:sha256:…", "fixed:<algorithm>:…", "fixed:r:<algorithm>:…" or "fixed:git:<algorithm>:…".
// Such a path needs no signature. The zero ContentAddress stands for none.
type ContentAddress struct {
	method ContentMethod
	hash   Hash
}

var (
	errContentPrefix = errors.New("it begins with neither \"text:\" nor \"fixed:\"")
	errContentTyped  = errors.New("its hash is not <algorithm>:<text>")
	errTextAlgorithm = errors.New("a text is only ever hashed by sha256")
	errGitAlgorithm  = errors.New("git only hashes by sha1 or sha256")
	errUnknownMethod = errors.New("unknown method")
)

// NewContentAddress returns the address of contents that have the given hash by the given method.
func NewContentAddress(method ContentMethod, hash Hash) (ContentAddress, error) {
	ca := ContentAddress{method, hash}
	if err := ca.check(); err != nil {
		return ContentAddress{}, fmt.Errorf("make content address: %w", err)
	}
	return ca, nil
}

func (c ContentAddress) check() error {
	switch {
	case c.method < TextMethod || c.method > GitMethod:
		return errUnknownMethod
	case c.hash.IsZero():
		return errors.New("it has no hash")
	case c.method == TextMethod && c.hash.algo != SHA256:
		return errTextAlgorithm
	case c.method == GitMethod && c.hash.algo != SHA1 && c.hash.algo != SHA256:
		return errGitAlgorithm
	}
	return nil
}

// ParseContentAddress parses a content address. Its hash may have any form that [ParseHash] accepts
// but SRI.
func ParseContentAddress(s string) (ContentAddress, error) {
	ca, err := parseContentAddress(s)
	if err != nil {
		return ContentAddress{}, fmt.Errorf("parse content address %s: %w", quote(s), err)
	}
	return ca, nil
}

func parseContentAddress(s string) (ContentAddress, error) {
	// The longest prefix first: that of FlatMethod begins those of the others.
	for _, m := range []ContentMethod{GitMethod, NARMethod, FlatMethod, TextMethod} {
		text, ok := strings.CutPrefix(s, methods[m])
		if !ok {
			continue
		}
		if !strings.Contains(text, ":") {
			return ContentAddress{}, errContentTyped
		}
		hash, err := parseTypedHash(text)
		if err != nil {
			return ContentAddress{}, err
		}
		ca := ContentAddress{m, hash}
		return ca, ca.check()
	}
	return ContentAddress{}, errContentPrefix
}

// Method returns how the contents are hashed, 0 for none.
func (c ContentAddress) Method() ContentMethod { return c.method }

// Hash returns the hash of the contents.
func (c ContentAddress) Hash() Hash { return c.hash }

// IsZero reports whether c is none.
func (c ContentAddress) IsZero() bool { return c.method == 0 }

// String returns the text form, with the hash in base 32, or "" for none.
func (c ContentAddress) String() string { return string(c.Append(nil)) }

// Append appends the text form, and nothing for none.
func (c ContentAddress) Append(dst []byte) []byte {
	if c.IsZero() {
		return dst
	}
	return c.hash.Append(append(dst, methods[c.method]...))
}

// StorePath returns the store path of the contents under the given name and with the given references.
// A reference to the path itself, which is not known yet, is given as the zero StorePath.
// Only texts, and NARs hashed by SHA-256, may have references, and only the latter one to themselves.
func (c ContentAddress) StorePath(dir StoreDir, name string, refs []StorePath) (StorePath, error) {
	p, err := c.storePath(dir, name, refs)
	if err != nil {
		return StorePath{}, fmt.Errorf("compute store path of %s (%v): %w", quote(name), c, err)
	}
	return p, nil
}

func (c ContentAddress) storePath(dir StoreDir, name string, refs []StorePath) (StorePath, error) {
	if err := c.check(); err != nil {
		return StorePath{}, err
	}
	if err := checkName(name); err != nil {
		return StorePath{}, err
	}
	refs = SortPaths(slices.Clone(refs))
	self := len(refs) > 0 && refs[0].IsZero()
	if self {
		refs = refs[1:]
	}

	// The text whose hash is the path hash, as makeStorePath of Nix builds it:
	// type, references, inner hash, store directory, name.
	text := make([]byte, 0, 256)
	inner := c.hash
	switch {
	case c.method == TextMethod && !self:
		text = append(text, "text"...)
	case c.method == TextMethod:
		return StorePath{}, errors.New("a text cannot refer to itself")
	case c.method == NARMethod && c.hash.algo == SHA256:
		text = append(text, "source"...)
	case self || len(refs) > 0:
		return StorePath{}, fmt.Errorf("%v contents hashed by %v cannot have references", c.method, c.hash.algo)
	default:
		// Every other address is hashed once more, as the output of a fixed-output derivation.
		text = append(text, "output:out"...)
		fixed := append([]byte("fixed:out:"), strings.TrimPrefix(methods[c.method], "fixed:")...)
		fixed = append(fixed, c.hash.algo.String()...)
		fixed = append(fixed, ':')
		fixed = append(c.hash.AppendBase16(fixed), ':')
		inner = SHA256Sum(sha256.Sum256(fixed))
	}
	for _, ref := range refs {
		text = append(text, ':')
		text = append(text, ref.path...)
	}
	if self {
		text = append(text, ":self"...)
	}
	text = append(text, ":sha256:"...)
	text = inner.AppendBase16(text)
	text = append(text, ':')
	text = append(text, dir...)
	text = append(text, ':')
	text = append(text, name...)

	path := append([]byte(dir), '/')
	hash := foldPathHash(sha256.Sum256(text))
	path = AppendNix32(path, hash[:])
	path = append(path, '-')
	return StorePath{string(append(path, name...))}, nil
}

// foldPathHash folds a SHA-256 sum to the 20 bytes of a path hash.
func foldPathHash(sum [32]byte) (h PathHash) {
	for i, b := range sum {
		h[i%len(h)] ^= b
	}
	return h
}
