package nix

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// HashAlgorithm is one of the hash functions of Nix.
type HashAlgorithm uint8

// The hash functions that occur in caches. What is served is always named by SHA-256,
// the others are for the sources of fixed outputs.
const (
	MD5 HashAlgorithm = 1 + iota
	SHA1
	SHA256
	SHA512
)

// algorithms has the name and the size in bytes of each hash function.
var algorithms = [...]struct {
	name string
	size int
}{
	MD5:    {"md5", 16},
	SHA1:   {"sha1", 20},
	SHA256: {"sha256", 32},
	SHA512: {"sha512", 64},
}

// maxHashSize is the size of the largest sum.
const maxHashSize = 64

// ParseHashAlgorithm parses the name of a hash function, such as "sha256".
func ParseHashAlgorithm(s string) (HashAlgorithm, error) {
	for a := MD5; a <= SHA512; a++ {
		if algorithms[a].name == s {
			return a, nil
		}
	}
	return 0, fmt.Errorf("unknown hash algorithm %s", quote(s))
}

func (a HashAlgorithm) known() bool { return MD5 <= a && a <= SHA512 }

// String returns the name, such as "sha256".
func (a HashAlgorithm) String() string {
	if !a.known() {
		return fmt.Sprintf("HashAlgorithm(%d)", uint8(a))
	}
	return algorithms[a].name
}

// Size returns the size of a sum in bytes, 0 for an unknown algorithm.
func (a HashAlgorithm) Size() int {
	if !a.known() {
		return 0
	}
	return algorithms[a].size
}

// Hash is a sum together with the function it is of. The zero Hash stands for none.
// Hashes are compared with ==.
type Hash struct {
	algo HashAlgorithm
	sum  [maxHashSize]byte // zero after the algorithm's size
}

// NewHash returns the hash with the given sum, which must be as long as the algorithm's sums are.
func NewHash(algo HashAlgorithm, sum []byte) (Hash, error) {
	if !algo.known() || len(sum) != algo.Size() {
		return Hash{}, fmt.Errorf("make %v hash: its sum has %d bytes, not %d", algo, len(sum), algo.Size())
	}
	h := Hash{algo: algo}
	copy(h.sum[:], sum)
	return h, nil
}

// SHA256Sum returns the hash with the given SHA-256 sum.
func SHA256Sum(sum [32]byte) Hash {
	h := Hash{algo: SHA256}
	copy(h.sum[:], sum[:])
	return h
}

var (
	errNoAlgorithm = errors.New("it does not say its algorithm")
	errSRIForm     = errors.New("the text after the dash is not base 64 of the algorithm's length")
	errHashLength  = errors.New("its length is that of no text form of the algorithm")
	errBase64      = errors.New("it is not canonical base 64")
)

// ParseHash parses a hash that says its algorithm, in any of Nix's text forms:
// "sha256:" followed by base 16, base 32 or base 64, or "sha256-" followed by base 64 (SRI).
func ParseHash(s string) (Hash, error) {
	h, err := parseTypedHash(s)
	if err != nil {
		return Hash{}, fmt.Errorf("parse hash %s: %w", quote(s), err)
	}
	return h, nil
}

// ParseHashOf parses a hash of a known algorithm: the bare base 16, base 32 or base 64,
// or any form that [ParseHash] accepts if it says the same algorithm.
func ParseHashOf(algo HashAlgorithm, s string) (Hash, error) {
	if !strings.ContainsAny(s, ":-") {
		h, err := parseBareHash(algo, s)
		if err != nil {
			return Hash{}, fmt.Errorf("parse %v hash %s: %w", algo, quote(s), err)
		}
		return h, nil
	}
	h, err := ParseHash(s)
	if err == nil && h.algo != algo {
		return Hash{}, fmt.Errorf("parse hash %s: it is of %v, not of %v", quote(s), h.algo, algo)
	}
	return h, err
}

func parseTypedHash(s string) (Hash, error) {
	sep := strings.IndexAny(s, ":-")
	if sep < 0 {
		return Hash{}, errNoAlgorithm
	}
	algo, err := ParseHashAlgorithm(s[:sep])
	if err != nil {
		return Hash{}, err
	}
	text := s[sep+1:]
	if s[sep] == '-' && len(text) != base64.StdEncoding.EncodedLen(algo.Size()) {
		return Hash{}, errSRIForm
	}
	return parseBareHash(algo, text)
}

// parseBareHash tells the text forms apart by their lengths, which differ for every algorithm.
func parseBareHash(algo HashAlgorithm, s string) (Hash, error) {
	if !algo.known() {
		return Hash{}, fmt.Errorf("unknown hash algorithm %v", algo)
	}
	h := Hash{algo: algo}
	sum := h.sum[:algo.Size()]
	switch len(s) {
	case hex.EncodedLen(len(sum)):
		if _, err := hex.Decode(sum, []byte(s)); err != nil {
			return Hash{}, err
		}
	case nix32Len(len(sum)):
		if err := decodeNix32(sum, s); err != nil {
			return Hash{}, err
		}
	case base64.StdEncoding.EncodedLen(len(sum)):
		if err := decodeBase64(sum, s); err != nil {
			return Hash{}, err
		}
	default:
		return Hash{}, errHashLength
	}
	return h, nil
}

// decodeBase64 fills dst, of at most 64 bytes, from its one padded base 64 form.
// The package base64 alone would skip line ends, and stop short of dst.
func decodeBase64(dst []byte, s string) error {
	var buf [maxHashSize + 2]byte // a decoder may write up to the padding
	if len(s) != base64.StdEncoding.EncodedLen(len(dst)) {
		return errBase64
	}
	n, err := base64.StdEncoding.Strict().Decode(buf[:], []byte(s))
	if err != nil || n != len(dst) {
		return errBase64
	}
	copy(dst, buf[:n])
	return nil
}

// Algorithm returns the hash function, 0 for none.
func (h Hash) Algorithm() HashAlgorithm { return h.algo }

// IsZero reports whether h is none.
func (h Hash) IsZero() bool { return h.algo == 0 }

// Sum returns a copy of the raw sum, empty for none.
func (h Hash) Sum() []byte { return append([]byte(nil), h.sum[:h.algo.Size()]...) }

// String returns the form of narinfos, "sha256:<base 32>", or "" for none.
func (h Hash) String() string {
	if h.IsZero() {
		return ""
	}
	return string(h.Append(nil))
}

// Append appends the form of narinfos, "sha256:<base 32>", and nothing for none.
func (h Hash) Append(dst []byte) []byte {
	if h.IsZero() {
		return dst
	}
	dst = append(dst, algorithms[h.algo].name...)
	dst = append(dst, ':')
	return h.AppendNix32(dst)
}

// AppendNix32 appends the bare base 32 form.
func (h Hash) AppendNix32(dst []byte) []byte { return AppendNix32(dst, h.sum[:h.algo.Size()]) }

// AppendBase16 appends the bare base 16 form.
func (h Hash) AppendBase16(dst []byte) []byte { return hex.AppendEncode(dst, h.sum[:h.algo.Size()]) }

// Nix32 returns the bare base 32 form.
func (h Hash) Nix32() string { return string(h.AppendNix32(nil)) }

// Base16 returns the bare base 16 form.
func (h Hash) Base16() string { return hex.EncodeToString(h.sum[:h.algo.Size()]) }

// Base64 returns the bare base 64 form.
func (h Hash) Base64() string { return base64.StdEncoding.EncodeToString(h.sum[:h.algo.Size()]) }

// SRI returns the form of the web's subresource integrity, "sha256-<base 64>", or "" for none.
func (h Hash) SRI() string {
	if h.IsZero() {
		return ""
	}
	return h.algo.String() + "-" + h.Base64()
}
