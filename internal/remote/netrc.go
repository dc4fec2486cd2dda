package remote

import (
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"

	"firn/internal/cache"
)

// maxNetrc bounds a netrc file, in bytes.
const maxNetrc = 1 << 20

// Login returns the user and password that a netrc file, as curl and Nix read it, has for a host name. Nil if it has none.
func Login(file, host string) (*url.Userinfo, error) {
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
	var (
		user, password string
		ours, found    bool
	)
	for words := netrcWords(string(text)); len(words) > 0; {
		word := words[0]
		words = words[1:]
		switch word {
		case "machine", "default":
			if found {
				return url.UserPassword(user, password), nil // the first that matches
			}
			ours = word == "default"
			if word == "machine" && len(words) > 0 {
				ours, words = words[0] == host, words[1:]
			}
			found = ours
		case "login", "password", "account":
			if len(words) == 0 {
				return nil, fmt.Errorf("read %s: %w: %s without a value", file, cache.ErrInvalid, word)
			}
			if ours && word == "login" {
				user = words[0]
			}
			if ours && word == "password" {
				password = words[0]
			}
			words = words[1:]
		}
	}
	if !found {
		return nil, nil
	}
	return url.UserPassword(user, password), nil
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
