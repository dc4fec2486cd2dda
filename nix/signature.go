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

// maxSignatures is how many signatures of one thing are read: each costs whoever verifies it,
// and no path is known to have more than a handful.
const maxSignatures = 64

// Signature is an Ed25519 signature together with the name of the key that made it.
// Signatures are compared with ==.
type Signature struct {
	Name string // of the key, such as "cache.example.org-1"
	sig  [ed25519.SignatureSize]byte
}

// NewSignature returns the signature with the given 64 bytes by the key of the given name.
func NewSignature(name string, sig []byte) (Signature, error) {
	s := Signature{Name: name}
	if err := checkKeyName(name); err != nil {
		return Signature{}, fmt.Errorf("make signature: %w", err)
	}
	if len(sig) != len(s.sig) {
		return Signature{}, fmt.Errorf("make signature: it has %d bytes, not %d", len(sig), len(s.sig))
	}
	copy(s.sig[:], sig)
	return s, nil
}

// ParseSignature parses "<key name>:<base 64 of 64 bytes>".
func ParseSignature(s string) (Signature, error) {
	var sig Signature
	var err error
	if sig.Name, err = parseNamed(sig.sig[:], s); err != nil {
		return Signature{}, fmt.Errorf("parse signature %s: %w", quote(s), err)
	}
	return sig, nil
}

// String returns the text form, "<key name>:<base 64>".
func (s Signature) String() string { return string(s.Append(nil)) }

// Append appends the text form.
func (s Signature) Append(dst []byte) []byte {
	dst = append(dst, s.Name...)
	dst = append(dst, ':')
	return base64.StdEncoding.AppendEncode(dst, s.sig[:])
}

// Bytes returns a copy of the 64 bytes.
func (s Signature) Bytes() []byte { return append([]byte(nil), s.sig[:]...) }

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
	errKeyColon = errors.New("it has no colon after the key's name")
	errKeyName  = fmt.Errorf("the key's name is not of 1 to %d visible ASCII characters", maxKeyNameLen)
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
