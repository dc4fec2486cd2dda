package remote

import (
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"

	"firn/internal/cache"
)

// maxNetrc bounds a netrc file, in bytes.
const maxNetrc = 1 << 20

// Login returns the user and password that a netrc file, as curl and Nix read it, has for a host name. Nil if it has none.
func Login(file, host string) (*url.Userinfo, error) {
	all, err := entries(file)
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		if e.machine == host || e.machine == "" { // the first that matches
			return url.UserPassword(e.login, e.password), nil
		}
	}
	return nil, nil
}

// NetrcFaults are what a netrc file has for a server that clients do not read as it is meant.
func NetrcFaults(file string, u *url.URL) (faults []NetrcFault, err error) {
	all, err := entries(file)
	if err != nil {
		return nil, err
	}
	ours := false
	for _, e := range all {
		host, _, err := net.SplitHostPort(e.machine)
		switch {
		case err == nil && host == u.Hostname():
			faults = append(faults, NetrcFault{e.machine, true})
		case (e.machine == u.Hostname() || e.machine == "") && !ours:
			ours = true // others are not read
			if !e.hasLogin && e.password != "" {
				faults = append(faults, NetrcFault{e.machine, false})
			}
		}
	}
	return faults, nil
}

// A NetrcFault is an entry that is not read as it is meant.
type NetrcFault struct {
	Machine string // "" is the default
	HasPort bool   // else it has no login
}

// An entry is what a netrc file has for a machine; "" is the default.
type entry struct {
	machine, login, password string
	hasLogin                 bool
}

// entries parses a netrc file.
func entries(file string) (all []entry, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read the netrc file: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxNetrc+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxNetrc {
		return nil, fmt.Errorf("read %s: %w: more than %d bytes", file, cache.ErrTooLarge, maxNetrc)
	}
	for words := netrcWords(string(text)); len(words) > 0; {
		word := words[0]
		words = words[1:]
		switch word {
		case "default":
			all = append(all, entry{})
		case "machine":
			if len(words) > 0 && words[0] != "" {
				all, words = append(all, entry{machine: words[0]}), words[1:]
			}
		case "login", "password", "account":
			if len(words) == 0 {
				return nil, fmt.Errorf("read %s: %w: %s without a value", file, cache.ErrInvalid, word)
			}
			if len(all) > 0 {
				switch e := &all[len(all)-1]; word {
				case "login":
					e.login, e.hasLogin = words[0], true
				case "password":
					e.password = words[0]
				}
			}
			words = words[1:]
		}
	}
	return all, nil
}

// netrcWords splits a netrc file, without comments and macros.
func netrcWords(text string) (words []string) {
	macro := false
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		macro = macro && len(fields) > 0
		for i, field := range fields {
			if strings.HasPrefix(field, "#") && (i == 0 || words[len(words)-1] != "password") {
				break
			}
			if field == "macdef" {
				macro = true
			}
			if macro {
				break
			}
			words = append(words, field)
		}
	}
	return words
}
