// Package remote has what every client of other binary caches needs: where a cache is, who asks it, where
// a narinfo may lead, which redirects are followed, and what this machine's Nix is configured to use.
package remote

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"firn/internal/cache"
)

// maxRedirects is how many a client of Nix follows.
const maxRedirects = 10

// A Site is where a cache is, and who asks it.
type Site struct {
	Base *url.URL      // ends with a slash; no user, or else errors would show it
	User *url.Userinfo // nil: nobody in particular
}

// ParseSite takes a URL apart. netrc is a file with users and passwords, as curl and Nix read it; "": none. What is in the URL wins.
func ParseSite(u *url.URL, netrc string) (Site, error) {
	if u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return Site{}, fmt.Errorf("%w: want http://HOST/PATH", cache.ErrInvalid)
	}
	base := *u
	base.User = nil
	base.Path = strings.TrimSuffix(base.Path, "/") + "/"
	base.RawPath = ""
	user := u.User
	if user == nil && netrc != "" {
		var err error
		if user, err = Login(netrc, u.Hostname()); err != nil {
			return Site{}, err
		}
	}
	return Site{Base: &base, User: user}, nil
}

// Resolve returns where a file is. A narinfo must not lead to another host: its author need not be who runs this one.
func (s Site) Resolve(name string) (*url.URL, error) {
	u, err := s.Base.Parse(name)
	if err != nil || u.Scheme != s.Base.Scheme || u.Host != s.Base.Host {
		return nil, fmt.Errorf("%w: %q leads to another host than %s", cache.ErrInvalid, name, s.Base.Host)
	}
	u.User, u.Fragment = nil, ""
	return u, nil
}

// Authorize says in a request who asks.
func (s Site) Authorize(r *http.Request) {
	if s.User != nil {
		password, _ := s.User.Password()
		r.SetBasicAuth(s.User.Username(), password)
	}
}

// CheckRedirect is for [http.Client]. Its errors are ErrInvalid. Who asks is told to the first host only, and not, as the client would, to those below it too.
func CheckRedirect(r *http.Request, via []*http.Request) error {
	if r.URL.Host != via[0].URL.Host {
		r.Header.Del("Authorization")
	}
	switch {
	case len(via) > maxRedirects:
		return fmt.Errorf("%w: more than %d redirects", cache.ErrInvalid, maxRedirects)
	case via[0].URL.Scheme == "https" && r.URL.Scheme != "https":
		return fmt.Errorf("%w: %s redirects to a URL that is not https", cache.ErrInvalid, via[0].URL.Host)
	}
	return nil
}
