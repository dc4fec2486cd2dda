package access

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"path"
	"time"

	"firn/internal/cache"
	"firn/internal/catalog"
)

const (
	// prefix lets people, and programs that look for secrets in what is published, see what a token is.
	prefix = "firn_"

	// secretSize is the length of the random part in bytes.
	secretSize = 32

	// maxName and maxGrants bound what is kept of a token, in bytes and in number.
	maxName, maxGrants = 64, 64
)

// NewToken makes a token that allows what the grants say until it expires, which a zero time never does.
// The secret is what its holder sends; it is in no record. An error says what is wrong with the arguments.
func NewToken(name string, grants []catalog.Grant, expires time.Time) (secret string, t *catalog.Token, err error) {
	if err := checkName("a token", name); err != nil {
		return "", nil, fmt.Errorf("make token: %w", err)
	}
	if err := checkGrants(grants); err != nil {
		return "", nil, fmt.Errorf("make token %s: %w", name, err)
	}
	random := make([]byte, secretSize)
	_, _ = rand.Read(random) // never fails
	secret = prefix + base64.RawURLEncoding.EncodeToString(random)
	return secret, &catalog.Token{
		Name:    name,
		Hash:    sha256.Sum256([]byte(secret)),
		Created: time.Now().UTC().Truncate(time.Second),
		Expires: expires.UTC().Truncate(time.Second),
		Grants:  grants,
	}, nil
}

// checkName says what is wrong with the name of something, which is shown in terminals and logs.
func checkName(of, name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("the name of %s has %d bytes, want 1 to %d", of, len(name), maxName)
	}
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case i > 0 && (c == '-' || c == '_' || c == '.' || c == '@'):
		default:
			return fmt.Errorf("the name of %s begins with a letter or digit, and has letters, digits, -, _, . and @", of)
		}
	}
	return nil
}

// checkGrants says what is wrong with the rights of something.
func checkGrants(grants []catalog.Grant) error {
	if len(grants) == 0 || len(grants) > maxGrants {
		return fmt.Errorf("it has %d rights, want 1 to %d", len(grants), maxGrants)
	}
	for _, g := range grants {
		if _, err := path.Match(g.Pattern, ""); err != nil || g.Pattern == "" {
			return fmt.Errorf("%q is not a pattern of cache names, such as main, team-* or *", g.Pattern)
		}
	}
	return nil
}

// A principal is the holder of a token or a key.
type principal struct {
	name    string
	expires time.Time // zero: never
	grants  []catalog.Grant
	shown   *credential
}

func ofToken(t *catalog.Token) *principal {
	return &principal{name: t.Name, expires: t.Expires, grants: t.Grants, shown: &credential{use: catalog.Use{Token: t.Hash}}}
}

func ofSSHKey(k *catalog.SSHKey) *principal {
	return &principal{name: k.Name, expires: k.Expires, grants: k.Grants, shown: &credential{use: catalog.Use{SSHKey: k.Key}}}
}

// Name returns the name of the token or the key.
func (p *principal) Name() string { return p.name }

// May reports whether the grants together give all of the rights in a cache.
func (p *principal) May(rights cache.Rights, name string) bool {
	var have cache.Rights
	for _, g := range p.grants {
		if ok, err := path.Match(g.Pattern, name); err == nil && ok {
			have |= cache.Rights(g.Rights)
		}
	}
	if have&cache.Admin != 0 {
		have |= cache.Push
	}
	if have&cache.Push != 0 {
		have |= cache.Read
	}
	return have&rights == rights
}
