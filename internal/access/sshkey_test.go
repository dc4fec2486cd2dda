package access_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"firn/internal/access"
	"firn/internal/cache"
	"firn/internal/catalog"
)

var onMain = []catalog.Grant{{Pattern: "main", Rights: uint8(cache.Push)}}

// newSigner makes a key.
func newSigner(tb testing.TB) ssh.Signer {
	tb.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		tb.Fatal(err)
	}
	return signer
}

// addKey adds a key to the catalog.
func (t *tester) addKey(name string, key ssh.PublicKey, opts access.SSHKeyOptions) {
	t.Helper()
	record, err := access.NewSSHKey(name, ssh.MarshalAuthorizedKey(key), onMain, opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := t.catalog.AddSSHKey(t.Context(), record); err != nil {
		t.Fatal(err)
	}
}

// wantKey checks who holds a key: the name of a principal, or "nobody".
func (t *tester) wantKey(key ssh.PublicKey, user, want string) {
	t.Helper()
	p, err := t.access.SSHKey(t.Context(), key, user)
	got := "nobody"
	if err == nil {
		got = p.Name()
	} else if !errors.Is(err, cache.ErrUnauthenticated) {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("%q is %q, %v, want %q", user, got, err, want)
	}
}

func TestSSHKey(t0 *testing.T) {
	synctest.Test(t0, func(t0 *testing.T) {
		t := newTester(t0, access.Options{})
		key, other := newSigner(t).PublicKey(), newSigner(t).PublicKey()
		t.addKey("ci", key, access.SSHKeyOptions{})
		t.addKey("brief", other, access.SSHKeyOptions{Expires: time.Now().Add(time.Hour)})
		t.wantKey(key, "main", "ci")
		t.wantKey(key, "other", "ci") // what it may do there is another question
		t.wantKey(newSigner(t).PublicKey(), "main", "nobody")
		t.wantKey(other, "main", "brief")
		p, err := t.access.SSHKey(t.Context(), key, "main")
		if err != nil || !p.May(cache.Push, "main") || p.May(cache.Read, "other") {
			t.Errorf("the key may push %t, read another cache %t, %v", p.May(cache.Push, "main"), p.May(cache.Read, "other"), err)
		}
		// Everybody knows a public key: it is no secret.
		t.want("Bearer "+string(key.Marshal()), here, "nobody")
		t.want("Bearer main\x00"+string(key.Marshal()), here, "nobody")

		if err := t.catalog.RevokeSSHKey(t.Context(), "ci"); err != nil {
			t.Fatal(err)
		}
		t.wantKey(key, "main", "nobody")
		time.Sleep(time.Hour)
		t.wantKey(other, "main", "nobody")

		t.catalog.vague = true
		if err := t.catalog.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := t.access.SSHKey(t.Context(), key, "main"); !errors.Is(err, cache.ErrUnavailable) {
			t.Errorf("without a catalog: %v", err)
		}
	})
}

func TestCertificates(t0 *testing.T) {
	synctest.Test(t0, func(t0 *testing.T) {
		t := newTester(t0, access.Options{})
		authority, users, plain := newSigner(t), newSigner(t), newSigner(t)
		t.addKey("ca", authority.PublicKey(), access.SSHKeyOptions{Authority: true})
		t.addKey("users", users.PublicKey(), access.SSHKeyOptions{Authority: true, Users: []string{"alice", "bob"}})
		t.addKey("plain", plain.PublicKey(), access.SSHKeyOptions{})
		now := uint64(time.Now().Unix())
		weak, err := rsa.GenerateKey(rand.Reader, 1024)
		if err != nil {
			t.Fatal(err)
		}
		weakKey, err := ssh.NewPublicKey(&weak.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		cert := func(by ssh.Signer, change func(*ssh.Certificate), principals ...string) *ssh.Certificate {
			c := &ssh.Certificate{
				Key: newSigner(t).PublicKey(), CertType: ssh.UserCert, KeyId: "alice@laptop", ValidPrincipals: principals,
				ValidAfter: now, ValidBefore: now + 3600,
			}
			if change != nil {
				change(c)
			}
			if err := c.SignCert(rand.Reader, by); err != nil {
				t.Fatal(err)
			}
			return c
		}
		for name, test := range map[string]struct {
			cert *ssh.Certificate
			want string
		}{
			"of the cache":        {cert(authority, nil, "main"), "ca/alice@laptop"},
			"of several":          {cert(authority, nil, "team", "main"), "ca/alice@laptop"},
			"without an ID":       {cert(authority, func(c *ssh.Certificate) { c.KeyId = "" }, "main"), "ca"},
			"of another cache":    {cert(authority, nil, "team"), "nobody"},
			"of everybody":        {cert(authority, nil), "nobody"},
			"of a user":           {cert(users, nil, "bob"), "users/alice@laptop"},
			"of another user":     {cert(users, nil, "eve"), "nobody"},
			"of the cache only":   {cert(users, nil, "main"), "nobody"},
			"without users":       {cert(users, nil), "nobody"},
			"of no authority":     {cert(plain, nil, "main"), "nobody"},
			"of a stranger":       {cert(newSigner(t), nil, "main"), "nobody"},
			"of a host":           {cert(authority, func(c *ssh.Certificate) { c.CertType = ssh.HostCert }, "main"), "nobody"},
			"of tomorrow":         {cert(authority, func(c *ssh.Certificate) { c.ValidAfter = now + 60 }, "main"), "nobody"},
			"of yesterday":        {cert(authority, func(c *ssh.Certificate) { c.ValidBefore = now }, "main"), "nobody"},
			"with a weak key":     {cert(authority, func(c *ssh.Certificate) { c.Key = weakKey }, "main"), "nobody"},
			"with a command":      {cert(authority, func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"force-command": "ls"} }, "main"), "nobody"},
			"with an address":     {cert(authority, func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"source-address": "192.0.2.1"} }, "main"), "ca/alice@laptop"},
			"that was tampered":   {func() *ssh.Certificate { c := cert(authority, nil, "team"); c.ValidPrincipals[0] = "main"; return c }(), "nobody"},
			"that lasts for ever": {cert(authority, func(c *ssh.Certificate) { c.ValidBefore = ssh.CertTimeInfinity }, "main"), "ca/alice@laptop"},
		} {
			t.T.Log(name)
			t.wantKey(test.cert, "main", test.want)
		}
		t.wantKey(authority.PublicKey(), "main", "nobody")

		// One that is known expires too, and goes with its authority.
		brief, long := cert(authority, nil, "main"), cert(authority, func(c *ssh.Certificate) { c.ValidBefore = ssh.CertTimeInfinity }, "main")
		t.wantKey(brief, "main", "ca/alice@laptop")
		t.wantKey(brief, "team", "nobody")
		time.Sleep(time.Hour)
		t.wantKey(brief, "main", "nobody")
		t.wantKey(long, "main", "ca/alice@laptop")
		if err := t.catalog.RevokeSSHKey(t.Context(), "ca"); err != nil {
			t.Fatal(err)
		}
		t.wantKey(long, "main", "nobody")
	})
}

// What a door counts itself is counted with the rest.
func TestWaitOfDoors(t0 *testing.T) {
	synctest.Test(t0, func(t0 *testing.T) {
		t := newTester(t0, access.Options{Burst: 2, Pause: time.Minute})
		wantWait := func(want time.Duration) {
			t.Helper()
			if got := t.access.Wait(here); got != want {
				t.Errorf("waits %s, want %s", got, want)
			}
		}
		wantWait(0)
		t.access.Failed(here)
		wantWait(0)
		t.access.Failed(here)
		wantWait(time.Minute)
		t.want("Bearer wrong", here, "slow")
		time.Sleep(time.Minute)
		wantWait(0)
	})
}

func TestNewSSHKey(t *testing.T) {
	line := func(key any) string {
		t.Helper()
		k, err := ssh.NewPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return string(ssh.MarshalAuthorizedKey(k))
	}
	good := string(ssh.MarshalAuthorizedKey(newSigner(t).PublicKey()))
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(curve, "")
	if err != nil {
		t.Fatal(err)
	}
	private := "-----BEGIN " + block.Type + "-----\nAAAA\n-----END " + block.Type + "-----\n"
	cert := &ssh.Certificate{Key: newSigner(t).PublicKey(), CertType: ssh.UserCert}
	if err := cert.SignCert(rand.Reader, newSigner(t)); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, text string
		opts       access.SSHKeyOptions
		want       string // "" is fine
	}{
		{"ci", good, access.SSHKeyOptions{}, ""},
		{"ci", "# mine\n\n" + strings.TrimSuffix(good, "\n") + " alice@laptop\n\n# end\n", access.SSHKeyOptions{}, ""},
		{"ci", line(&curve.PublicKey), access.SSHKeyOptions{Authority: true, Users: []string{"alice"}}, ""},
		{"", good, access.SSHKeyOptions{}, "the name of an SSH key has 0 bytes"},
		{"a b", good, access.SSHKeyOptions{}, "begins with a letter or digit"},
		{"ci", "", access.SSHKeyOptions{}, "this is no public key"},
		{"ci", "ssh-ed25519 AAAA", access.SSHKeyOptions{}, "this is no public key"},
		{"ci", private, access.SSHKeyOptions{}, "this is a private key"},
		{"ci", "cert-authority " + good, access.SSHKeyOptions{}, "the options in front of a key, such as \"cert-authority\""},
		{"ci", good + good, access.SSHKeyOptions{}, "there is more than one key"},
		{"ci", line(&weak.PublicKey), access.SSHKeyOptions{}, "an RSA key of 1024 bits is not safe"},
		{"ci", string(ssh.MarshalAuthorizedKey(cert)), access.SSHKeyOptions{}, "this is a certificate"},
		{"ci", good, access.SSHKeyOptions{Users: []string{"alice"}}, "principals are for certificates"},
		{"ci", good, access.SSHKeyOptions{Authority: true, Users: []string{""}}, "want up to 64, none empty"},
	} {
		_, err := access.NewSSHKey(test.name, []byte(test.text), onMain, test.opts)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q with %+v: %v, want %q", test.text, test.opts, err, test.want)
		}
	}
	if _, err := access.NewSSHKey("ci", []byte(good), nil, access.SSHKeyOptions{}); err == nil || !strings.Contains(err.Error(), "it has 0 rights") {
		t.Errorf("without rights: %v", err)
	}
}
