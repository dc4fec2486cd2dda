package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/alecthomas/kong"

	"firn/internal/cache"
	"firn/internal/config"
	"firn/internal/keyfile"
	"firn/internal/localstore"
	"firn/internal/registry"
	"firn/internal/zstdcache"
	"firn/nix"
)

type serveCommand struct {
	settings
}

func (*serveCommand) Help() string {
	return `This serves the store of this machine, and what clients push with a token (see firn token create).
At the start it prints what it serves, where, and the lines that clients need; logs go to standard error, or to files, which SIGUSR1 and SIGHUP reopen.
SIGINT and SIGTERM let answers that are being sent end first; a second signal does not. SIGHUP reloads settings, keys and certificates.

Examples:

    firn serve
    firn serve --key /etc/firn/secret --listen 127.0.0.1:5000
    firn serve --listen unix:/run/firn/firn.sock --listen :5000
    firn serve --compression zstd --cache-size 50GiB
    firn serve --listen :80 --acme you@example.org
    firn serve --log-file /var/log/firn/firn.log --access-log /var/log/firn/access.log
    firn serve --store /mnt --priority 50 --config /etc/firn/firn.toml`
}

func (c *serveCommand) Run(k *kong.Context) (err error) {
	ctx, cancel := untilSignal()
	defer cancel()
	a := &app{
		serveCommand: c,
		hangups:      notifyHangups(), // from now on: one at the start is for the settings too
		banner:       banner{version: version(), state: c.State},
	}
	a.onClose(func() error { signal.Stop(a.hangups); return nil })
	defer func() { err = errors.Join(err, a.close()) }()
	for _, open := range []func(context.Context) error{
		a.openLogs, a.openStore, a.openListeners, a.openEncoder, a.openDepot, a.openKeys, a.openCaches, a.openSSH, a.openHTTP,
	} {
		if err := open(ctx); err != nil {
			return err
		}
	}
	if err := a.announce(ctx, k.Stdout); err != nil {
		return err
	}
	setCollector()
	return a.run(ctx, func() (*config.Config, error) { return settingsAgain(k) })
}

// untilSignal returns a context that SIGINT and SIGTERM end, once: a second signal does what it does by default.
func untilSignal() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		signal.Stop(signals) // before the end begins
		cancel()
	}()
	return ctx, cancel
}

// ownKey returns the signing key of the state directory, which the first start makes.
func (c *serveCommand) ownKey(log *slog.Logger, a *banner) (nix.SecretKey, error) {
	hostname, err := os.Hostname()
	if err != nil {
		log.Warn("this machine has no name for a key", "error", err)
	}
	key, made, err := keyfile.Ensure(c.State, keyfile.NameFor(hostname, ""), log)
	if made {
		a.madeKey = filepath.Join(c.State, keyfile.SecretName)
	}
	return key, err
}

// encoder opens the compressed NARs of the state directory: when they are wanted, and when they once were,
// because clients remember their URLs for a month. Otherwise there is none.
func (c *serveCommand) encoder(log *slog.Logger) (*zstdcache.Cache, error) {
	dir := filepath.Join(c.State, compressedDir)
	if c.Compression == config.CompressionNone {
		if _, err := os.Lstat(dir); err != nil {
			return nil, nil
		}
	}
	encoder, err := zstdcache.Open(dir, zstdcache.Options{Size: c.CacheSize.Bytes(), Level: int(c.CompressionLevel), Logger: log})
	if err != nil {
		return nil, fmt.Errorf("%w; choose a state directory that can be written, and no other server uses, with --state", err)
	}
	return encoder, nil
}

// local opens the local store, and returns what closes it again. It may be nil, or one that is not there yet.
func (c *serveCommand) local(ctx context.Context, log *slog.Logger, a *banner) (cache.Source, func() error, error) {
	if c.Store == config.StoreOff {
		a.noStore = "that is off; name one with --store ROOT"
		return nil, func() error { return nil }, nil
	}
	opts, err := localOptions(&c.Config, log)
	if err != nil {
		return nil, nil, err
	}
	store, err := localstore.Open(ctx, opts)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return nil, nil, err
	case errors.Is(err, localstore.ErrNoStore) && opts.Root != "":
		return nil, nil, fmt.Errorf("%w; --store takes the directory that holds nix/store", err)
	default:
		// Pushed paths are served all the same.
		a.noStore = err.Error() + "; it is served as soon as Nix has made it, or name another with --store ROOT"
		if !errors.Is(err, localstore.ErrNoStore) {
			a.noStore = err.Error() + "; it is served as soon as it can be read"
			log.Error("the store cannot be served yet; pushed paths are", "error", err)
		}
		source := localstore.Await(opts, err)
		return source, source.Close, nil
	}
	a.store = fmt.Sprintf("the store %s", store.StoreDir())
	if opts.Root != "" {
		a.store += " below " + opts.Root
	}
	return store, store.Close, nil
}

// localOptions says which store is served, unless that is off.
func localOptions(c *config.Config, log *slog.Logger) (localstore.Options, error) {
	env, err := config.NixEnvironment(os.LookupEnv)
	if err != nil {
		return localstore.Options{}, err
	}
	state, err := filepath.Abs(c.State)
	if err != nil {
		return localstore.Options{}, err
	}
	opts := localstore.Options{StoreDir: env.StoreDir, Roots: filepath.Join(state, "gcroots"), Logger: log}
	if root, ok := c.Store.Root(); ok {
		opts.Root = root
	} else {
		// Nix's own directories belong to this machine's own store.
		opts.StateDir, opts.LogDir, opts.DaemonSocket = env.StateDir, env.LogDir, env.DaemonSocket
	}
	return opts, nil
}

// prepare prepares the cache main. Without a local store, the store directory is that of the
// environment.
func prepare(ctx context.Context, d *openedDepot, local cache.Source) error {
	env, err := config.NixEnvironment(os.LookupEnv)
	if err != nil {
		return err
	}
	dir := env.StoreDir
	if local != nil {
		dir = local.StoreDir()
	}
	return registry.Prepare(ctx, d.catalog, d.Depot, dir)
}
