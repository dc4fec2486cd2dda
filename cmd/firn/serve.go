package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"golang.org/x/sync/errgroup"

	"firn/internal/access"
	"firn/internal/audit"
	"firn/internal/cache"
	"firn/internal/config"
	"firn/internal/depot"
	"firn/internal/keyfile"
	"firn/internal/listen"
	"firn/internal/localstore"
	"firn/internal/registry"
	"firn/internal/server"
	"firn/internal/zstdcache"
	"firn/nix"
)

type serveCommand struct {
	settings
}

func (*serveCommand) Help() string {
	return `Served are the store of this machine, and what clients push: with a token, see firn token create.
What is served, where, and the lines that clients need are printed at the start; logs go to standard error, or to files, which SIGUSR1 and SIGHUP have opened anew.
SIGINT and SIGTERM let answers that are being sent end first; a second signal does not. SIGHUP has the settings, keys and certificates read anew.

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
	hangups := notifyHangups() // from now on: one at the start is for the settings too
	defer signal.Stop(hangups)
	logs, err := openLogs(&c.Config, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, logs.Close()) }()
	log := logs.log
	a := announcement{version: version()}
	keys, err := loadKeys(&c.Config, log)
	if err != nil {
		return err
	}
	warnUnused(&c.Config, keys, log)
	local, closeLocal, err := c.local(ctx, log, &a)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeLocal()) }()
	sockets, err := listen.Take()
	if err != nil {
		return err
	}
	defer sockets.Close()
	listeners, err := open(ctx, sockets, listen.HTTP, c.Listen, listen.Options{Mode: c.SocketMode.Mode()})
	if err != nil {
		return err
	}
	defer closeAll(listeners) // of a start that fails; a server closes its own
	https, err := c.openHTTPS(ctx, sockets)
	if err != nil {
		return err
	}
	defer closeAll(https)

	encoder, err := c.encoder(log)
	if err != nil {
		return err
	}
	known := registry.Options{Local: local, Priority: int(c.Priority), RefuseUnknown: c.UnknownHost == config.UnknownRefuse, Logger: log}
	audited := audit.New(audit.Options{Logger: log})
	defer audited.Close()
	opts := server.Options{Version: a.version, Logger: log, Requests: logs.requests, Audit: audited}
	if encoder != nil {
		defer func() { err = errors.Join(err, encoder.Close()) }()
		known.Encoder, known.Compress = encoder, c.Compression == config.CompressionZstd
		opts.Collectors = append(opts.Collectors, encoder)
	}
	if known.Compress && a.store != "" {
		a.store += ", compressed with zstd,"
	}
	kept, err := serveDepot(ctx, &c.Config, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kept.Close()) }()
	tls, err := c.certificates(kept.catalog, listeners, log)
	if err != nil {
		return err
	}
	c.doorOptions(&opts, tls, https)
	if err := prepare(ctx, kept, local); err != nil {
		return err
	}
	if len(keys) == 0 { // last: a start that fails makes no key
		key, err := c.ownKey(log, &a)
		if err != nil {
			return err
		}
		keys = append(keys, key)
	}
	known.Keys = keys
	all, err := registry.New(ctx, kept.catalog, kept.Depot, known)
	if err != nil {
		return err
	}
	main, err := all.ByName(ctx, cache.Main)
	if err != nil {
		return err
	}
	present, err := main.Presence(ctx)
	if err != nil {
		return err
	}
	who := access.New(kept.catalog, kept.catalog.Version, access.Options{})
	opts.Access = who
	opts.MaxUpload = c.MaxNARSize.Bytes()
	sshDoor, sshListeners, err := c.sshDoor(ctx, sockets, all, who, audited, log, &a)
	if err != nil {
		return err
	}
	defer closeAll(sshListeners)
	if sshDoor != nil {
		opts.Collectors = append(opts.Collectors, sshDoor, sshDoor.operations)
	}
	opts.SSHPort = publicPort(sshListeners)
	gauges := kept.Gauges()
	opts.Inside = append(opts.Inside, gauges)
	door := server.New(all, opts)

	a.state, a.depot = c.State, present.Pushed
	a.listeners, a.https, a.keys = listeners, https, main.PublicKeys()
	if err := a.describe(ctx, kept.catalog, tls, all.Hosts(ctx)); err != nil {
		return err
	}
	if err := a.print(k.Stdout); err != nil {
		log.Warn("the start could not be announced", "error", err)
	}
	again := &reloader{
		signals: hangups, config: c.Config, caches: all, certs: tls, log: log, logs: logs,
		read: func() (*config.Config, error) { return settingsAgain(k) },
		own:  func() (nix.SecretKey, error) { return c.ownKey(log, &announcement{}) },
	}
	told := watched{manager: listen.NewManager(log)}
	told.add(listen.HTTP, listeners)
	told.add(listen.HTTPS, https)
	told.add(listen.SSH, sshListeners)
	setCollector()
	group, ctx := errgroup.WithContext(ctx)
	// Also where one of what follows fails: the others end as after a signal.
	context.AfterFunc(ctx, func() {
		log.Info("ending as soon as all answers are sent; another signal ends at once")
		told.end()
	})
	serveHTTP(ctx, group, door, listeners, https, tls)
	if tls != nil {
		group.Go(func() error { return certify(ctx, tls, all) })
	}
	for _, l := range sshListeners {
		group.Go(func() error { return sshDoor.Serve(ctx, l) })
	}
	group.Go(func() error { return sweep(ctx, kept.Depot, all, log) })
	group.Go(func() error { audited.Run(ctx); return nil })
	group.Go(func() error {
		who.RunUses(ctx, func(err error) { log.Error("when tokens and keys were used could not be noted", "error", err) })
		return nil
	})
	group.Go(func() error {
		gauges.Run(ctx, func(err error) { log.Error("what is kept could not be counted for /metrics", "error", err) })
		return nil
	})
	group.Go(func() error { told.run(ctx, func() { again.run(ctx, &told) }); return nil })
	return group.Wait()
}

// sweepInterval is the time between two sweeps of the depot. What they remove is a day old, so it is not urgent;
// and what was deleted should not hold its disk for much longer than that.
const sweepInterval = 10 * time.Minute

// sweep lets the depot remove what nothing leads to, and the local store what no pushed path refers
// to, now and then, until ctx ends.
func sweep(ctx context.Context, d *depot.Depot, all *registry.Registry, log *slog.Logger) error {
	ticker := time.NewTicker(sweepInterval)
	defer ticker.Stop()
	for {
		if err := d.Tick(ctx); err != nil && ctx.Err() == nil {
			log.Error("the depot could not be swept", "error", err)
		}
		if err := all.Tick(ctx); err != nil && ctx.Err() == nil {
			log.Error("what pushed paths refer to may go with the next garbage collection of the store of this machine", "error", err)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
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
func (c *serveCommand) ownKey(log *slog.Logger, a *announcement) (nix.SecretKey, error) {
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
func (c *serveCommand) local(ctx context.Context, log *slog.Logger, a *announcement) (cache.Source, func() error, error) {
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

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		l.Close()
	}
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
