package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// fromCredentials names the directory of credentials, and is the origin of what is in it.
const fromCredentials = "CREDENTIALS_DIRECTORY"

// The names of credentials, each alone, or with a dot and any word behind it where there are several.
const (
	credentialKey    = "key"
	credentialCert   = "tls-cert"
	credentialTLSKey = "tls-key"
)

// AddCredentials adds the secrets that a service manager passes as files in a directory to what the settings name:
// key and key.ANYTHING are signing keys, tls-cert with tls-key, and tls-cert.ANYTHING with tls-key.ANYTHING, certificates.
// Any other is an error, unless a setting names its file.
func (c *Config) AddCredentials(lookup LookupEnv, origins Origins) error {
	dir, _ := lookup(fromCredentials)
	if dir == "" {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read credentials: %w", err)
	}
	names := map[string]bool{}
	for _, e := range entries {
		names[e.Name()] = true
	}
	var wrong []error
	add := func(key string, list *[]string, name string) {
		*list = append(*list, filepath.Join(dir, name))
		switch before := origins[key]; {
		case before == fromDefault:
			origins[key] = fromCredentials
		case !strings.HasSuffix(before, fromCredentials):
			origins[key] += " and " + fromCredentials
		}
	}
	for _, e := range entries { // in the order of their names
		kind, which, dotted := strings.Cut(e.Name(), ".")
		pair := func(other string) string { return other + strings.TrimPrefix(e.Name(), kind) }
		switch {
		case c.names(filepath.Join(dir, e.Name())): // a setting says what it is for
		case dotted && which == "":
			wrong = append(wrong, unknownCredential(e.Name()))
		case kind == credentialKey:
			add("key", &c.Key, e.Name())
		case kind == credentialCert && names[pair(credentialTLSKey)]:
			add("tls-cert", &c.TLSCert, e.Name())
			add("tls-key", &c.TLSKey, pair(credentialTLSKey))
		case kind == credentialCert:
			wrong = append(wrong, fmt.Errorf("credential %s: its key is missing, the credential %s", e.Name(), pair(credentialTLSKey)))
		case kind == credentialTLSKey && names[pair(credentialCert)]:
		case kind == credentialTLSKey:
			wrong = append(wrong, fmt.Errorf("credential %s: its certificate is missing, the credential %s", e.Name(), pair(credentialCert)))
		default:
			wrong = append(wrong, unknownCredential(e.Name()))
		}
	}
	return errors.Join(wrong...)
}

func unknownCredential(name string) error {
	return fmt.Errorf("credential %s: there is no use for one of this name; name it key or key.ANYTHING, or tls-cert with tls-key, or have a setting name its file", name)
}

// names reports whether a setting names a file.
func (c *Config) names(path string) bool {
	return path == c.ACMECA || slices.Contains(c.Key, path) || slices.Contains(c.TLSCert, path) || slices.Contains(c.TLSKey, path)
}
