package access

import (
	"bytes"
	"context"
	"crypto/sha512"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"firn/internal/cache"
	"firn/internal/catalog"
)

// maxChain bounds the certificates that are looked at of those that a client shows.
const maxChain = 8

// NewCertificate makes the record of a certificate, which is a credential as a token is: whoever has the key of the certificate,
// or a certificate that it signed, if it is that of an authority, may do what the grants say until expires, which a zero time never is.
// The certificate is given as PEM. An error says what is wrong with the arguments.
func NewCertificate(name string, text []byte, grants []catalog.Grant, expires time.Time) (*catalog.Token, error) {
	cert, err := parseCertificate(text)
	if err != nil {
		return nil, fmt.Errorf("make token %s: %w", name, err)
	}
	_, t, err := NewToken(name, grants, expires)
	if err != nil {
		return nil, err
	}
	t.Hash = certificateHash(cert)
	return t, nil
}

// parseCertificate parses the one certificate that text has.
func parseCertificate(text []byte) (*x509.Certificate, error) {
	block, rest := pem.Decode(text)
	switch {
	case block != nil && strings.HasSuffix(block.Type, "PRIVATE KEY"):
		return nil, errors.New("this is a private key, which stays with the client; give the certificate")
	case block == nil || block.Type != "CERTIFICATE":
		return nil, errors.New("this is no certificate; want a file that begins with -----BEGIN CERTIFICATE-----")
	case bytes.Contains(rest, []byte("-----BEGIN CERTIFICATE-----")):
		return nil, errors.New("there is more than one certificate; give that of the client, or that of the authority")
	}
	return x509.ParseCertificate(block.Bytes)
}

// certificateHash stands for the key of a certificate, which stays when that is renewed.
// It is another function than that of tokens: a public key is no secret, and must not be good as one.
func certificateHash(cert *x509.Certificate) catalog.Sum {
	return sha512.Sum512_256(cert.RawSubjectPublicKeyInfo)
}

// Certificate tells who shows a chain of certificates, the first of which is its own. That it has the key of that is not looked at here.
// Errors are as of Authenticate.
func (a *Access) Certificate(ctx context.Context, chain []*x509.Certificate, remote netip.Addr) (cache.Principal, error) {
	p, err := a.ofChain(ctx, chain[:min(len(chain), maxChain)])
	if err != nil {
		return nil, a.refused(err, remote)
	}
	a.Used(p)
	return p, nil
}

func (a *Access) ofChain(ctx context.Context, chain []*x509.Certificate) (*principal, error) {
	for i, cert := range chain {
		if i > 0 && !cert.IsCA {
			break
		}
		p, err := a.holder(ctx, cert)
		if errors.Is(err, cache.ErrUnauthenticated) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return a.vouchedBy(p, chain, i)
	}
	return nil, fmt.Errorf("%w: no such certificate", cache.ErrUnauthenticated)
}

// holder returns the principal that holds the key of a certificate.
func (a *Access) holder(ctx context.Context, cert *x509.Certificate) (*principal, error) {
	hash := certificateHash(cert)
	return a.certificates.find(ctx, hash, func() (*principal, error) {
		t, err := a.records.TokenByHash(ctx, hash)
		if err != nil {
			return nil, missing("certificate", err)
		}
		return ofToken(t), nil
	})
}

// vouchedBy checks that the first certificate of a chain is valid now, by what the known one at i says, and returns the principal that it stands for.
func (a *Access) vouchedBy(p *principal, chain []*x509.Certificate, i int) (*principal, error) {
	leaf, now := chain[0], a.now()
	if i == 0 {
		if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
			return nil, fmt.Errorf("%w: the certificate of %s is valid from %s to %s", cache.ErrUnauthenticated, p.name,
				leaf.NotBefore.Format(time.DateTime), leaf.NotAfter.Format(time.DateTime))
		}
		return p, nil
	}
	opts := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(),
		CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	opts.Roots.AddCert(chain[i])
	for _, cert := range chain[1:i] {
		opts.Intermediates.AddCert(cert)
	}
	if _, err := leaf.Verify(opts); err != nil {
		return nil, fmt.Errorf("%w: certificate of %s: %w", cache.ErrUnauthenticated, p.name, err)
	}
	member := *p
	if cn := leaf.Subject.CommonName; cn != "" {
		member.name += "/" + cn
	}
	return &member, nil
}
