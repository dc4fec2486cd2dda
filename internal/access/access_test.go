package access_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"firn/internal/access"
	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/internal/catalog/sqlite"
	"firn/internal/memo"
)

// counted is a catalog that counts questions, and can fail.
type counted struct {
	*sqlite.Catalog
	questions int
	fail      error
	vague     bool // it cannot tell its version
}

func (c *counted) TokenByHash(ctx context.Context, hash catalog.Sum) (*catalog.Token, error) {
	c.questions++
	if c.fail != nil {
		return nil, c.fail
	}
	return c.Catalog.TokenByHash(ctx, hash)
}

func (c *counted) Version(ctx context.Context) memo.Version {
	if c.vague {
		return memo.Version{}
	}
	return c.Catalog.Version(ctx)
}

type tester struct {
	*testing.T
	catalog *counted
	access  *access.Access
}

func openCatalog(tb testing.TB) *sqlite.Catalog {
	tb.Helper()
	c, err := sqlite.Open(context.Background(), filepath.Join(tb.TempDir(), "catalog.db"), sqlite.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := c.Close(); err != nil {
			tb.Error(err)
		}
	})
	return c
}

func newTester(t *testing.T, opts access.Options) *tester {
	c := &counted{Catalog: openCatalog(t)}
	return &tester{t, c, access.New(c, c, opts)}
}

// token makes a token and returns its secret.
func (t *tester) token(name string, expires time.Time, grants ...catalog.Grant) string {
	t.Helper()
	if grants == nil {
		grants = []catalog.Grant{{Pattern: "main", Rights: uint8(cache.Push)}}
	}
	secret, record, err := access.NewToken(name, grants, expires)
	if err != nil {
		t.Fatal(err)
	}
	if err := t.catalog.AddToken(t.Context(), record); err != nil {
		t.Fatal(err)
	}
	return secret
}

var here = netip.MustParseAddr("192.0.2.1")

// want checks who sends a header: the name of a principal, "nobody" for a 401, "slow" for a wait.
func (t *tester) want(header string, from netip.Addr, want string) {
	t.Helper()
	p, err := t.access.Authenticate(t.Context(), header, from)
	var slow *cache.TooOftenError
	var got string
	switch {
	case errors.Is(err, cache.ErrUnauthenticated):
		got = "nobody"
	case errors.As(err, &slow):
		got = "slow"
		if slow.Wait <= 0 {
			t.Errorf("has to wait %s", slow.Wait)
		}
	case err != nil:
		t.Fatal(err)
	default:
		got = p.Name()
	}
	if got != want {
		t.Errorf("%q from %s is %q, %v, want %q", header, from, got, err, want)
	}
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

func TestHeaders(t0 *testing.T) {
	t := newTester(t0, access.Options{Burst: 1000})
	secret := t.token("ci", time.Time{})
	if len(secret) != 48 || !strings.HasPrefix(secret, "firn_") {
		t.Errorf("the secret is %q", secret)
	}
	for _, test := range []struct{ header, want string }{
		{"", ""},
		{"Bearer " + secret, "ci"},
		{"bearer   " + secret + " ", "ci"},
		{basic("", secret), "ci"},
		{basic("anybody", secret), "ci"},
		{"BASIC " + strings.TrimRight(basic("anybody", secret)[6:], "="), "ci"},
		{basic(secret, ""), "nobody"},
		{basic("a", "b:"+secret), "nobody"},
		{basic("a", secret+" "), "nobody"},
		{basic("a", ""), "nobody"},
		{"Basic " + secret, "nobody"},
		{"Basic %", "nobody"},
		{"Basic", "nobody"},
		{"Bearer", "nobody"},
		{"Bearer " + secret[:47], "nobody"},
		{"Bearer " + secret[5:], "nobody"},
		{"Bearer " + strings.ToUpper(secret), "nobody"},
		{"Digest " + secret, "nobody"},
		{secret, "nobody"},
		{" ", "nobody"},
		{basic(strings.Repeat("u", 2000), secret), "nobody"},
	} {
		t.want(test.header, here, test.want)
	}
}

// A request with a token that is known costs no question, until something changes; then it is asked for anew.
func TestMemory(t0 *testing.T) {
	t := newTester(t0, access.Options{})
	secret := t.token("ci", time.Time{})
	for range 3 {
		t.want("Bearer "+secret, here, "ci")
	}
	if t.catalog.questions != 1 {
		t.Errorf("three requests asked %d times", t.catalog.questions)
	}
	t.token("other", time.Time{})
	t.want("Bearer "+secret, here, "ci")
	if t.catalog.questions != 2 {
		t.Errorf("after a change it was asked %d times", t.catalog.questions)
	}
	if err := t.catalog.RevokeToken(t.Context(), "ci"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		t.want("Bearer "+secret, here, "nobody")
	}

	// A catalog that cannot tell whether something changed is asked each time.
	secret = t.token("ci", time.Time{})
	t.catalog.vague, t.catalog.questions = true, 0
	t.want("Bearer "+secret, here, "ci")
	t.want("Bearer "+secret, here, "ci")
	if t.catalog.questions != 2 {
		t.Errorf("without a version it was asked %d times", t.catalog.questions)
	}
}

// That the catalog cannot be asked is no failure of the client.
func TestUnavailable(t0 *testing.T) {
	t := newTester(t0, access.Options{Burst: 1, Pause: time.Hour})
	t.catalog.fail = catalog.ErrUnavailable
	for range 3 {
		_, err := t.access.Authenticate(t.Context(), "Bearer x", here)
		if !errors.Is(err, cache.ErrUnavailable) || errors.Is(err, cache.ErrUnauthenticated) {
			t.Errorf("the error is %v", err)
		}
	}
	t.catalog.fail = nil
	t.want("Bearer x", here, "nobody")
	t.want("Bearer x", here, "slow")
}

func TestExpiry(t0 *testing.T) {
	synctest.Test(t0, func(t0 *testing.T) {
		t := newTester(t0, access.Options{})
		secret := t.token("ci", time.Now().Add(time.Hour))
		forever := t.token("forever", time.Time{})
		t.want("Bearer "+secret, here, "ci")
		time.Sleep(time.Hour - time.Second)
		t.want("Bearer "+secret, here, "ci")
		time.Sleep(time.Second)
		t.want("Bearer "+secret, here, "nobody")
		t.want("Bearer "+forever, here, "forever")
	})
}

func TestSlowdown(t0 *testing.T) {
	synctest.Test(t0, func(t0 *testing.T) {
		const burst, pause = 5, 10 * time.Second
		t := newTester(t0, access.Options{Burst: burst, Pause: pause})
		secret := t.token("ci", time.Time{})
		for range burst {
			t.want("Bearer wrong", here, "nobody")
		}
		for range 3 {
			t.want("Bearer wrong", here, "slow")
			t.want("Bearer "+secret, here, "ci") // somebody else behind the same proxy
			t.want("", here, "")
		}
		t.want("Bearer wrong", netip.MustParseAddr("::ffff:192.0.2.1"), "slow") // the same
		time.Sleep(pause)
		t.want("Bearer wrong", here, "nobody")
		t.want("Bearer wrong", here, "slow")
		time.Sleep(burst * pause)
		for range burst {
			t.want("Bearer wrong", here, "nobody")
		}
		t.want("Bearer wrong", here, "slow")

		// Of an IPv6 network each client has as many addresses as it likes.
		for i := range burst {
			t.want("Bearer wrong", netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i)), "nobody")
		}
		t.want("Bearer wrong", netip.MustParseAddr("2001:db8::ffff:1"), "slow")
		t.want("Bearer wrong", netip.MustParseAddr("2001:db8::1%eth0"), "slow")

		// Without an address, as over a Unix socket, all share one count.
		for range burst {
			t.want("Bearer wrong", netip.Addr{}, "nobody")
		}
		t.want("Bearer wrong", netip.Addr{}, "slow")
		t.want("Bearer "+secret, netip.Addr{}, "ci")
	})
}

// Whoever waits as long as is said may fail again.
func TestWait(t0 *testing.T) {
	synctest.Test(t0, func(t0 *testing.T) {
		t := newTester(t0, access.Options{})
		var slow *cache.TooOftenError
		for slow == nil {
			_, err := t.access.Authenticate(t.Context(), "Bearer wrong", here)
			errors.As(err, &slow)
		}
		time.Sleep(slow.Wait)
		t.want("Bearer wrong", here, "nobody")
	})
}

func TestRights(t0 *testing.T) {
	t := newTester(t0, access.Options{})
	const read, push, admin = cache.Read, cache.Push, cache.Admin
	secret := t.token("ci", time.Time{},
		catalog.Grant{Pattern: "team-*", Rights: uint8(read)},
		catalog.Grant{Pattern: "team-a", Rights: uint8(push)},
		catalog.Grant{Pattern: "[xy]", Rights: uint8(admin)},
	)
	p, err := t.access.Authenticate(t.Context(), "Bearer "+secret, here)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		cache string
		may   cache.Rights
	}{
		{"team-a", read | push}, {"team-b", read}, {"team-", read}, {"team", 0}, {"main", 0}, {"x", read | push | admin}, {"xy", 0}, {"", 0},
	} {
		for rights := range read | push | admin + 1 {
			if got, want := p.May(rights, test.cache), rights&^test.may == 0; got != want {
				t.Errorf("may %03b in %s: %t, want %t", rights, test.cache, got, want)
			}
		}
	}
}

func TestNewToken(t *testing.T) {
	some := []catalog.Grant{{Pattern: "*", Rights: uint8(cache.Read)}}
	for _, test := range []struct {
		name   string
		grants []catalog.Grant
		want   string
	}{
		{"", some, "make token: the name of a token has 0 bytes, want 1 to 64"},
		{strings.Repeat("n", 65), some, "make token: the name of a token has 65 bytes, want 1 to 64"},
		{"-n", some, "make token: the name of a token begins with a letter or digit, and has letters, digits, -, _, . and @"},
		{"n\x1b", some, "make token: the name of a token begins with a letter or digit, and has letters, digits, -, _, . and @"},
		{"n", nil, "make token n: it has 0 rights, want 1 to 64"},
		{"n", make([]catalog.Grant, 65), "make token n: it has 65 rights, want 1 to 64"},
		{"n", []catalog.Grant{{Pattern: "["}}, `make token n: "[" is not a pattern of cache names, such as main, team-* or *`},
		{"n", []catalog.Grant{{}}, `make token n: "" is not a pattern of cache names, such as main, team-* or *`},
	} {
		if _, _, err := access.NewToken(test.name, test.grants, time.Time{}); err == nil || err.Error() != test.want {
			t.Errorf("%q: %v, want %s", test.name, err, test.want)
		}
	}
}

// Many at once, with changes between, for the race detector.
func TestAtOnce(t0 *testing.T) {
	t := newTester(t0, access.Options{})
	a := access.New(t.catalog.Catalog, t.catalog, access.Options{})
	secret := t.token("ci", time.Time{})
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 100 {
				if p, err := a.Authenticate(t.Context(), "Bearer "+secret, here); err != nil || p.Name() != "ci" {
					t.Errorf("%v, %v", p, err)
				}
				_, err := a.Authenticate(t.Context(), "Bearer wrong", here)
				var slow *cache.TooOftenError
				if !errors.Is(err, cache.ErrUnauthenticated) && !errors.As(err, &slow) {
					t.Errorf("wrong: %v", err)
				}
			}
		})
	}
	for i := range 20 {
		t.token(fmt.Sprint("other", i), time.Time{})
	}
	group.Wait()
}

func BenchmarkKnown(b *testing.B) {
	c := openCatalog(b)
	a := access.New(c, c, access.Options{})
	secret, record, err := access.NewToken("ci", []catalog.Grant{{Pattern: "*"}}, time.Time{})
	if err == nil {
		err = c.AddToken(b.Context(), record)
	}
	if err != nil {
		b.Fatal(err)
	}
	header := basic("anybody", secret)
	for b.Loop() {
		if _, err := a.Authenticate(b.Context(), header, here); err != nil {
			b.Fatal(err)
		}
	}
}
