package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"firn/internal/cache"
	"firn/internal/fairlimit"
	"firn/internal/server/connlimit"
)

const (
	// mostStreams is how many requests may be answered at once over one connection of HTTP/2. curl, and
	// so Nix, sends up to 100.
	mostStreams = 250

	// mostRequests is how many requests are answered at once over all connections of HTTP/2, half of
	// them to one address. One that waits takes some 16 KB of memory, so these may take as much as the
	// most connections that there can be, which could have 250 times as many requests together.
	mostRequests = 16 << 10
	// fewRequests at once, over HTTP/1 as well, are more than most servers ever have: up to so many, the
	// addresses do not count.
	fewRequests = 1000

	// streamBytes is how many bytes of an upload may be on their way over HTTP/2 at once: a link of 100 ms
	// then takes 40 MB a second.
	streamBytes = 4 << 20
)

// A CertificateAuthenticator is an Authenticator that knows certificates of clients too.
type CertificateAuthenticator interface {
	// Certificate returns the principal of a client that has shown a chain of certificates. The first
	// is the client's own, and the client has proved that it has the key. Nothing else of the chain has
	// been checked. Errors are as of Authenticate.
	Certificate(ctx context.Context, chain []*x509.Certificate, remote netip.Addr) (cache.Principal, error)
}

// A Challenger answers ACME authorities, which check that a host name belongs to this server.
type Challenger interface {
	// Challenge returns the text for a token. cache.ErrNotFound if the token is not known.
	Challenge(ctx context.Context, token string) (string, error)
}

// serveChallenge answers an ACME authority, which asks over HTTP.
func (s *Server) serveChallenge(x *exchange) error {
	if s.challenger == nil {
		return x.missing("nothing here")
	}
	text, err := s.challenger.Challenge(x.r.Context(), x.target.name)
	if errors.Is(err, cache.ErrNotFound) {
		return x.missing("no certificate was requested with this token")
	}
	if err != nil {
		return fmt.Errorf("answer challenge: %w", err)
	}
	return x.bytes(typeText, cacheNever, []byte(text))
}

// protocols sets which versions of HTTP an http.Server speaks.
func (s *Server) protocols(srv *http.Server, config *tls.Config) {
	srv.Protocols = new(http.Protocols)
	srv.Protocols.SetHTTP1(true)
	if config == nil {
		return
	}
	srv.TLSConfig = config.Clone() // which net/http changes
	srv.Protocols.SetHTTP2(!s.noHTTP2)
	srv.HTTP2 = &http.HTTP2Config{
		MaxConcurrentStreams:          mostStreams,
		MaxReceiveBufferPerStream:     streamBytes,
		MaxReceiveBufferPerConnection: 2 * streamBytes,
		SendPingTimeout:               connlimit.Patience,
		WriteByteTimeout:              connlimit.Patience,
	}
}

// admit begins a request while inFlight requests are being answered. It refuses a request over HTTP/2 if
// there are too many. end ends the request, and may be nil.
func (s *Server) admit(x *exchange, inFlight int64) (end func(), err error) {
	if inFlight <= s.few || x.r.ProtoMajor < 2 {
		return nil, nil
	}
	end, ok := s.streams.TryTake(fairlimit.Address(s.originOf(x.r).addr))
	if !ok {
		return nil, fmt.Errorf("%w: too many requests at once", cache.ErrUnavailable)
	}
	return end, nil
}

// stream writes an answer over HTTP/2, and gives up on a client that receives it too slowly, as
// connlimit.Conn does over HTTP/1. Over HTTP/2 the connection goes on, and the window of the stream stays
// closed.
type stream struct {
	http.ResponseWriter
	control *http.ResponseController
	left    int // bytes until the client gets time for another slice
}

func newStream(w http.ResponseWriter) *stream {
	return &stream{ResponseWriter: w, control: http.NewResponseController(w)}
}

// Unwrap is for http.ResponseController.
func (s *stream) Unwrap() http.ResponseWriter { return s.ResponseWriter }

func (s *stream) Write(p []byte) (n int, err error) {
	for {
		if s.left <= 0 {
			if err := s.control.SetWriteDeadline(time.Now().Add(connlimit.Patience)); err != nil && !errors.Is(err, http.ErrNotSupported) {
				return n, err
			}
			s.left = connlimit.Slice
		}
		m, err := s.ResponseWriter.Write(p[n:min(n+s.left, len(p))])
		n += m
		s.left -= m
		if err != nil || n == len(p) {
			return n, err
		}
	}
}
