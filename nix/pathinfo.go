package nix

import (
	"fmt"
	"slices"
	"strconv"
	"time"
)

// PathInfo is what is known of a store path.
type PathInfo struct {
	Path       StorePath
	NARHash    Hash        // of the uncompressed NAR; SHA-256 in every store and cache
	NARSize    int64       // bytes of the uncompressed NAR
	References []StorePath // sorted, each once, as SortPaths leaves them; the path itself where it refers to itself
	Deriver    StorePath   // zero: unknown
	Signatures []Signature
	CA         ContentAddress // zero: none
	Extra      []Field        // what its narinfo says besides

	// Only a local store knows these.
	RegistrationTime time.Time // zero: unknown
	Ultimate         bool      // built here, so trusted without a signature
}

// AppendFingerprint appends the text that signatures of the path cover:
//
//	1;<store path>;sha256:<base 32 NAR hash>;<NAR size>;<reference>,<reference>,…
//
// with full paths throughout (fingerprint in Nix's path-info.cc).
func (p *PathInfo) AppendFingerprint(dst []byte) []byte {
	size := len("1;;sha256:;;") + len(p.Path.path) + nix32Len(maxHashSize) + maxDecimalLen
	for _, ref := range p.References {
		size += len(ref.path) + 1
	}
	dst = slices.Grow(dst, size)
	dst = append(dst, "1;"...)
	dst = append(dst, p.Path.path...)
	dst = append(dst, ';')
	dst = p.NARHash.Append(dst)
	dst = append(dst, ';')
	dst = strconv.AppendInt(dst, p.NARSize, 10)
	dst = append(dst, ';')
	for i, ref := range p.References {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, ref.path...)
	}
	return dst
}

// maxDecimalLen is the length of the longest int64 in decimal.
const maxDecimalLen = 20

// CheckContentAddress checks that the path is the one that its content address gives, and, where
// that can be told without reading the NAR, that the content address is the NAR's own hash.
// A path without a content address passes.
func (p *PathInfo) CheckContentAddress() error {
	if p.CA.IsZero() {
		return nil
	}
	refs := slices.Clone(p.References)
	self := slices.Index(refs, p.Path)
	if self >= 0 {
		refs[self] = StorePath{}
	}
	want, err := p.CA.StorePath(p.Path.Dir(), p.Path.Name(), refs)
	if err != nil {
		return fmt.Errorf("check content address of %v: %w", p.Path, err)
	}
	if want != p.Path {
		return fmt.Errorf("check content address of %v: %v is the address of %v", p.Path, p.CA, want)
	}
	// The hash of a path that refers to itself leaves its own path hash out.
	if p.CA.method == NARMethod && p.CA.hash.algo == p.NARHash.algo && self < 0 && p.CA.hash != p.NARHash {
		return fmt.Errorf("check content address of %v: %v is not of the NAR hash %v", p.Path, p.CA, p.NARHash)
	}
	return nil
}
