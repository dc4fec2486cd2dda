package nix

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// SecretKey signs paths. It prints itself redacted everywhere; only [SecretKey.Reveal] shows it.
// The zero SecretKey is not usable.
type SecretKey struct {
	name string
	// A function, so that not even what prints by reflection gets at it: fmt calls no methods
	// of what lies in unexported fields, and follows pointers under a verb that does not fit them.
	key func() ed25519.PrivateKey
}

// newSecretKey returns the secret key that hides key.
func newSecretKey(name string, key ed25519.PrivateKey) SecretKey {
	return SecretKey{name, func() ed25519.PrivateKey { return key }}
}

var (
	errPublicHalf     = errors.New("its public half does not belong to its secret half")
	errCarriageReturn = errors.New("it has a carriage return, which Nix refuses too; lines of a key file end in LF only")
)

// GenerateKey returns a new key with the given name. Names end in a number by custom,
// "cache.example.org-1", to tell a key from the one that will replace it.
func GenerateKey(name string) (SecretKey, error) {
	if err := checkKeyName(name); err != nil {
		return SecretKey{}, fmt.Errorf("generate key %s: %w", quote(name), err)
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return SecretKey{}, fmt.Errorf("generate key %s: %w", quote(name), err)
	}
	return newSecretKey(name, key), nil
}

// ParseSecretKey parses the contents of a secret key file, "<name>:<base 64 of 64 bytes>",
// the bytes being the Ed25519 seed and the public key. A line feed may follow, nothing else.
// An error shows nothing of the text but the key's name.
func ParseSecretKey(s string) (SecretKey, error) {
	key := make(ed25519.PrivateKey, ed25519.PrivateKeySize)
	name, err := parseKeyFile(key, s)
	if err != nil {
		return SecretKey{}, fmt.Errorf("parse secret key: %w", err)
	}
	if !key.Equal(ed25519.NewKeyFromSeed(key.Seed())) {
		return SecretKey{}, fmt.Errorf("parse secret key %s: %w", name, errPublicHalf)
	}
	return newSecretKey(name, key), nil
}

// parseKeyFile is parseNamed for the contents of a key file.
func parseKeyFile(dst []byte, s string) (name string, err error) {
	if strings.Contains(s, "\r") {
		return "", errCarriageReturn
	}
	return parseNamed(dst, strings.TrimSuffix(s, "\n"))
}

// Name returns the key's name.
func (k SecretKey) Name() string { return k.name }

// IsZero reports whether k is no key.
func (k SecretKey) IsZero() bool { return k.key == nil }

// Public returns the public half.
func (k SecretKey) Public() PublicKey {
	p := PublicKey{name: k.name}
	copy(p.key[:], k.key()[ed25519.SeedSize:])
	return p
}

// Sign signs a fingerprint, such as that of [PathInfo.AppendFingerprint].
func (k SecretKey) Sign(fingerprint []byte) Signature {
	return Signature{k.name, base64.StdEncoding.EncodeToString(ed25519.Sign(k.key(), fingerprint))}
}

// Reveal returns the contents of a secret key file, the form that [ParseSecretKey] reads,
// without a line feed, as nix-store --generate-binary-cache-key writes it.
func (k SecretKey) Reveal() string {
	return k.name + ":" + base64.StdEncoding.EncodeToString(k.key())
}

// String returns the name with the secret left out.
func (k SecretKey) String() string { return k.name + ":[redacted]" }

// Format prints [SecretKey.String], whatever the verb.
func (k SecretKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, k.String()) }

// LogValue logs [SecretKey.String].
func (k SecretKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalJSON encodes [SecretKey.String]. There is no way back from it, and no MarshalText:
// a key is written by way of Reveal, or not at all.
func (k SecretKey) MarshalJSON() ([]byte, error) { return fmt.Appendf(nil, "%q", k.String()), nil }

// PublicKey verifies signatures. Public keys are compared with ==.
type PublicKey struct {
	name string
	key  [ed25519.PublicKeySize]byte
}

// ParsePublicKey parses "<name>:<base 64 of 32 bytes>", as in trusted-public-keys of nix.conf
// or a public key file. A line feed may follow, nothing else.
// An error shows nothing of the text: it may be that of a secret key, mistaken for the public one.
func ParsePublicKey(s string) (PublicKey, error) {
	var k PublicKey
	var err error
	if k.name, err = parseKeyFile(k.key[:], s); err != nil {
		return PublicKey{}, fmt.Errorf("parse public key: %w", err)
	}
	return k, nil
}

// Name returns the key's name.
func (k PublicKey) Name() string { return k.name }

// IsZero reports whether k is no key.
func (k PublicKey) IsZero() bool { return k.name == "" }

// Verify reports whether sig is this key's signature of the fingerprint.
// A signature by a key of another name is not, whatever its bytes.
func (k PublicKey) Verify(fingerprint []byte, sig Signature) bool {
	return !k.IsZero() && sig.Name == k.name && sig.IsEd25519() && ed25519.Verify(k.key[:], fingerprint, sig.Bytes())
}

// String returns the text form, "<name>:<base 64>", or "" for no key.
func (k PublicKey) String() string {
	if k.IsZero() {
		return ""
	}
	return k.name + ":" + base64.StdEncoding.EncodeToString(k.key[:])
}

// MarshalText returns the text form.
func (k PublicKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }
