package server

import (
	"errors"
	"fmt"
	"net/http"

	"firn/internal/audit"
	"firn/internal/cache"
)

// find finds the cache of a request. x.cache stays nil if none has the name in the URL.
func (s *Server) find(x *exchange) (err error) {
	c, err := s.caches.ByHost(x.r.Context(), x.r.Host)
	if errors.Is(err, cache.ErrNotFound) {
		// Some proxies ask under a name of their own. A name that a cache has is never overruled: a
		// client could say another one, and a caching proxy would then give its answers to others.
		if o := s.originOf(x.r); o.host != "" {
			c, err = s.caches.ByHost(x.r.Context(), o.host)
		}
	}
	switch {
	case errors.Is(err, cache.ErrNotFound):
		return errMisdirected
	case err != nil:
		return fmt.Errorf("find cache of host: %w: %w", cache.ErrUnavailable, err)
	case x.target.cache == "":
		x.cache = c
		return nil
	}
	x.cache, err = s.caches.ByName(x.r.Context(), x.target.cache)
	if err != nil && !errors.Is(err, cache.ErrNotFound) {
		return fmt.Errorf("find cache: %w: %w", cache.ErrUnavailable, err)
	}
	return nil
}

// A client that is refused learns nothing of the cache, not even whether there is one of this name: the
// text depends on the request only.
var (
	errNoToken = cache.Refuse(cache.ErrUnauthenticated, "this needs a token: `firn token create` on the server prints one. "+
		"Put it into the file that netrc-file of nix.conf names, as: machine HOST login any password TOKEN")
	errWrongToken = cache.Refuse(cache.ErrUnauthenticated, "this token is not known, has expired, or was revoked: "+
		"`firn token create` on the server prints a new one. Put it into the file that netrc-file of nix.conf names, as: machine HOST login any password TOKEN")
	errWrongCertificate = cache.Refuse(cache.ErrUnauthenticated, "this certificate is not known, or is not valid now: "+
		"`firn token create --certificate` on the server says what one is good for")
	errMayNotRead = cache.Refuse(cache.ErrDenied, "there is no cache of this name that this token may read: `firn cache list` and `firn token list` on the server show what there is, and who may")
	errMayNotPush = cache.Refuse(cache.ErrDenied, "this token may not push here: `firn token list` on the server shows what it may, and `firn token create --push CACHE NAME` prints one that may")
)

// allow checks that the client may do what it asks. Reading a public cache needs no token, and then
// none is looked at.
func (s *Server) allow(x *exchange) error {
	need, denied, reason := cache.Read, errMayNotRead, audit.MayNotRead
	if x.r.Method == http.MethodPut {
		need, denied, reason = cache.Push, errMayNotPush, audit.MayNotPush
	}
	x.who = cache.Anybody
	if need == cache.Push && x.cache != nil && !x.cache.Keeps() && !x.cache.Private() {
		return cache.Refuse(errMethod, "this cache keeps nothing that is pushed to it")
	}
	if x.cache == nil || x.cache.Allow(x.who, need) != nil {
		who, err := s.authenticate(x)
		if err != nil {
			return err
		}
		x.who = who
	}
	switch {
	case x.cache != nil && x.cache.Allow(x.who, need) == nil:
		x.secret = x.cache.Private()
		return nil
	case x.cache == nil && x.who.May(need, x.target.cache):
		return cache.Refuse(cache.ErrNotFound, "there is no cache named %s", x.target.cache)
	case need == cache.Read && (x.target.route == routeOther || x.target.route == routeNoSlash) && x.target.cache == "",
		x.target.route == routeNoSlash:
		return cache.Refuse(cache.ErrNotFound, "nothing here")
	case x.who == cache.Anybody:
		if x.cache != nil || need == cache.Push { // else the URL has never been one here, as when a scanner looks for holes
			s.audit.Refused(s.auditClient(x), audit.NoToken, nil)
		}
		return errNoToken
	}
	s.audit.Refused(s.auditClient(x), reason, nil)
	return denied
}

// mayPush reports whether the client that reads may push here as well. A client with an unknown token
// may not, and neither may one that has to wait before it tries another token: it asks for a URL that
// needs no token, and a 429 would tell it that something is there.
func (s *Server) mayPush(x *exchange) (bool, error) {
	if x.who == cache.Anybody {
		who, err := s.authenticate(x)
		if _, tooOften := errors.AsType[*cache.TooOftenError](err); tooOften || errors.Is(err, cache.ErrUnauthenticated) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		x.who = who
	}
	return x.cache.Allow(x.who, cache.Push) == nil, nil
}

// auditClient returns the client of a request, for the audit log.
func (s *Server) auditClient(x *exchange) audit.Client {
	c := audit.Client{FrontEnd: audit.HTTP, Remote: s.originOf(x.r).addr, Cache: x.target.cache}
	if x.cache != nil {
		c.Cache = x.cache.Name()
	}
	if x.who != nil {
		c.Name = x.who.Name()
	}
	return c
}

// authenticate returns the principal of the client.
func (s *Server) authenticate(x *exchange) (cache.Principal, error) {
	who, err := s.identify(x)
	if e, ok := errors.AsType[*cache.TooOftenError](err); ok {
		s.audit.Refused(s.auditClient(x), audit.TooOften, e)
	}
	return who, err
}

func (s *Server) identify(x *exchange) (cache.Principal, error) {
	authorization := x.r.Header.Get("Authorization")
	var who cache.Principal
	var err error
	certificates, ok := s.access.(CertificateAuthenticator)
	switch {
	case s.access != nil && authorization != "":
		who, err = s.access.Authenticate(x.r.Context(), authorization, s.originOf(x.r).addr)
		if errors.Is(err, cache.ErrUnauthenticated) {
			s.audit.Refused(s.auditClient(x), audit.WrongToken, err)
			return nil, errWrongToken
		}
	case ok && x.r.TLS != nil && len(x.r.TLS.PeerCertificates) > 0:
		who, err = certificates.Certificate(x.r.Context(), x.r.TLS.PeerCertificates, s.originOf(x.r).addr)
		if errors.Is(err, cache.ErrUnauthenticated) {
			s.audit.Refused(s.auditClient(x), audit.WrongCertificate, err)
			return nil, errWrongCertificate
		}
	default:
		return cache.Anybody, nil
	}
	if err != nil {
		return nil, fmt.Errorf("authenticate: %w", err)
	}
	return who, nil
}

// forwarding are the headers of which a proxy sets at least one, unless it is told to hide itself.
var forwarding = []string{"X-Forwarded-For", "Forwarded", "X-Real-Ip", "Via", "X-Forwarded-Host", "X-Forwarded-Proto"}

// fromHere reports whether a request comes from this machine, and not through a proxy on this machine.
func (s *Server) fromHere(x *exchange) bool {
	for _, name := range forwarding {
		if len(x.r.Header.Values(name)) > 0 {
			return false
		}
	}
	return s.originOf(x.r).addr.IsLoopback()
}

// missing returns an ErrNotFound that says what is not there, unless it cannot be told whether
// anything is.
func (x *exchange) missing(what string) error {
	if x.cache != nil {
		switch any, err := x.cache.HasSources(x.r.Context()); {
		case err != nil:
			return err // clients would remember a miss
		case !any:
			what += "; this cache has nothing to serve yet"
		}
	}
	return cache.Refuse(cache.ErrNotFound, "%s", what)
}
