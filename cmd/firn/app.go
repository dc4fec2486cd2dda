package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"firn/internal/access"
	"firn/internal/audit"
	"firn/internal/cache"
	"firn/internal/certs"
	"firn/internal/config"
	"firn/internal/depot"
	"firn/internal/listen"
	"firn/internal/logs"
	"firn/internal/registry"
	"firn/internal/server"
	"firn/internal/zstdcache"
	"firn/nix"
)

// closers close what was opened, the last first.
type closers struct{ list []func() error }

// onClose adds what closes a part.
func (c *closers) onClose(f func() error) { c.list = append(c.list, f) }

// close closes all parts, also those after one that fails.
func (c *closers) close() (err error) {
	for i := len(c.list) - 1; i >= 0; i-- {
		err = errors.Join(err, c.list[i]())
	}
	c.list = nil
	return err
}

// An app is a server with its parts. Each open method opens some of them, in the order of the methods
// below, and says how they are closed.
type app struct {
	*serveCommand
	closers
	banner  banner
	hangups chan os.Signal // SIGHUP

	log     *slog.Logger
	logs    *logs.Server
	audited *audit.Log
	keys    []nix.SecretKey
	named   []nix.SecretKey // of the keys, those that the settings name

	local   cache.Source     // nil: no local store is served
	encoder *zstdcache.Cache // nil: it is not compressed, and never was
	depot   *openedDepot
	caches  *registry.Registry
	access  *access.Access

	sockets     listen.Sockets
	plain, tls  []net.Listener // for HTTP
	certs       *certs.Certs   // nil: there is no TLS
	http        *server.Server
	gauges      *depot.Gauges
	ssh         *sshServer // nil: there is no SSH
	sshListener []net.Listener
}

func (a *app) openLogs(context.Context) (err error) {
	if a.logs, err = logs.OpenServer(&a.Config, logs.Open); err != nil {
		return err
	}
	a.onClose(a.logs.Close)
	a.log = a.logs.Log
	if a.named, err = loadKeys(&a.Config, a.log); err != nil {
		return err
	}
	warnUnused(&a.Config, a.named, a.log)
	a.audited = audit.New(audit.Options{Logger: a.log})
	a.onClose(func() error { a.audited.Close(); return nil })
	return nil
}

func (a *app) openStore(ctx context.Context) error {
	local, closeLocal, err := a.serveCommand.local(ctx, a.log, &a.banner)
	if err != nil {
		return err
	}
	a.local = local
	a.onClose(closeLocal)
	return nil
}

// openListeners opens the addresses for HTTP. A server closes its own listeners; those of a start that
// fails are closed here.
func (a *app) openListeners(ctx context.Context) (err error) {
	if a.sockets, err = listen.Take(); err != nil {
		return err
	}
	a.onClose(func() error { a.sockets.Close(); return nil })
	if a.plain, err = open(ctx, a.sockets, listen.HTTP, a.Listen, listen.Options{Mode: a.SocketMode.Mode()}); err != nil {
		return err
	}
	a.onClose(func() error { listen.CloseAll(a.plain); return nil })
	if a.tls, err = a.openHTTPS(ctx, a.sockets); err != nil {
		return err
	}
	a.onClose(func() error { listen.CloseAll(a.tls); return nil })
	return nil
}

func (a *app) openEncoder(context.Context) (err error) {
	if a.encoder, err = a.serveCommand.encoder(a.log); a.encoder == nil {
		return err
	}
	a.onClose(a.encoder.Close)
	if a.compresses() && a.banner.store != "" {
		a.banner.store += ", compressed with zstd,"
	}
	return nil
}

func (a *app) compresses() bool { return a.Compression == config.CompressionZstd }

func (a *app) openDepot(ctx context.Context) (err error) {
	if a.depot, err = serveDepot(ctx, &a.Config, a.log); err != nil {
		return err
	}
	a.onClose(a.depot.Close)
	if a.certs, err = a.certificates(a.depot.catalog, a.plain, a.log); err != nil {
		return err
	}
	return prepare(ctx, a.depot, a.local)
}

// openKeys makes a key where the settings name none. It comes late: a start that fails before makes no key.
func (a *app) openKeys(context.Context) error {
	if a.keys = a.named; len(a.keys) > 0 {
		return nil
	}
	key, err := a.ownKey(a.log, &a.banner)
	a.keys = []nix.SecretKey{key}
	return err
}

func (a *app) openCaches(ctx context.Context) (err error) {
	opts := registry.Options{
		Local: a.local, Keys: a.keys, Priority: int(a.Priority), RefuseUnknown: a.UnknownHost == config.UnknownRefuse, Logger: a.log,
	}
	if a.encoder != nil {
		opts.Encoder, opts.Compress = a.encoder, a.compresses()
	}
	a.caches, err = registry.New(ctx, a.depot.catalog, a.depot.Depot, opts)
	a.access = access.New(a.depot.catalog, a.depot.catalog, access.Options{})
	return err
}

func (a *app) openSSH(ctx context.Context) (err error) {
	a.ssh, a.sshListener, err = a.openSSHServer(ctx, a.sockets, a.caches, a.access, a.audited, a.log, &a.banner)
	if err != nil {
		return err
	}
	a.onClose(func() error { listen.CloseAll(a.sshListener); return nil })
	return nil
}

func (a *app) openHTTP(context.Context) error {
	opts := server.Options{
		Version: a.banner.version, Logger: a.log, Requests: a.logs.Requests, Audit: a.audited,
		Access: a.access, MaxUpload: a.MaxNARSize.Bytes(), SSHPort: publicPort(a.sshListener),
	}
	if a.encoder != nil {
		opts.Collectors = append(opts.Collectors, a.encoder)
	}
	if a.ssh != nil {
		opts.Collectors = append(opts.Collectors, a.ssh, a.ssh.operations)
	}
	a.gauges = a.depot.Gauges()
	opts.Inside = append(opts.Inside, a.gauges)
	a.networkOptions(&opts, a.certs, a.tls)
	a.http = server.New(a.caches, opts)
	return nil
}

// announce prints what is served and where.
func (a *app) announce(ctx context.Context, w io.Writer) error {
	main, err := a.caches.ByName(ctx, cache.Main)
	if err != nil {
		return err
	}
	present, err := main.Presence(ctx)
	if err != nil {
		return err
	}
	a.banner.depot = present.Pushed
	a.banner.listeners, a.banner.https, a.banner.keys = a.plain, a.tls, main.PublicKeys()
	if err := a.banner.describe(ctx, a.depot.catalog, a.certs, a.caches.Hosts(ctx)); err != nil {
		return err
	}
	if err := a.banner.print(w); err != nil {
		a.log.Warn("the start could not be announced", "error", err)
	}
	return nil
}

// run serves until ctx ends or a part fails, and then until all answers are sent. read reads the settings again.
func (a *app) run(ctx context.Context, read func() (*config.Config, error)) error {
	reload := &reloader{
		signals: a.hangups, config: a.Config, caches: a.caches, certs: a.certs, log: a.log, logs: a.logs, read: read,
		own: func() (nix.SecretKey, error) { return a.ownKey(a.log, &banner{}) },
	}
	told := watched{manager: listen.NewManager(a.log)}
	told.add(listen.HTTP, a.plain)
	told.add(listen.HTTPS, a.tls)
	told.add(listen.SSH, a.sshListener)
	group, ctx := errgroup.WithContext(ctx)
	// Also where a part fails: the others end as after a signal.
	context.AfterFunc(ctx, func() {
		a.log.Info("ending as soon as all answers are sent; another signal ends at once")
		told.end()
	})
	serveHTTP(ctx, group, a.http, a.plain, a.tls, a.certs)
	if a.certs != nil {
		group.Go(func() error { return certify(ctx, a.certs, a.caches) })
	}
	for _, l := range a.sshListener {
		group.Go(func() error { return a.ssh.Serve(ctx, l) })
	}
	group.Go(func() error { return sweep(ctx, a.depot.Depot, a.caches, a.log) })
	group.Go(func() error { a.audited.Run(ctx); return nil })
	group.Go(func() error {
		a.access.RunUses(ctx, func(err error) { a.log.Error("when tokens and keys were used could not be noted", "error", err) })
		return nil
	})
	group.Go(func() error {
		a.gauges.Run(ctx, func(err error) { a.log.Error("what is kept could not be counted for /metrics", "error", err) })
		return nil
	})
	group.Go(func() error { told.run(ctx, func() { reload.run(ctx, &told) }); return nil })
	return group.Wait()
}

// sweepInterval is the time between two sweeps of the depot. What they remove is a day old, so it is not urgent;
// and what was deleted should not hold its disk for much longer than that.
const sweepInterval = 10 * time.Minute

// sweep lets the depot remove what is not reachable, and the local store what no pushed path refers
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
