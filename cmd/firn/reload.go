package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/alecthomas/kong"

	"firn/internal/cache"
	"firn/internal/certs"
	"firn/internal/config"
	"firn/internal/logs"
	"firn/internal/registry"
	"firn/nix"
)

// live are the settings that change while a server runs. All others are what it was built from.
var live = []string{"key", "tls-cert", "tls-key", "priority", "unknown-host"}

// notifyHangups returns where SIGHUP is told of from now on.
func notifyHangups() chan os.Signal {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	return signals
}

// settingsAgain reads the command line again, with the file and the environment below it.
func settingsAgain(k *kong.Context) (*config.Config, error) {
	var line commandLine
	if _, err := newParser(&line).Parse(k.Args); err != nil {
		return nil, err
	}
	return &line.Serve.Config, nil
}

// A reloader reloads the settings, keys and certificates of a running server.
type reloader struct {
	signals <-chan os.Signal
	config  config.Config // in effect
	read    func() (*config.Config, error)
	own     func() (nix.SecretKey, error) // the key of a server that was given none
	caches  *registry.Registry
	certs   *certs.Certs // nil: there is no TLS
	log     *slog.Logger
	logs    *logs.Server // reopened too
}

// run reloads the settings at each signal, until ctx ends.
func (r *reloader) run(ctx context.Context, told *watched) {
	for {
		select {
		case <-r.signals:
			done := told.manager.Reloading()
			r.logs.Reopen()
			if err := r.reload(ctx); err != nil {
				r.log.Error("the settings could not be reloaded and stay as they were", "error", err)
			}
			done(told.status())
		case <-ctx.Done():
			return
		}
	}
}

// reload reads everything before it changes anything. With an error nothing has changed.
func (r *reloader) reload(ctx context.Context) error {
	next, err := r.read()
	if err != nil {
		return err
	}
	keys, err := loadKeys(next, r.log)
	named := keys
	if err == nil && len(keys) == 0 {
		var own nix.SecretKey
		own, err = r.own()
		keys = append(keys, own)
	}
	if err != nil {
		return err
	}
	if r.certs != nil && !next.HasTLS() {
		return errors.New("there is no certificate any more, and turning TLS off needs a restart")
	}
	files, err := certs.Read(pairs(next))
	if err != nil {
		return err
	}
	before, err := r.signing(ctx)
	if err != nil {
		return err
	}
	err = r.caches.Change(ctx, registry.Options{Keys: keys, Priority: int(next.Priority), RefuseUnknown: next.UnknownHost == config.UnknownRefuse})
	if err != nil {
		return err
	}
	if r.certs != nil {
		r.certs.Use(files)
	}
	warned := warnUnused(next, named, r.log)
	after, err := r.signing(ctx)
	if err != nil {
		return err
	}
	for _, key := range before {
		if !slices.Contains(after, key) && key != warned {
			r.log.Warn("a key signs nothing any more: clients that trust no other one take nothing new from here; keep it for 30 days, so long they remember signatures", "key", key.Name())
		}
	}
	r.tell(next)
	return nil
}

// signing are the keys that sign what the cache main serves.
func (r *reloader) signing(ctx context.Context) ([]nix.PublicKey, error) {
	main, err := r.caches.ByName(ctx, cache.Main)
	if err != nil {
		return nil, err
	}
	return main.PublicKeys(), nil
}

// tell logs what has changed, and takes it as in effect. What needs a restart stays as it was, and is told again the next time.
func (r *reloader) tell(next *config.Config) {
	var changed []string
	for _, key := range r.config.Differences(next) {
		isTLS := key == "tls-cert" || key == "tls-key"
		if slices.Contains(live, key) && (r.certs != nil || !isTLS) {
			changed = append(changed, key)
			continue
		}
		r.log.Warn("a setting has changed and needs a restart", "setting", key)
	}
	r.config.Key, r.config.Priority, r.config.UnknownHost = next.Key, next.Priority, next.UnknownHost
	if r.certs != nil {
		r.config.TLSCert, r.config.TLSKey = next.TLSCert, next.TLSKey
	}
	r.log.Info("reloaded settings, keys and certificates", "changed", changed)
}
