package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"firn/internal/catalog"
	"firn/internal/catalog/sqlite"
)

// namesTime bounds how long a shell waits for names.
const namesTime = 2 * time.Second

// namesCommand is for shells that complete a command line, see [cli.WriteCompletion].
type namesCommand struct {
	Kind  string   `arg:"" enum:"cache,token,sshkey,key"`
	Words []string `arg:"" optional:""`
}

// Run prints names, and nothing where there are none to be had: a person in the middle of a line
// has no use for an error. It makes nothing and changes nothing.
func (c *namesCommand) Run(k *kong.Context) error {
	ctx, cancel := context.WithTimeout(context.Background(), namesTime)
	defer cancel()
	names, err := c.names(ctx)
	if err != nil {
		return nil
	}
	for _, name := range names {
		// bash would run what stands in some others.
		if strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_@+") == "" {
			fmt.Fprintln(k.Stdout, name)
		}
	}
	return nil
}

func (c *namesCommand) names(ctx context.Context) (names []string, err error) {
	f := stateFlags{ConfigFile: typed(c.Words, "--config"), State: typed(c.Words, "--state")}
	settings, err := f.load()
	if err != nil {
		return nil, err
	}
	never := errors.New("nothing is changed")
	cat, err := sqlite.Open(ctx, filepath.Join(settings.State, depotDir, catalogName), sqlite.Options{
		New: func() error { return never }, Older: func() (bool, error) { return false, never }, Wait: namesTime,
	})
	if err != nil {
		return nil, err
	}
	defer cat.Close()
	switch c.Kind {
	case "token":
		all, err := cat.AllTokens(ctx)
		return namesOf(all, func(t *catalog.Token) []string { return []string{t.Name} }), err
	case "sshkey":
		all, err := cat.AllSSHKeys(ctx)
		return namesOf(all, func(k *catalog.SSHKey) []string { return []string{k.Name} }), err
	}
	all, err := cat.AllCaches(ctx)
	return namesOf(all, func(r *catalog.Cache) (names []string) {
		if c.Kind == "cache" {
			return []string{r.Name}
		}
		for _, key := range r.Keys {
			names = append(names, key.Name())
		}
		return names
	}), err
}

func namesOf[T any](all []T, of func(T) []string) (names []string) {
	for _, one := range all {
		names = append(names, of(one)...)
	}
	return names
}

// typed returns the value of a flag among words that were typed so far. bash takes --flag=value
// apart.
func typed(words []string, flag string) string {
	for i, word := range words {
		if value, ok := strings.CutPrefix(word, flag+"="); ok {
			return value
		}
		if word != flag {
			continue
		}
		rest := words[i+1:]
		if len(rest) > 0 && rest[0] == "=" {
			rest = rest[1:]
		}
		if len(rest) > 0 {
			return rest[0]
		}
	}
	return ""
}
