package nix

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// maxKeyNameLen is the longest name of a key, far beyond any in use (host names with a number).
const maxKeyNameLen = 512

// maxSignatures is how many signatures of one thing are read: each costs its verifier time,
// and no path is known to have more than a handful.
const maxSignatures = 64

const (
	// minSigSize is the size in bytes of the shortest signature: a shorter one is a longer one that
	// was cut.
	minSigSize = ed25519.SignatureSize
	// maxSigSize is the size in bytes of the longest: ML-DSA-87 has 4,627, SLH-DSA-128s 7,856.
	maxSigSize = 8 << 10
)

// MaxSignatureLen is the length in bytes of the longest text of a signature.
const MaxSignatureLen = maxKeyNameLen + 1 + (maxSigSize+2)/3*4

// Signature is a signature together with the name of the key that made it.
// Nix signs with Ed25519. Signatures of other algorithms, such as the ECDSA and ML-DSA of
// Determinate Nix, are kept as they are: which algorithm it was, only the key says. Signatures are
// compared with ==.
type Signature struct {
	Name string // of the key, such as "cache.example.org-1"
	text string // the signature itself, in base 64
}

// NewSignature returns the signature with the given bytes by the key of the given name.
func NewSignature(name string, sig []byte) (Signature, error) {
	if err := checkKeyName(name); err != nil {
		return Signature{}, fmt.Errorf("make signature: %w", err)
	}
	if len(sig) < minSigSize || len(sig) > maxSigSize {
		return Signature{}, fmt.Errorf("make signature: it has %d bytes, not %d to %d", len(sig), minSigSize, maxSigSize)
	}
	return Signature{name, base64.StdEncoding.EncodeToString(sig)}, nil
}

// ParseSignature parses "<key name>:<base 64>", where the signature has 64 bytes, which is the size
// of Ed25519, or more.
func ParseSignature(s string) (Signature, error) {
	sig, err := parseSignature(s)
	if err != nil {
		return Signature{}, fmt.Errorf("parse signature %s: %w", quote(s), err)
	}
	return sig, nil
}

func parseSignature(s string) (Signature, error) {
	name, text, ok := strings.Cut(s, ":")
	if !ok {
		return Signature{}, errKeyColon
	}
	if err := checkKeyName(name); err != nil {
		return Signature{}, err
	}
	var array [minSigSize + 2]byte // a decoder may write up to the padding
	buf := array[:]
	switch n := base64.StdEncoding.DecodedLen(len(text)); {
	case n < minSigSize || n > maxSigSize+2:
		return Signature{}, errSignatureText
	case n > len(buf):
		buf = make([]byte, n)
	}
	n, err := base64.StdEncoding.Strict().Decode(buf, []byte(text))
	switch {
	case err != nil || base64.StdEncoding.EncodedLen(n) != len(text): // it would skip line ends
		return Signature{}, errBase64
	case n < minSigSize || n > maxSigSize:
		return Signature{}, errSignatureText
	}
	return Signature{name, text}, nil
}

// IsEd25519 reports whether it has the size of a signature by Ed25519. A signature of any other
// size is of another algorithm.
func (s Signature) IsEd25519() bool {
	return len(s.text) == ed25519TextLen && strings.HasSuffix(s.text, "==")
}

// ed25519TextLen is the length of a signature by Ed25519 in base 64, with its padding.
const ed25519TextLen = (ed25519.SignatureSize + 2) / 3 * 4

// String returns the text form, "<key name>:<base 64>".
func (s Signature) String() string { return s.Name + ":" + s.text }

// Append appends the text form.
func (s Signature) Append(dst []byte) []byte {
	dst = append(dst, s.Name...)
	dst = append(dst, ':')
	return append(dst, s.text...)
}

// Bytes returns the bytes of the signature.
func (s Signature) Bytes() []byte {
	sig, _ := base64.StdEncoding.DecodeString(s.text) // which was checked when s was made
	return sig
}

// addSignature adds sig to sigs, unless it is there already.
func addSignature(sigs []Signature, sig Signature) ([]Signature, error) {
	switch {
	case slices.Contains(sigs, sig):
		return sigs, nil
	case len(sigs) == maxSignatures:
		return nil, fmt.Errorf("there are more than %d signatures", maxSignatures)
	}
	return append(sigs, sig), nil
}

var (
	errKeyColon      = errors.New("it has no colon after the key's name")
	errSignatureText = fmt.Errorf("the text after the key's name is not base 64 of %d to %d bytes", minSigSize, maxSigSize)
	errKeyName       = fmt.Errorf("the key's name is not of 1 to %d visible ASCII characters", maxKeyNameLen)
)

// parseNamed parses "<key name>:<base 64>", fills dst with the bytes and returns the name.
func parseNamed(dst []byte, s string) (name string, err error) {
	name, text, ok := strings.Cut(s, ":")
	if !ok {
		return "", errKeyColon
	}
	if err := checkKeyName(name); err != nil {
		return "", err
	}
	if len(text) != base64.StdEncoding.EncodedLen(len(dst)) {
		return "", fmt.Errorf("the text after the key's name is not base 64 of %d bytes", len(dst))
	}
	return name, decodeBase64(dst, text)
}

// checkKeyName checks the name of a key. Nix takes any text without a colon, but
// keeps signatures and public keys in lists that are split at spaces and lines.
func checkKeyName(s string) error {
	if s == "" || len(s) > maxKeyNameLen {
		return errKeyName
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f || s[i] == ':' {
			return errKeyName
		}
	}
	return nil
}
