package server

import (
	"net/url"
	"strings"
	"time"

	"firn/internal/cache"
	"firn/internal/logs"
	"firn/nix"
)

// statusGone stands for the status of a request whose client was gone before an answer began, as in logs
// of nginx.
const statusGone = 499

// record returns an exchange as the log of requests has it.
func (s *Server) record(x *exchange, start time.Time) *logs.Request {
	r := &logs.Request{
		Time:     start,
		Method:   x.r.Method,
		URI:      x.loggedURI(),
		Proto:    x.r.Proto,
		Status:   x.status,
		Bytes:    x.sent,
		Referer:  withoutSecrets(x.r.Referer()),
		Agent:    x.r.UserAgent(),
		Host:     x.r.Host,
		Route:    x.label().String(),
		Duration: time.Since(start),
		Aborted:  x.aborted,
	}
	if r.Status == 0 {
		r.Status = statusGone
	}
	if addr := s.originOf(x.r).addr; addr.IsValid() {
		r.Remote = addr.String()
	}
	if x.who != nil && x.who != cache.Anybody {
		r.User = x.who.Name()
	}
	if x.cache != nil {
		r.Cache = x.cache.Name()
	}
	return r
}

// loggedURI returns the URL without what a person may have put into it by mistake: a name and password, or
// a token in the query. The queries that the server knows stay, and so does the part of the name of a
// derivation that looks like a query.
func (x *exchange) loggedURI() string {
	path, query := x.r.URL.EscapedPath(), x.r.URL.RawQuery
	switch {
	case query == "":
		return path
	case query == "json" || isPathHash(query):
		return path + "?" + query
	case x.target.route == routeLog && x.cache != nil:
		if _, err := x.logged(); err == nil {
			return path + "?" + query
		}
	}
	return path + "?..."
}

// isPathHash reports whether a query is the one that harmonia puts behind the URL of a NAR.
func isPathHash(query string) bool {
	hash, ok := strings.CutPrefix(query, "hash=")
	_, err := nix.ParsePathHash(hash)
	return ok && err == nil
}

// withoutSecrets returns a URL, as of a Referer, without its name, password and query.
func withoutSecrets(text string) string {
	if text == "" {
		return ""
	}
	u, err := url.Parse(text)
	if err != nil || u.Opaque != "" {
		return ""
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String()
}
