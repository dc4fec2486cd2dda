package main

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"

	"firn/internal/listen"
	"firn/nix"
)

// An announcement is what a person who starts the server wants to know.
type announcement struct {
	version   string
	what      string // is served: "serves the store /nix/store"
	nothing   string // why there is nothing to serve and what to do, empty if there is
	madeKey   string // the file of the key that this start made, empty if it made none
	keys      []nix.PublicKey
	listeners []net.Listener
}

// print writes it, with the lines for clients ready to copy.
func (a *announcement) print(w io.Writer) error {
	var b strings.Builder
	if a.nothing != "" {
		fmt.Fprintf(&b, "firn %s has nothing to serve yet: %s.\nIt answers at\n\n", a.version, a.nothing)
	} else {
		fmt.Fprintf(&b, "firn %s %s at\n\n", a.version, a.what)
	}
	hostname, _ := os.Hostname() // without one, listen.URL says localhost
	var client string            // where clients find it: rather not an address that only this machine has
	for _, l := range a.listeners {
		at := listen.URL(l, hostname)
		fmt.Fprintf(&b, "  %s\n", cmp.Or(at, "unix:"+l.Addr().String()))
		if client == "" || at != "" && isLoopback(client) {
			client = at
		}
	}
	if a.madeKey != "" {
		fmt.Fprintf(&b, "\nIt had no signing key and made one: %s\n", a.madeKey)
	}
	b.WriteString("\nClients need these two lines in /etc/nix/nix.conf:\n\n")
	fmt.Fprintf(&b, "  extra-substituters = %s\n", cmp.Or(client, "http://… (the proxy in front of the socket)"))
	b.WriteString("  extra-trusted-public-keys =")
	for _, key := range a.keys {
		fmt.Fprintf(&b, " %s", key)
	}
	b.WriteString("\n\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func isLoopback(text string) bool {
	u, err := url.Parse(text)
	if err != nil {
		return false
	}
	addr, err := netip.ParseAddr(u.Hostname())
	return err == nil && addr.IsLoopback()
}
