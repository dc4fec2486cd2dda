package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sync/errgroup"

	"firn/internal/cache"
	"firn/internal/config"
	"firn/internal/fairlimit"
	"firn/internal/listen"
	"firn/internal/logs"
	"firn/internal/registry"
	"firn/internal/session"
)

// cacheFlags name the cache that a command serves, and what its clients may do with it.
type cacheFlags struct {
	stateFlags
	Cache    string `default:"main" placeholder:"NAME" complete:"@cache" help:"The cache to serve. By default main."`
	ReadOnly bool   `help:"Refuse pushes."`
}

// open opens the cache, and returns what a conversation about it needs, and what closes it again.
func (f *cacheFlags) open(ctx context.Context) (opts session.Options, closeAll func() error, err error) {
	cfg, err := f.load()
	if err != nil {
		return session.Options{}, nil, err
	}
	if err := checkOwner(cfg.State); err != nil {
		return session.Options{}, nil, err
	}
	log := logs.NewLogger(cfg, os.Stderr)
	var parts closers
	defer func() {
		if err != nil {
			err = errors.Join(err, parts.close())
		}
	}()
	if !f.ReadOnly {
		if err := noBackup(cfg.State, log); err != nil {
			return session.Options{}, nil, err
		}
	}
	kept, err := openDepot(ctx, cfg, log)
	if err != nil {
		return session.Options{}, nil, err
	}
	parts.onClose(kept.Close)
	keys, err := servingKeys(cfg, log)
	if err != nil {
		return session.Options{}, nil, err
	}
	known := registry.Options{Keys: keys, Priority: int(cfg.Priority), Logger: log}
	if cfg.Store != config.StoreOff {
		local, err := existingStore(ctx, cfg, log)
		if err != nil {
			return session.Options{}, nil, err
		}
		if local != nil {
			parts.onClose(local.Close)
			known.Local = local
		}
	}
	if err := prepare(ctx, kept, known.Local); err != nil {
		return session.Options{}, nil, err
	}
	all, err := registry.New(ctx, kept.catalog, kept.Depot, known)
	if err != nil {
		return session.Options{}, nil, err
	}
	if _, err := all.ByName(ctx, f.Cache); err != nil {
		return session.Options{}, nil, fmt.Errorf("there is no cache named %s; firn cache list shows those that there are", f.Cache)
	}
	memory := fairlimit.New(sshMemory)
	return session.Options{
		Behind:  session.NewBehind(),
		Memory:  func() (func(), bool) { return memory.TryTake() },
		Name:    f.Cache,
		Cache:   func(ctx context.Context) (*cache.Cache, error) { return all.ByName(ctx, f.Cache) },
		Who:     func(context.Context) (cache.Principal, error) { return owner{f.ReadOnly}, nil },
		By:      owner{}.Name(),
		Version: "firn " + version(),
		Logger:  log,
	}, parts.close, nil
}

// An owner is a user who may read the state directory: the permissions of its files say what the user may do.
type owner struct{ readOnly bool }

func (owner) Name() string { return "this machine" }

func (o owner) May(r cache.Rights, _ string) bool { return r == cache.Read || !o.readOnly }

type stdioCommand struct {
	cacheFlags
}

func (*stdioCommand) Help() string {
	return `This is for a key in an authorized_keys of OpenSSH, with which Nix then uses a cache as ssh:// and ssh-ng://,
and for any other program that connects standard input and output with Nix. It runs as the user that the server runs as, also beside it.

Examples:

    restrict,command="firn stdio --cache main" ssh-ed25519 AAAA… alice@laptop
    restrict,command="firn stdio --cache main --read-only" ssh-ed25519 AAAA… bob@laptop`
}

// A pipe is standard input and output.
type pipe struct {
	io.Reader
	io.Writer
	io.Closer // of reading, as if nothing followed
}

// newPipe reads in a goroutine of its own, so that Close can end a read: a read of standard input itself goes on until something comes.
func newPipe(in io.Reader, out io.Writer) pipe {
	r, w := io.Pipe()
	go func() {
		_, err := io.Copy(w, in)
		w.CloseWithError(err)
	}()
	return pipe{r, out, w}
}

func (c *stdioCommand) Run() (err error) {
	ctx, cancel := untilSignal()
	defer cancel()
	in := bufio.NewReader(os.Stdin)
	command, err := wantedCommand(os.Getenv("SSH_ORIGINAL_COMMAND"), in)
	if err != nil {
		return err
	}
	opts, closeAll, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	command.ReadOnly = command.ReadOnly || c.ReadOnly
	return session.Serve(ctx, newPipe(in, os.Stdout), command, opts)
}

// The first bytes of both protocols, which tell them apart.
const (
	legacyMagic = 0x390c9deb
	workerMagic = 0x6e697863
)

// wantedCommand tells what a client wants: what sshd says that it asked for, else what it begins with.
func wantedCommand(line string, in *bufio.Reader) (session.Command, error) {
	if line != "" {
		return session.ParseCommand(line)
	}
	first, err := in.Peek(8)
	if err != nil {
		return session.Command{}, errors.New("there is no client on standard input; firn stdio --help says what this is for")
	}
	switch binary.LittleEndian.Uint64(first) {
	case legacyMagic:
		return session.Command{Protocol: session.Legacy}, nil
	case workerMagic:
		return session.Command{Protocol: session.Worker}, nil
	}
	return session.Command{}, errors.New("what comes on standard input is neither of Nix's protocols; firn stdio --help says what this is for")
}

type daemonCommand struct {
	cacheFlags
	Socket string `required:"" placeholder:"PATH" complete:"file" help:"The socket to listen on. Who may enter its directory may use the cache."`
}

func (*daemonCommand) Help() string {
	return `Nix on this machine then pushes to the cache, and asks what it has, as unix://PATH. It does not fetch from there: Nix reads the files
of a store that it reaches over a socket itself. This runs as the user that the server runs as, also beside it.

Examples:

    firn daemon --socket /run/firn/main.sock
    nix copy --to unix:///run/firn/main.sock PATH`
}

func (c *daemonCommand) Run() (err error) {
	ctx, cancel := untilSignal()
	defer cancel()
	address, err := listen.ParseAddress("unix:" + c.Socket)
	if err != nil {
		return err
	}
	opts, closeAll, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	l, err := address.Open(ctx, listen.Options{})
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	opts.Logger.Info("listening", "socket", c.Socket, "cache", c.Cache)

	group := &errgroup.Group{}
	group.SetLimit(maxDaemonSessions) // others wait for a slot
	for {
		conn, err := l.Accept()
		if err != nil {
			if waited := group.Wait(); ctx.Err() != nil {
				return waited
			}
			return fmt.Errorf("listen on %s: %w", c.Socket, err)
		}
		group.Go(func() error {
			defer conn.Close()
			command := session.Command{Protocol: session.Worker, ReadOnly: c.ReadOnly}
			if err := session.Serve(ctx, conn, command, opts); err != nil && !errors.Is(err, net.ErrClosed) {
				opts.Logger.Debug("a session failed", "error", err)
			}
			return nil
		})
	}
}

// maxDaemonSessions bounds the clients at once. Each takes about a megabyte.
const maxDaemonSessions = 256
