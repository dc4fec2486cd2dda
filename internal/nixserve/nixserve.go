// Package nixserve takes the place of nix-serve and nix-serve-ng: their flags, and what a daemon did before
// there was systemd. Such a process has no terminal, writes its process id into a file, and gives up the
// rights of root.
//
// The package is frozen: it does what those programs did, and no more.
package nixserve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/alecthomas/kong"
	"golang.org/x/sync/errgroup"

	"firn/internal/cache"
	"firn/internal/certs"
	"firn/internal/config"
	"firn/internal/keyfile"
	"firn/internal/listen"
	"firn/internal/localstore"
	"firn/internal/logs"
	"firn/internal/server"
	"firn/nix"
)

// Name is the name under which the program takes the place of nix-serve.
const Name = "nix-serve"

// Command has the flags of nix-serve, which are those of the web server Starman, and those of nix-serve-ng.
type Command struct {
	Listen    []string        `short:"l" sep:"none" placeholder:"ADDRESS" help:"Where to listen: HOST:PORT, :PORT or the path of a Unix socket; with :ssl behind a port, over TLS. May be given several times."`
	Host      string          `short:"o" placeholder:"HOST" help:"The host to listen on, where there is no --listen. Without it all addresses."`
	Port      uint16          `short:"p" default:"5000" placeholder:"PORT" help:"The port to listen on, where there is no --listen. (default: 5000)"`
	Socket    string          `short:"S" placeholder:"PATH" complete:"file" help:"The Unix socket to listen on, where there is no --listen."`
	SSLCert   string          `aliases:"tls-cert" placeholder:"FILE" complete:"file" help:"Serve over TLS, with the certificate in FILE."`
	SSLKey    string          `aliases:"tls-key" placeholder:"FILE" complete:"file" help:"The key of that certificate."`
	Store     string          `placeholder:"STORE" help:"The store to serve, as Nix names those of this machine: daemon, local?root=DIR, unix://PATH or a directory. By default $NIX_REMOTE, else this machine's own."`
	Priority  config.Priority `default:"30" placeholder:"NUMBER" help:"What clients that know several caches order them by, the lowest first. (default: 30)"`
	ErrorLog  string          `placeholder:"FILE" complete:"file" help:"Log to FILE, which SIGUSR1 and SIGHUP reopen, instead of standard error."`
	AccessLog string          `placeholder:"FILE" complete:"file" help:"Write a line for every request to FILE, in the combined format of Apache."`
	Daemonize bool            `short:"D" help:"Run in the background. The command returns when that is ready, or with what is in the way."`
	PID       string          `name:"pid" placeholder:"FILE" complete:"file" help:"Write the process id into FILE, and remove that at the end."`
	User      string          `placeholder:"USER" help:"Run as this user, by name or number, once everything has been opened. The keys, the addresses and Nix's database need not be open to that user."`
	Group     string          `placeholder:"GROUP" help:"Run as this group, and not as those of the user."`
	Version   bool            `short:"v" help:"Print the version."`

	ignored `embed:"" group:"Taken, and without effect:"`
}

func (*Command) Help() string {
	return `This takes the place of nix-serve: called by that name, as through a link of it to firn, or as firn nix-serve, it takes the flags of nix-serve and of nix-serve-ng
and serves the store of this machine, signed with the key in the file that NIX_SECRET_KEY_FILE names. It keeps nothing, and nothing can be pushed to it: firn serve does more.
SIGTERM, SIGINT and SIGQUIT let answers that are being sent end first, for a minute at most.

Examples:

    ln -s /usr/bin/firn /usr/local/bin/nix-serve
    NIX_SECRET_KEY_FILE=/etc/nix/secret nix-serve --listen :5000
    nix-serve --host 127.0.0.1 --port 8080 --access-log /dev/stderr
    nix-serve --listen :5000 --error-log /var/log/nix-serve.log --pid /var/run/nix-serve.pid --user nobody --daemonize
    kill $(cat /var/run/nix-serve.pid)`
}

// Serve does what the flags say, until ctx ends. version is that of firn.
func (c *Command) Serve(ctx context.Context, k *kong.Context, version string) error {
	if c.Version {
		_, err := fmt.Fprintf(k.Stdout, "firn %s, in place of nix-serve\n", version)
		return err
	}
	p, err := c.plan(os.LookupEnv)
	if err != nil {
		return err
	}
	for _, element := range k.Path {
		if f := element.Flag; f != nil && f.Group != nil { // there is one group
			p.ignored = append(p.ignored, "--"+f.Name)
		}
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGQUIT)
	defer stop()
	starter := Started()
	if c.Daemonize && starter == nil {
		return Detach(ctx)
	}
	if err := p.serve(ctx, starter, version); err != nil {
		starter.Failed(err)
		return err
	}
	return nil
}

// A plan is what the flags and variables of a nix-serve come to.
type plan struct {
	plain, tls []listen.Address
	pairs      []certs.Pair
	store      localstore.Options
	keyFile    string // "" for none
	priority   config.Priority
	user       *User         // nil: stay who we are
	logs       config.Config // of it only what is of logs
	pidFile    string
	ignored    []string // flags
}

// programs are what the process of a nix-serve may be named.
var programs = []string{Name, "starman", "firn"}

// serve serves until ctx ends. All that may need the rights of root is done first, then these are given up, and then the first request is answered.
func (p *plan) serve(ctx context.Context, starter *Starter, version string) (err error) {
	written, err := logs.OpenServer(&p.logs, p.user.openLog)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, written.Close()) }()
	log := written.Log
	defer func() {
		if err != nil && p.logs.LogFile != "" { // standard error is where main says it
			log.Error("it ends", "error", err)
		}
	}()
	opts := cache.Options{Priority: int(p.priority), Logger: log}
	if p.keyFile != "" {
		key, err := keyfile.Load(p.keyFile, log)
		if err != nil {
			return err
		}
		opts.Keys = []nix.SecretKey{key}
	}
	if p.pidFile != "" {
		pid, err := WritePID(p.pidFile, programs...)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, pid.Remove()) }()
	}
	p.store.Logger = log
	store, err := localstore.Open(ctx, p.store)
	if err != nil {
		return fmt.Errorf("%w%s", err, advice(err))
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	c, err := cache.New([]cache.Source{store}, opts)
	if err != nil {
		return err
	}
	listeners, err := listen.OpenAll(ctx, p.plain, listen.Options{})
	if err != nil {
		return err
	}
	defer listen.CloseAll(listeners)
	https, err := listen.OpenAll(ctx, p.tls, listen.Options{})
	if err != nil {
		return err
	}
	defer listen.CloseAll(https)
	var certificates *certs.Certs
	if len(https) > 0 {
		if certificates, err = certs.New(certs.Options{Pairs: p.pairs, Logger: log}); err != nil {
			return err
		}
	}
	if err := p.user.Assume(); err != nil {
		return err
	}
	store.Disconnect()
	p.warnOfUnreadable(log)
	if starter != nil {
		if err := os.Chdir("/"); err != nil { // no file system is kept from being unmounted
			return err
		}
	}
	p.announce(log, store, append(listeners, https...))
	if err := starter.Ready(); err != nil {
		return err
	}
	p.ignoreSignals(written)

	srv := server.New(cache.Only(c), server.Options{Version: version, Logger: log, Requests: written.Requests})
	group, ctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		group.Go(func() error { return srv.Serve(ctx, l) })
	}
	for _, l := range https {
		group.Go(func() error { return srv.ServeTLS(ctx, l, certificates.Config()) })
	}
	if certificates != nil {
		group.Go(func() error { certificates.Follow(ctx); return nil })
	}
	return group.Wait()
}

// announce says what is served.
func (p *plan) announce(log *slog.Logger, store *localstore.Store, listeners []net.Listener) {
	for _, l := range listeners {
		log.Info("serving", "store", string(store.StoreDir()), "address", l.Addr().String(), "signed", p.keyFile != "", "pid", os.Getpid(), "uid", os.Geteuid())
	}
	if len(p.ignored) > 0 {
		log.Info("these flags of nix-serve have no effect here", "flags", p.ignored)
	}
}

// warnOfUnreadable says which files of certificates were read with rights that have been given up: renewed, they cannot be read.
func (p *plan) warnOfUnreadable(log *slog.Logger) {
	for _, pair := range p.pairs {
		for _, path := range slices.Compact([]string{pair.Cert, pair.Key}) {
			f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe would be waited for
			if err != nil {
				log.Warn("when this certificate is renewed it takes a restart to serve it, as this user cannot read the file; let a group of the user read it, and enter its directory",
					"file", path, "uid", os.Geteuid(), "error", err)
				continue
			}
			f.Close()
		}
	}
}

// ignoreSignals keeps the signals that nix-serve has a meaning for from ending this process: its number of workers means nothing here.
func (p *plan) ignoreSignals(l *logs.Server) {
	signal.Ignore(syscall.SIGTTIN, syscall.SIGTTOU)
	l.ReopenAt(syscall.SIGHUP)
}

// advice is what a person can do about err.
func advice(err error) string {
	if errors.Is(err, localstore.ErrNoStore) {
		return "; name another store with --store or NIX_REMOTE"
	}
	if os.Geteuid() != 0 {
		return "; as root with --user, the database is opened before root's rights are given up"
	}
	return ""
}
