package access_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"firn/internal/access"
	"firn/internal/catalog"
	"firn/internal/catalog/sqlite"
)

// noting counts what is written.
type noting struct {
	*sqlite.Catalog
	writes atomic.Int64
}

func (n *noting) NoteUses(ctx context.Context, uses []catalog.Use) error {
	n.writes.Add(int64(len(uses)))
	return n.Catalog.NoteUses(ctx, uses)
}

// When a credential was used is written some minutes later at the most, once for all requests of
// that time, and what is left at the end.
func TestUses(t0 *testing.T) {
	synctest.Test(t0, func(t0 *testing.T) {
		t := newTester(t0, access.Options{})
		n := &noting{Catalog: t.catalog.Catalog}
		t.access = access.New(n, n, access.Options{})
		ctx, end := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			t.access.RunUses(ctx, func(err error) { t.Error(err) })
		}()
		secret, key := t.token("ci", time.Time{}), newSigner(t).PublicKey()
		t.token("other", time.Time{})
		t.addKey("builder", key, access.SSHKeyOptions{})
		used := func() time.Time {
			t.Helper()
			all, err := t.catalog.AllTokens(t.Context())
			if err != nil || !all[1].Used.IsZero() {
				t.Fatalf("the other token was used at %v, %v", all[1].Used, err)
			}
			return all[0].Used
		}

		// A key that is offered, and a wrong token, are no use.
		if _, err := t.access.SSHKey(t.Context(), key, "main"); err != nil {
			t.Fatal(err)
		}
		t.want("Bearer wrong", here, "nobody")
		time.Sleep(time.Minute)
		if n.writes.Load() != 0 || !used().IsZero() {
			t.Fatalf("%d writes before anything was used", n.writes.Load())
		}

		begin := time.Now().Truncate(time.Second)
		for range 600 { // ten minutes
			t.want("Bearer "+secret, here, "ci")
			time.Sleep(time.Second)
		}
		if w := n.writes.Load(); w < 2 || w > 3 {
			t.Errorf("%d writes in ten minutes", w)
		}
		if got := used(); got.Before(begin) || time.Since(got) > 6*time.Minute {
			t.Errorf("used at %v, and it is %v", got, time.Now())
		}
		time.Sleep(10 * time.Second) // more exactly it is not known
		last := time.Now().Truncate(time.Second)
		t.want("Bearer "+secret, here, "ci")
		who, err := t.access.SSHKey(t.Context(), key, "main")
		if err != nil {
			t.Fatal(err)
		}
		t.access.Used(who)
		end()
		<-ended
		if got := used(); !got.Equal(last) {
			t.Errorf("used at %v, want %v", got, last)
		}
		k, err := t.catalog.SSHKey(t.Context(), ssh.PublicKey(key).Marshal())
		if err != nil || !k.Used.Equal(last) {
			t.Errorf("the key was used at %v, %v, want %v", k.Used, err, last)
		}
	})
}

// Without a catalog nothing is noted, and that is told.
func TestUsesUnwritten(t0 *testing.T) {
	synctest.Test(t0, func(t0 *testing.T) {
		t := newTester(t0, access.Options{})
		secret := t.token("ci", time.Time{})
		t.want("Bearer "+secret, here, "ci")
		if err := t.catalog.Close(); err != nil {
			t.Fatal(err)
		}
		ctx, end := context.WithCancel(t.Context())
		end()
		var failed error
		t.access.RunUses(ctx, func(err error) { failed = err })
		if !errors.Is(failed, catalog.ErrUnavailable) {
			t.Errorf("error %v", failed)
		}
	})
}
