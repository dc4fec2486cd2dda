// Package sshd is the front end for ssh:// and ssh-ng://: an SSH server that runs no program.
//
//	keys, err := sshd.HostKeys(dir, log)
//	server := sshd.New(access, answer, sshd.Options{HostKeys: keys})
//	err = server.Serve(ctx, listener)
//
// Clients log in with a public key. The user name is the name of a cache. A client can only send a command
// line, any number of times on one connection: [Answer] reads what the client sends to it, and writes the
// answer. There is no shell, no terminal, no forwarding and no environment.
package sshd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"firn/internal/audit"
	"firn/internal/cache"
	"firn/internal/fairlimit"
)

const (
	// defaultIdle is how long nothing may be sent in either direction. Nix keeps connections for as long as it runs,
	// so this is longer than most builds.
	defaultIdle = time.Hour

	// keysLimit is how long a client may take until keys are exchanged, for which its program needs
	// no person, and loginLimit how long until it has logged in: a person may have to touch a key.
	keysLimit, loginLimit = 10 * time.Second, time.Minute

	// maxTries is how many keys a client may offer, as one with an agent does.
	maxTries = 20

	// maxWait bounds how long the answer to a wrong key is held back. A longer wait slows no client that connects again.
	maxWait = 10 * time.Second

	// graceLimit is how long connections may go on after they were asked to end, like those over HTTP.
	graceLimit = time.Minute
)

// Access tells who a client is. All methods may be called at once.
type Access interface {
	// SSHKey returns who holds a key or a certificate, and logs in as a user. cache.ErrUnauthenticated: the key may not log in.
	SSHKey(ctx context.Context, key ssh.PublicKey, user string) (cache.Principal, error)
	// Used notes that a client uses its key, after it has proved that the key is its own.
	Used(who cache.Principal)
	// Failed counts a connection from an address that did not log in.
	Failed(remote netip.Addr)
	// Wait returns how long an address that has failed too often should wait.
	Wait(remote netip.Addr) time.Duration
}

// A Login is a client that has shown who it is.
type Login struct {
	User   string     // as which it logged in
	Remote netip.Addr // zero if there is none
	Key    string     // the fingerprint of its key
	// Who returns who the client is now: cache.ErrUnauthenticated if its key was revoked or has expired since the login.
	Who func(ctx context.Context) (cache.Principal, error)

	owners []string // by which its places are counted
	hangUp func()   // ends the connection
	unread *unread  // of it
}

// Owners are the names by which the places are counted that the client takes, see [fairlimit.Slots].
func (l *Login) Owners() []string { return l.owners }

// Answer answers a command line of a client. It reads the client's standard input from conn, and writes the client's standard output.
// The text of its error is for the client. Once ctx ends it should return soon, at a point where the conversation can be broken off.
// Close of conn ends all reads and writes. It may be called while these go on.
type Answer func(ctx context.Context, l *Login, command string, conn io.ReadWriteCloser) error

// Options of a Server.
type Options struct {
	// HostKeys show clients which server this is. One at the least.
	HostKeys []ssh.Signer
	// Version is told to clients in the first line: no spaces. "" says nothing.
	Version string
	// Idle is how long a connection may be silent, an hour if zero.
	Idle time.Duration
	// Sessions is how many commands are answered at once, half of them of one key or from one
	// address; others wait. Each takes about a megabyte, and up to two more when its client sends
	// faster than can be kept. If zero, what [fairlimit.Divide] gives them.
	Sessions int
	// Connections is how many there may be that have logged in, likewise; further ones are turned
	// away. Some may wait for a slot, or for a client that builds something. If zero, what
	// [fairlimit.Divide] gives them.
	Connections int
	// Logins is how many there may be that have not logged in yet, half of them from one address;
	// the oldest that is silent makes room. Each costs some milliseconds of a core and some 100
	// KiB. If zero, what [fairlimit.Divide] gives them.
	Logins int
	// Audit records whose key is refused. Nil: only a counter is kept.
	Audit *audit.Log
	// Logger logs connections and sessions. Nil discards.
	Logger *slog.Logger

	limits *limits // for tests with less than there is
}

// Server is an SSH server, and a prometheus.Collector of what it does. It is safe for concurrent use.
type Server struct {
	config   ssh.ServerConfig
	access   Access
	answer   Answer
	idle     time.Duration
	sessions *fairlimit.Slots
	open     *fairlimit.Slots         // for connections that have logged in
	logins   *fairlimit.Seats[*login] // for those that have not
	limits   *limits
	audit    *audit.Log
	log      *slog.Logger
	counts   counts
}

// New returns a Server.
func New(access Access, answer Answer, opts Options) *Server {
	files := fairlimit.OfProcess()
	if opts.Audit == nil {
		opts.Audit = audit.New(audit.Options{})
	}
	s := &Server{
		access:   access,
		answer:   answer,
		idle:     cmp.Or(opts.Idle, defaultIdle),
		sessions: fairlimit.New(cmp.Or(opts.Sessions, files.SSHSessions)),
		open:     fairlimit.New(cmp.Or(opts.Connections, files.SSHConnections)),
		logins:   fairlimit.NewSeats[*login](cmp.Or(opts.Logins, files.SSHLogins)),
		audit:    opts.Audit,
		log:      cmp.Or(opts.Logger, slog.New(slog.DiscardHandler)),
		limits:   cmp.Or(opts.limits, newLimits(maxUnread, keyUnread)),
	}
	s.config = ssh.ServerConfig{
		Config:                  algorithms(),
		PublicKeyAuthAlgorithms: publicKeyAlgorithms,
		MaxAuthTries:            maxTries,
		ServerVersion:           "SSH-2.0-firn",
	}
	if opts.Version != "" {
		s.config.ServerVersion += "_" + opts.Version
	}
	for _, k := range opts.HostKeys {
		s.config.AddHostKey(k)
	}
	return s
}

// Serve answers on a listener until ctx ends, and then until what is being answered can be broken off. It closes the listener.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	work, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var conns sync.WaitGroup
	for {
		nc, err := l.Accept()
		if err != nil {
			if ctx.Err() == nil {
				if temporary(err) {
					s.log.Warn("a connection could not be accepted", "error", err)
					time.Sleep(acceptPause)
					continue
				}
				l.Close()
				cut()
				conns.Wait()
				return fmt.Errorf("serve %s: %w", l.Addr(), err)
			}
			break
		}
		if n := s.admit(nc); n != nil {
			conns.Go(func() { s.serveConn(ctx, work, n) })
		}
	}
	ended := make(chan struct{})
	go func() { conns.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(graceLimit):
		s.log.Warn("cut the sessions that were still going on", "listener", l.Addr().String())
		cut()
		<-ended
	}
	return nil
}

// acceptPause is the pause after a connection that could not be accepted, as when there are no more file descriptors.
const acceptPause = 50 * time.Millisecond

// temporary reports whether a listener may go on after err.
func temporary(err error) bool { return !errors.Is(err, net.ErrClosed) }
