package certs

import (
	"context"
	"crypto/x509"
	"firn/internal/catalog/sqlite/sqlitetest"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// TestLease: of the servers of one state, one at a time asks for the certificate of a host. The
// others go on with what there is.
func TestLease(t *testing.T) {
	asked, release := make(chan struct{}, 2), make(chan struct{})
	ca := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer ca.Close()
	roots := x509.NewCertPool()
	roots.AddCert(ca.Certificate())
	notes := sqlitetest.Open(t, nil)
	node := func() *authority {
		return newAuthority(ACME{Directory: ca.URL, Email: "you@example.org", Roots: roots, Notes: notes, Leases: notes}, slog.New(slog.DiscardHandler), time.Now)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := node().certificate(ctx, "cache.example.org")
		ended <- err
	}()
	<-asked
	if cert, err := node().certificate(t.Context(), "cache.example.org"); cert != nil || err != nil {
		t.Errorf("another server got %v, %v", cert, err)
	}
	if len(asked) != 0 {
		t.Error("the authority was asked by another server at the same time")
	}
	cancel()
	close(release)
	if err := <-ended; err == nil {
		t.Error("one got a certificate from an authority that gives none")
	}
	if _, err := notes.TakeLease(t.Context(), leaseName("cache.example.org"), time.Minute); err != nil {
		t.Errorf("the lease was not given back: %v", err)
	}
}
