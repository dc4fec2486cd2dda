package server

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"firn/internal/cache"
)

// maxHops bounds how many proxies of one request are looked at.
const maxHops = 32

// Proxies are trusted to say for which client they ask. Any other client could name any address.
type Proxies struct {
	Ranges []netip.Prefix
	Unix   bool // all that ask through a Unix socket
}

// An origin is where a request comes from, and how the client wrote its URL. What trusted proxies say of
// that counts.
type origin struct {
	addr   netip.Addr // of the client; the zero Addr if it has none, such as one on a Unix socket
	scheme string     // "http" or "https"; "" if that is not known
	host   string     // "" if only the request itself has it
	prefix string     // that a proxy has removed from the paths that the client asks for
}

// originOf returns where a request comes from.
func (s *Server) originOf(r *http.Request) origin {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	peer, _ := netip.ParseAddr(host) // of a Unix socket there is none
	o := origin{addr: peer.Unmap().WithZone("")}
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	unix := local != nil && local.Network() == "unix"
	switch {
	case r.TLS != nil:
		o.scheme = "https"
	case !unix:
		o.scheme = "http"
	}
	if unix && !s.proxies.Unix || !unix && !s.proxies.have(o.addr) {
		return o
	}

	said := r.Header["X-Forwarded-For"]
	hops := forwardedHops(r.Header["Forwarded"])
	switch {
	case said != nil && hops != nil:
		// A proxy that knows one of the two headers passes the other on as its client wrote it.
		if a, b := s.client(o.addr, split(said)), s.client(o.addr, addresses(hops)); a == b {
			o.addr = a
		}
	case said != nil:
		o.addr = s.client(o.addr, split(said))
	case hops != nil:
		o.addr = s.client(o.addr, addresses(hops))
	}

	var first hop
	if hops != nil && said == nil {
		first = hops[0]
	}
	header := func(name, other string) string {
		value, _, _ := strings.Cut(r.Header.Get(name), ",") // the proxy nearest to the client
		if value = strings.TrimSpace(value); value == "" {
			return other
		}
		return value
	}
	if scheme := strings.ToLower(header("X-Forwarded-Proto", first.proto)); scheme == "http" || scheme == "https" {
		o.scheme = scheme
	}
	if host := header("X-Forwarded-Host", first.host); hostPattern.MatchString(host) {
		o.host = host
	}
	if prefix := strings.TrimRight(header("X-Forwarded-Prefix", ""), "/"); prefixPattern.MatchString(prefix) {
		o.prefix = prefix
	}
	return o
}

// client returns the address of the client for logs: with its port if no proxy is between.
func (o origin) client(r *http.Request) string {
	if !o.addr.IsValid() || strings.HasPrefix(r.RemoteAddr, o.addr.String()+":") || strings.HasPrefix(r.RemoteAddr, "["+o.addr.String()+"]:") {
		return r.RemoteAddr
	}
	return o.addr.String()
}

// have reports whether an address is that of a proxy.
func (p Proxies) have(addr netip.Addr) bool {
	return slices.ContainsFunc(p.Ranges, func(r netip.Prefix) bool { return r.Contains(addr) })
}

// client returns the address for which peer asks, given the addresses that it passes on, the nearest
// last: the last that is not a proxy's.
func (s *Server) client(peer netip.Addr, said []string) netip.Addr {
	for _, text := range slices.Backward(said[max(0, len(said)-maxHops):]) {
		addr, err := netip.ParseAddr(bare(text))
		if err != nil {
			break // such as "unknown"
		}
		peer = addr.Unmap().WithZone("")
		if !s.proxies.have(peer) {
			break
		}
	}
	return peer
}

// bare returns an address without brackets and port.
func bare(text string) string {
	if host, _, err := net.SplitHostPort(text); err == nil {
		return host
	}
	return strings.Trim(text, "[]")
}

// split returns the elements of lists that are separated by commas.
func split(lists []string) (all []string) {
	for _, list := range lists {
		for text := range strings.SplitSeq(list, ",") {
			all = append(all, strings.TrimSpace(text))
		}
	}
	return all
}

// A hop is one element of a Forwarded header.
type hop struct{ addr, proto, host string }

func addresses(hops []hop) []string {
	all := make([]string, len(hops))
	for i, h := range hops {
		all[i] = h.addr
	}
	return all
}

// forwardedHops parses Forwarded headers, RFC 7239:
// for=192.0.2.60;proto=https, for="[2001:db8::17]:4711". It returns nil if there are none, or if one is
// malformed, as half of a header cannot be trusted.
func forwardedHops(lists []string) []hop {
	var hops []hop
	for _, list := range lists {
		hops = append(hops, hop{})
		for rest := list; rest != ""; {
			name, value, ok := strings.Cut(rest, "=")
			if !ok {
				return nil
			}
			if value, rest, ok = parameter(value); !ok {
				return nil
			}
			h := &hops[len(hops)-1]
			switch strings.ToLower(strings.TrimSpace(name)) {
			case "for":
				h.addr = value
			case "proto":
				h.proto = value
			case "host":
				h.host = value
			}
			rest = strings.TrimLeft(rest, " \t")
			if rest == "" {
				break
			}
			if rest[0] == ',' {
				hops = append(hops, hop{})
			}
			rest = rest[1:]
		}
	}
	return hops
}

// parameter splits s into the value at its front, a token or a string in quotes, and the rest, which
// begins with a comma or a semicolon.
func parameter(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		i := strings.IndexAny(s, ",;")
		if i < 0 {
			i = len(s)
		}
		return strings.TrimSpace(s[:i]), s[i:], true
	}
	var text strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			rest = strings.TrimLeft(s[i+1:], " \t")
			return text.String(), rest, rest == "" || rest[0] == ',' || rest[0] == ';'
		case '\\':
			i++
		}
		if i < len(s) {
			text.WriteByte(s[i])
		}
	}
	return "", "", false
}

// redirected redirects a request without TLS to the same URL with TLS, if the server is configured to,
// and reports whether it did. The URLs of the server, which monitors ask for, are answered either way,
// and so is a request of which the scheme is not known.
//
// An upload is refused: not every Nix can send it again to another place, and those that can would go on
// sending their token in the clear.
func (s *Server) redirected(x *exchange) (bool, error) {
	if !s.https || x.r.TLS != nil || x.target.route.ofServer() {
		return false, nil
	}
	exposed := x.r.Header["Authorization"] != nil
	if s.httpsPort == 0 && !exposed {
		return false, nil
	}
	o := s.originOf(x.r)
	if o.scheme != "http" {
		return false, nil
	}
	if exposed && !o.addr.IsLoopback() {
		s.audit.Exposed(s.auditClient(x))
	}
	if s.httpsPort == 0 {
		return false, nil
	}
	if !hostPattern.MatchString(x.r.Host) {
		return true, cache.Refuse(cache.ErrInvalid, "this needs the name of the host, and https")
	}
	host := x.r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.Trim(host, "[]")
	if s.httpsPort != 443 {
		host = net.JoinHostPort(host, strconv.Itoa(s.httpsPort))
	} else if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if x.r.Method == http.MethodPut {
		text := "nothing is uploaded over plain HTTP here: push to https://" + host
		if x.target.cache != "" {
			text += "/" + x.target.cache
		}
		if exposed {
			text += "; the token was sent in the clear, where others on the way can read it: make a new one"
		}
		return true, cache.Refuse(cache.ErrDenied, "%s", text)
	}
	x.w.Header()["Location"] = []string{"https://" + host + x.r.URL.RequestURI()}
	return true, x.answer(http.StatusPermanentRedirect, typeText, cacheNever, []byte("it is served with https only\n"))
}
