package access

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"firn/internal/cache"
	"firn/internal/catalog"
)

const (
	// minRSA is the length of the shortest RSA keys that are taken, in bits, as OpenSSH will soon have it.
	minRSA = 2048

	// maxUsers bounds the principals of an authority's certificates that are kept.
	maxUsers = 64

	// sourceAddress is the only restriction of certificates that is understood. The SSH library sees to it.
	sourceAddress = "source-address"
)

// SSHKeyOptions of a new key. The zero SSHKeyOptions will do.
type SSHKeyOptions struct {
	// Authority says that the key signs certificates.
	Authority bool
	// Users are the principals of which such a certificate has to have one. None: it has to have the name of the cache.
	Users []string
	// Expires is when the key is good for nothing any more. Zero: never.
	Expires time.Time
}

// NewSSHKey makes the record of a public key, given as a line of authorized_keys, such as a file KEY.pub has it.
// An error says what is wrong with the arguments.
func NewSSHKey(name string, line []byte, grants []catalog.Grant, opts SSHKeyOptions) (*catalog.SSHKey, error) {
	if err := checkName("an SSH key", name); err != nil {
		return nil, fmt.Errorf("add SSH key: %w", err)
	}
	key, err := parsePublicKey(line)
	if err == nil {
		err = checkGrants(grants)
	}
	switch {
	case err != nil:
	case len(opts.Users) > 0 && !opts.Authority:
		err = errors.New("principals are for certificates, so for an authority")
	case len(opts.Users) > maxUsers || slices.Contains(opts.Users, ""):
		err = fmt.Errorf("it has %d principals, want up to %d, none empty", len(opts.Users), maxUsers)
	}
	if err != nil {
		return nil, fmt.Errorf("add SSH key %s: %w", name, err)
	}
	return &catalog.SSHKey{
		Name:      name,
		Key:       key.Marshal(),
		Authority: opts.Authority,
		Users:     opts.Users,
		Created:   time.Now().UTC().Truncate(time.Second),
		Expires:   opts.Expires.UTC().Truncate(time.Second),
		Grants:    grants,
	}, nil
}

// parsePublicKey parses the one public key that text has.
func parsePublicKey(text []byte) (ssh.PublicKey, error) {
	key, _, options, rest, err := ssh.ParseAuthorizedKey(text)
	switch {
	case err != nil && bytes.Contains(text, []byte("PRIVATE KEY")):
		return nil, errors.New("this is a private key; give the public one, a file such as id_ed25519.pub")
	case err != nil:
		return nil, errors.New("this is no public key; want a line as in a file such as id_ed25519.pub")
	case len(options) > 0:
		return nil, fmt.Errorf("the options in front of a key, such as %q, are not understood", options[0])
	}
	if _, _, _, _, err := ssh.ParseAuthorizedKey(rest); err == nil {
		return nil, errors.New("there is more than one key; add each under a name of its own")
	}
	if _, ok := key.(*ssh.Certificate); ok {
		return nil, errors.New("this is a certificate; add the public key of the authority that signed it, with --authority")
	}
	return key, checkStrength(key)
}

// checkStrength refuses keys that are not safe any more.
func checkStrength(key ssh.PublicKey) error {
	switch key.Type() {
	case "ssh-dss":
		return errors.New("DSA keys are not safe any more; use an Ed25519 key")
	case ssh.KeyAlgoRSA:
		if k, ok := key.(ssh.CryptoPublicKey); ok {
			if k, ok := k.CryptoPublicKey().(*rsa.PublicKey); ok && k.N.BitLen() < minRSA {
				return fmt.Errorf("an RSA key of %d bits is not safe any more; use an Ed25519 key", k.N.BitLen())
			}
		}
	}
	return nil
}

// SSHKey tells who holds a key, or a certificate, with which somebody logs in as a user, who is named as a cache.
// That the client holds the private half is not looked at here, so it does not count as
// [Access.Used]. An error is cache.ErrUnauthenticated if neither the key nor its authority is
// known, or it has expired, and cache.ErrUnavailable if it could not be told.
func (a *Access) SSHKey(ctx context.Context, key ssh.PublicKey, user string) (cache.Principal, error) {
	wire := key.Marshal()
	p, err := a.keys.find(ctx, sha256.Sum256(append([]byte(user+"\x00"), wire...)), func() (*principal, error) {
		cert, ok := key.(*ssh.Certificate)
		if ok {
			return a.certificate(ctx, cert, user)
		}
		k, err := a.records.SSHKey(ctx, wire)
		if err != nil {
			return nil, missing("SSH key", err)
		}
		if k.Authority {
			return nil, fmt.Errorf("%w: %s is the key of an authority", cache.ErrUnauthenticated, k.Name)
		}
		return ofSSHKey(k), nil
	})
	if err != nil {
		return nil, fmt.Errorf("authenticate: %w", err)
	}
	return p, nil
}

// certificate finds the principal of a certificate: what its authority may, for as long as both are good.
func (a *Access) certificate(ctx context.Context, cert *ssh.Certificate, user string) (*principal, error) {
	k, err := a.records.SSHKey(ctx, cert.SignatureKey.Marshal())
	if err != nil {
		return nil, missing("authority of SSH certificates", err)
	}
	wrong := func(format string, args ...any) (*principal, error) {
		return nil, fmt.Errorf("%w: certificate of %s: %s", cache.ErrUnauthenticated, k.Name, fmt.Sprintf(format, args...))
	}
	if !k.Authority {
		return wrong("that is the key of no authority")
	}
	if err := checkStrength(cert.Key); err != nil {
		return wrong("%v", err)
	}
	if cert.CertType != ssh.UserCert {
		return wrong("it is not for a user")
	}
	for _, u := range k.Users {
		if slices.Contains(cert.ValidPrincipals, u) {
			user = u
		}
	}
	// One without principals is for everybody to the library, and for nobody to OpenSSH.
	if !slices.Contains(cert.ValidPrincipals, user) || len(k.Users) > 0 && !slices.Contains(k.Users, user) {
		return wrong("it is for %q", cert.ValidPrincipals)
	}
	checker := ssh.CertChecker{SupportedCriticalOptions: []string{sourceAddress}, Clock: a.now}
	if err := checker.CheckCert(user, cert); err != nil {
		return wrong("%v", err)
	}
	p := ofSSHKey(k)
	if cert.KeyId != "" {
		p.name += "/" + cert.KeyId
	}
	if cert.ValidBefore != ssh.CertTimeInfinity {
		if end := time.Unix(int64(cert.ValidBefore), 0).UTC(); p.expires.IsZero() || end.Before(p.expires) {
			p.expires = end
		}
	}
	return p, nil
}
