package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/alecthomas/kong"

	"firn/internal/config"
	"firn/internal/keyfile"
	"firn/nix"
)

// settings are the flags of every command that needs the configuration.
type settings struct {
	ConfigFile string `name:"config" env:"FIRN_CONFIG" placeholder:"FILE" complete:"file" help:"Read settings from a TOML file. Variables win over it, and flags over both."`

	config.Config `embed:""`

	origins config.Origins
}

// BeforeApply is called when kong knows the flags and before it stores them:
// the moment to put file and environment below them.
func (s *settings) BeforeApply(ctx *kong.Context) error {
	var path string
	for _, flag := range ctx.Flags() {
		if flag.Name == "config" {
			path, _ = ctx.FlagValue(flag).(string)
		}
	}
	loaded, origins, err := config.Load(path, os.LookupEnv)
	if err != nil {
		return err
	}
	for _, element := range ctx.Path { // what was typed
		if flag := element.Flag; flag != nil && origins[flag.Name] != "" {
			origins[flag.Name] = "--" + flag.Name
		}
	}
	s.Config, s.origins = *loaded, origins
	return nil
}

// AfterApply is called when the flags are in place too.
func (s *settings) AfterApply() error {
	if err := s.AddCredentials(os.LookupEnv, s.origins); err != nil {
		return err
	}
	return s.Check()
}

// warnUnused warns where an earlier start made a key, and the settings name others: clients may
// trust only that one. It returns that key, or the zero key if it warned of none.
func warnUnused(c *config.Config, keys []nix.SecretKey, log *slog.Logger) nix.PublicKey {
	if len(keys) == 0 {
		return nix.PublicKey{} // that one signs
	}
	made, err := keyfile.Public(c.State, log)
	if errors.Is(err, fs.ErrNotExist) {
		return nix.PublicKey{}
	}
	path := filepath.Join(c.State, keyfile.SecretName)
	if err != nil {
		log.Warn("whether the key that an earlier start made is among key cannot be told", "path", path, "error", err)
		return nix.PublicKey{}
	}
	var names []string
	for _, key := range keys {
		if key.Public() == made {
			return nix.PublicKey{}
		}
		names = append(names, key.Name())
	}
	log.Warn("the key that an earlier start made signs nothing, as key names others: clients that trust only that one take nothing from here. "+
		"Add its file to key; once all clients trust another key, take it out and move its files away",
		"made", made.Name(), "key", strings.Join(names, ", "), "add", path)
	return made
}

// loadKeys reads the key files of the settings. No two keys have the same name.
func loadKeys(c *config.Config, log *slog.Logger) ([]nix.SecretKey, error) {
	var keys []nix.SecretKey
	files := map[string]string{} // by the names of their keys
	for _, path := range c.Key {
		key, err := keyfile.Load(path, log)
		if err != nil {
			return nil, err
		}
		if other, ok := files[key.Name()]; ok {
			return nil, fmt.Errorf("read signing key %s: the key in %s is named %s too, and clients tell keys apart by their names; leave one of them out", path, other, key.Name())
		}
		files[key.Name()] = path
		keys = append(keys, key)
	}
	return keys, nil
}
