package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"

	"firn/internal/cache"
	"firn/internal/catalog/sqlite"
	"firn/internal/certs"
	"firn/internal/listen"
	"firn/internal/registry"
	"firn/nix"
)

// clientUnknown stands for the URL of a server that listens on Unix sockets only.
const clientUnknown = "http://… (the proxy in front of the socket)"

// A banner is what a person who starts the server wants to know.
type banner struct {
	version   string
	store     string   // is served: "the store /nix/store", empty if none is
	noStore   string   // why none is served, and what to do
	depot     bool     // something was pushed
	others    []string // the names of all caches but main
	state     string   // the state directory
	madeKey   string   // the file of the key that this start made, empty if it made none
	keys      []nix.PublicKey
	https     []net.Listener         // with TLS
	names     []string               // that certificates have, of the cache main
	covered   func(host string) bool // whether a certificate has a name
	listeners []net.Listener
	ssh       []net.Listener  // for SSH
	hostKeys  []ssh.PublicKey // of this server
}

// describe adds what the catalog and the certificates say. tls may be nil; hosts are those of all
// caches.
func (a *banner) describe(ctx context.Context, cat *sqlite.Catalog, tls *certs.Certs, hosts []string) error {
	all, err := registry.Records(ctx, cat)
	if err != nil {
		return err
	}
	for _, c := range all {
		if c.Name != cache.Main {
			a.others = append(a.others, c.Name)
		}
	}
	if tls != nil {
		hostname, _ := os.Hostname()
		a.covered = func(host string) bool { return tls.Has(host, hosts) }
		a.names = certifiedNames(all, a.covered, append([]string{hostname}, tls.Names()...))
	}
	return nil
}

// print writes it, with the lines for clients ready to copy.
func (a *banner) print(w io.Writer) error {
	var b strings.Builder
	switch {
	case a.store != "" && a.depot:
		fmt.Fprintf(&b, "firn %s serves %s and what was pushed to it at\n\n", a.version, a.store)
	case a.store != "":
		fmt.Fprintf(&b, "firn %s serves %s at\n\n", a.version, a.store)
	case a.depot:
		fmt.Fprintf(&b, "firn %s serves what was pushed to it at\n\n", a.version)
	case len(a.others) > 0:
		fmt.Fprintf(&b, "firn %s has nothing in the cache %s yet, and can be pushed to, at\n\n", a.version, cache.Main)
	default:
		fmt.Fprintf(&b, "firn %s has nothing to serve yet, and can be pushed to, at\n\n", a.version)
	}
	hostname, _ := os.Hostname() // without one, listen.URL says localhost
	var client string            // where clients find it: rather not an address that only this machine has
	type place struct {
		scheme string
		net.Listener
	}
	var places []place
	for _, l := range a.https {
		places = append(places, place{"https", l})
	}
	for _, l := range a.listeners {
		places = append(places, place{"http", l})
	}
	for _, l := range places {
		urls, missing := []string{listen.URL(l.scheme, l, hostname)}, false
		if l.scheme == "https" {
			urls, missing = a.secureURLs(l, hostname)
		}
		for _, at := range urls {
			fmt.Fprintf(&b, "  %s\n", cmp.Or(at, "unix:"+l.Addr().String()))
			if client == "" || at != "" && isLoopback(client) && !isLoopback(at) {
				client = at
			}
		}
		if missing {
			fmt.Fprintf(&b, "    No certificate has this name, so no client takes it. To get one with --acme, give the cache a host name:\n")
			fmt.Fprintf(&b, "    firn cache set %s --host NAME; or name a certificate that has it with --tls-cert and --tls-key.\n", cache.Main)
		}
	}
	if len(a.others) > 0 {
		fmt.Fprintf(&b, "\nand, at /NAME/ there, the other caches that `firn cache list` shows: %s\n", strings.Join(a.others, ", "))
	}
	a.printSSH(&b, hostname)
	if a.store == "" {
		fmt.Fprintf(&b, "\nIt serves no local store: %s.\n", a.noStore)
		if !a.depot {
			b.WriteString("To push to it, make a token, put it into the netrc-file of the Nix that pushes, and push:\n\n")
			state, err := filepath.Abs(a.state)
			if err != nil {
				state = a.state
			}
			fmt.Fprintf(&b, "  firn token create --state %s --push %s NAME\n", state, cache.Main)
			fmt.Fprintf(&b, "  nix copy --to %s PATH…\n", cmp.Or(client, clientUnknown))
		}
	}
	if a.madeKey != "" {
		fmt.Fprintf(&b, "\nIt had no signing key and made one: %s\n", a.madeKey)
	}
	b.WriteString("\nClients need these two lines in /etc/nix/nix.conf:\n\n")
	fmt.Fprintf(&b, "  extra-substituters = %s\n", cmp.Or(client, clientUnknown))
	b.WriteString("  extra-trusted-public-keys =")
	for _, key := range a.keys {
		fmt.Fprintf(&b, " %s", key)
	}
	b.WriteString("\n\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// maxNames bounds how many names of certificates are announced.
const maxNames = 5

// secureURLs are the URLs of a listener with TLS that clients take: with the names that
// certificates have. Where there is none, it is the one that clients would type, and missing is
// true.
func (a *banner) secureURLs(l net.Listener, hostname string) (urls []string, missing bool) {
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return []string{""}, false
	}
	if !addr.IP.IsUnspecified() && a.covered(addr.IP.String()) {
		return []string{listen.URL("https", l, "")}, false
	}
	for _, name := range a.names[:min(len(a.names), maxNames)] {
		urls = append(urls, listen.URLOf("https", name, addr.Port))
	}
	if len(urls) == 0 {
		return []string{listen.URL("https", l, hostname)}, true
	}
	return urls, false
}

// printSSH writes where SSH is to be had, and how clients know that it is this server.
func (a *banner) printSSH(b *strings.Builder, hostname string) {
	if len(a.ssh) == 0 {
		return
	}
	b.WriteString("\nand over SSH, for the keys that `firn sshkey list` shows, at\n\n")
	for _, l := range a.ssh {
		host, port := l.Addr().String(), ""
		if tcp, ok := l.Addr().(*net.TCPAddr); ok {
			host, port = cmp.Or(hostname, "localhost"), fmt.Sprint(tcp.Port)
			if !tcp.IP.IsUnspecified() {
				host = tcp.IP.String()
			}
		}
		fmt.Fprintf(b, "  ssh://%s@%s", cache.Main, host)
		if port != "" && port != "22" {
			fmt.Fprintf(b, " with NIX_SSHOPTS='-p %s'", port)
		}
		b.WriteString("\n")
	}
	b.WriteString("\nIts host keys are\n\n")
	for _, k := range a.hostKeys {
		fmt.Fprintf(b, "  %s %s\n", ssh.FingerprintSHA256(k), k.Type())
	}
}

func isLoopback(text string) bool {
	u, err := url.Parse(text)
	if err != nil {
		return false
	}
	addr, err := netip.ParseAddr(u.Hostname())
	return err == nil && addr.IsLoopback()
}
