package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// maxAddresses is how many addresses of a host are tried.
	maxAddresses = 8
	// connectPatience is how long one of them may take: a little more than a client since Nix 2.31 waits.
	connectPatience = 6 * time.Second
	// soon is how long before their end certificates should have been renewed: authorities advise a third of 90 days.
	soon = 14 * 24 * time.Hour
)

// checkName looks the host up.
func (e *examination) checkName(ctx context.Context) Finding {
	host := e.site.Base.Hostname()
	probe := &http.Request{URL: e.site.Base}
	if proxy, err := http.ProxyFromEnvironment(probe); err == nil && proxy != nil {
		e.proxy = proxy.Host
		return skip("requests go through the proxy %s, which looks names up", e.proxy)
	}
	port := e.site.Base.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[e.site.Base.Scheme]
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		e.addresses = []string{net.JoinHostPort(ip.String(), port)}
		return ok("%s is an address", host)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, e.opts.Patience, errSlow)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		dns, is := errors.AsType[*net.DNSError](err)
		if is && dns.IsNotFound {
			return fail(fmt.Sprintf("there is no host named %s", host), "look for a spelling mistake in the URL, and at the name servers of this machine")
		}
		return fail(fmt.Sprintf("%s cannot be looked up: %v", host, why(ctx, err)), "look at the network and the name servers of this machine")
	}
	var four, six []string
	for _, ip := range found {
		ip = ip.Unmap()
		list := &six
		if ip.Is4() {
			list = &four
		}
		if !slices.Contains(*list, ip.String()) {
			*list = append(*list, ip.String())
		}
	}
	all := append(four, six...)
	if len(all) > maxAddresses {
		all = append(four[:min(len(four), maxAddresses/2)], six[:min(len(six), maxAddresses/2)]...)
	}
	for _, ip := range all {
		e.addresses = append(e.addresses, net.JoinHostPort(ip, port))
	}
	return ok("%s is %s", host, strings.Join(all, ", "))
}

// checkConnect connects to each address.
func (e *examination) checkConnect(ctx context.Context) Finding {
	if e.proxy != "" {
		return skip("requests go through the proxy %s", e.proxy)
	}
	errs := make([]error, len(e.addresses))
	var all sync.WaitGroup
	for i, address := range e.addresses {
		all.Go(func() {
			dialer := net.Dialer{Timeout: connectPatience}
			conn, err := dialer.DialContext(ctx, "tcp", address)
			if err == nil {
				conn.Close()
			}
			errs[i] = err
		})
	}
	all.Wait()
	var deaf []string
	var mine bool // it is this machine that has no way there
	for i, address := range e.addresses {
		switch err := errs[i]; {
		case err == nil:
			e.reachable = append(e.reachable, address)
		case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EAFNOSUPPORT):
			mine = true
			deaf = append(deaf, address+" is in a network that this machine has no way to")
		default:
			deaf = append(deaf, fmt.Sprintf("%s does not answer: %v", address, dialError(err)))
		}
	}
	switch {
	case len(e.reachable) == 0 && mine:
		return fail(strings.Join(deaf, "; "), "look at the network of this machine")
	case len(e.reachable) == 0:
		return fail(strings.Join(deaf, "; "), "is the server running, does it listen at this address and port and not at 127.0.0.1 only, and does a firewall let clients through?")
	case len(deaf) > 0 && mine:
		return ok("%s; but %s", answers(e.reachable), strings.Join(deaf, "; "))
	case len(deaf) > 0:
		return warn(answers(e.reachable)+"; but "+strings.Join(deaf, "; "), "some clients try that address first, and wait: have the server listen there too, or take the address out of the DNS")
	}
	return ok("%s", answers(e.reachable))
}

func answers(addresses []string) string {
	if len(addresses) == 1 {
		return addresses[0] + " answers"
	}
	return strings.Join(addresses, ", ") + " answer"
}

// dialError is what went wrong, without the address.
func dialError(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
	}
	if sys, ok := errors.AsType[syscall.Errno](err); ok {
		return sys
	}
	return err
}

// checkCertificate looks at the certificate of each address.
func (e *examination) checkCertificate(ctx context.Context) Finding {
	if e.site.Base.Scheme != "https" {
		e.trusted = true
		return skip("there is none over http: signatures protect what is fetched, and nothing the tokens that are sent")
	}
	if e.proxy != "" {
		e.trusted = true
		return skip("requests go through the proxy %s; a bad one shows as an error below", e.proxy)
	}
	var complaints []Finding
	var good Finding
	e.trusted = true
	for _, address := range e.reachable {
		f := e.certificateAt(ctx, address)
		if f.Verdict == Fail {
			e.trusted = false
		}
		if f.Verdict == OK {
			good = f
			continue
		}
		if len(e.reachable) > 1 {
			f.Seen = "at " + address + " " + f.Seen
		}
		complaints = append(complaints, f)
	}
	return worst(good, complaints)
}

func (e *examination) certificateAt(ctx context.Context, address string) Finding {
	host := e.site.Base.Hostname()
	ctx, cancel := context.WithTimeoutCause(ctx, e.opts.Patience, errSlow)
	defer cancel()
	dialer := tls.Dialer{Config: &tls.Config{
		ServerName:         host,
		MinVersion:         tls.VersionTLS10, // what is too old is a finding
		NextProtos:         []string{"h2", "http/1.1"},
		InsecureSkipVerify: true, // it is looked at below, and nothing is sent
	}}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		var record tls.RecordHeaderError
		if errors.As(err, &record) {
			return fail("the server does not speak TLS there", "use http:// in front of the URL, or the port that the server has for HTTPS")
		}
		return fail(fmt.Sprintf("the server speaks no TLS that this program does: %v", dialError(why(ctx, err))), "look at the certificate and the TLS settings of the server, and at its logs")
	}
	defer conn.Close()
	state := conn.(*tls.Conn).ConnectionState()
	if state.Version < tls.VersionTLS12 {
		return fail(fmt.Sprintf("the server speaks %s, which clients refuse", tls.VersionName(state.Version)), "let it speak TLS 1.2 and 1.3")
	}
	leaf := state.PeerCertificates[0]
	now := e.opts.Now()
	issuer := shown(leaf.Issuer.CommonName)
	switch err := leaf.VerifyHostname(host); {
	case now.After(leaf.NotAfter):
		return fail(fmt.Sprintf("the certificate was good until %s", day(leaf.NotAfter)), "renew it, and have the server load it")
	case now.Before(leaf.NotBefore):
		return fail(fmt.Sprintf("the certificate is good from %s on", day(leaf.NotBefore)), "look at the clocks of this machine and of who made it")
	case err != nil:
		return fail(fmt.Sprintf("the certificate is for %s, and not for %s", names(leaf), host), "use one of these names in the URL, or get a certificate for this one")
	}
	pool := x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		pool.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: e.opts.Roots, Intermediates: pool, CurrentTime: now}); err != nil {
		switch {
		case leaf.CheckSignatureFrom(leaf) == nil, len(state.PeerCertificates) == 1 && leaf.Issuer.String() == leaf.Subject.String():
			return fail("the certificate is signed by itself, not by an authority that this machine trusts", "get one from an authority, or give it to clients with ssl-cert-file in nix.conf")
		case len(state.PeerCertificates) == 1:
			return fail(fmt.Sprintf("the server sends one certificate, made by %s, and this machine does not know who that is", issuer),
				"have the server send the certificates between its own and the authority's too (the full chain); or give the authority's to clients with ssl-cert-file in nix.conf")
		}
		return fail(fmt.Sprintf("the certificate, made by %s, does not lead to an authority that this machine trusts: %v", issuer, err),
			"give the authority's certificate to clients with ssl-cert-file in nix.conf, or get one from an authority that they know")
	}
	if left, life := leaf.NotAfter.Sub(now), leaf.NotAfter.Sub(leaf.NotBefore); left < min(soon, life/6) {
		return warn(fmt.Sprintf("the certificate is good until %s only", day(leaf.NotAfter)), "see why it was not renewed yet")
	}
	return ok("%s, for %s by %s, until %s", tls.VersionName(state.Version), host, issuer, day(leaf.NotAfter))
}

// names are those that a certificate is for.
func names(c *x509.Certificate) string {
	all := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	if len(all) == 0 {
		return "no name"
	}
	return shown(strings.Join(all, ", "))
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }
