package sshd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"firn/internal/audit"
	"firn/internal/cache"
	"firn/internal/fairlimit"
)

// whoKey is where the principal of a key is in the permissions.
type whoKey struct{}

// admit gives a new connection a place, if need be that of another one. It returns nil if there is no place,
// and has closed the connection then. It is called in the order in which connections come in: an older
// connection must not take the place of a newer one.
func (s *Server) admit(nc net.Conn) *login {
	c := &idleConn{Conn: nc, idle: s.idle, counts: &s.counts}
	remote := addrOf(nc)
	n := s.newLogin(c, remote)
	if !n.begin() {
		s.counts.turnedAway.Add(1)
		s.log.Debug("turned away: too many connections that have not logged in", "remote", remote.String())
		c.Close()
		return nil
	}
	return n
}

// serveConn answers one client. Once ctx ends nothing new is begun; once work ends the connection
// is cut.
func (s *Server) serveConn(ctx, work context.Context, n *login) {
	c := n.conn
	defer c.Close()
	remote := addrOf(c)
	log := s.log.With("remote", remote.String())
	defer context.AfterFunc(work, func() { c.Close() })()

	sc, channels, requests, err := s.handshake(ctx, n, remote)
	n.seat.Give()
	if err != nil {
		if n.displaced.Load() {
			s.counts.turnedAway.Add(1)
			log.Debug("turned away: it had not logged in, and made room for another", "error", err)
			return
		}
		s.counts.failed.Add(1)
		log.Debug("no login", "error", err)
		return
	}
	defer sc.Close()
	key := sc.Permissions.ExtraData[whoKey{}].(ssh.PublicKey)
	owners := []string{"key " + ssh.FingerprintSHA256(key), fairlimit.Address(remote)}
	done, ok := s.open.TryTake(owners...)
	if !ok {
		s.counts.turnedAway.Add(1)
		log.Debug("turned away: too many connections that have logged in")
		return
	}
	defer done()
	s.counts.loggedIn.Add(1)
	s.counts.open.Add(1)
	defer s.counts.open.Add(-1)
	unread, leave := s.limits.join(owners[0])
	defer leave()
	defer unread.close()
	c.unread.Store(unread)
	l := &Login{owners: owners, hangUp: func() { sc.Close() }, unread: unread,
		User: sc.User(), Remote: remote, Key: ssh.FingerprintSHA256(key), Who: func(ctx context.Context) (cache.Principal, error) {
			who, err := s.access.SSHKey(ctx, key, sc.User())
			if err == nil {
				s.access.Used(who)
			}
			return who, err
		}}
	log = log.With("user", l.User, "key", l.Key)
	log.Debug("logged in", "client", string(sc.ClientVersion()))

	var others sync.WaitGroup
	others.Go(func() { ssh.DiscardRequests(requests) }) // all are refused: there is nothing to forward
	s.serveChannels(ctx, work, l, channels, log)
	sc.Close()
	others.Wait()
}

// A login is a connection that has not logged in yet.
type login struct {
	conn      *idleConn
	seat      *fairlimit.Seat[*login]
	began     time.Time
	order     atomic.Int64 // see Spare
	displaced atomic.Bool  // by another
}

func (s *Server) newLogin(c *idleConn, remote netip.Addr) *login {
	n := &login{conn: c, began: time.Now()}
	n.order.Store(n.began.UnixNano())
	n.seat = s.logins.Seat(fairlimit.Address(remote), n)
	return n
}

// begin takes a place for the connection, if need be that of another, which is closed.
func (n *login) begin() (ok bool) {
	leaves, ok := n.seat.Take()
	if leaves != nil {
		(*leaves).displaced.Store(true)
		(*leaves).conn.Close()
	}
	return ok
}

// Spare gives the order in which connections make room for others: first those that are silent, or
// have said too little to have exchanged keys, by age; then those that have, since this costs a
// client as much as the server.
func (n *login) Spare() (order int64, ok bool) { return n.order.Load(), true }

// behindSilent is added to the order of those that have exchanged keys.
const behindSilent = 1 << 62

// exchanged notes that keys were exchanged, which gives the client the time to log in.
func (n *login) exchanged() {
	n.order.Store(behindSilent + time.Now().UnixNano())
	n.seat.Spared()
	// It fails only when it is closed, which the next read tells.
	_ = n.conn.SetDeadline(n.began.Add(loginLimit))
}

// handshake lets a client log in.
func (s *Server) handshake(ctx context.Context, n *login, remote netip.Addr) (*ssh.ServerConn, <-chan ssh.NewChannel, <-chan *ssh.Request, error) {
	c := n.conn
	if err := c.SetDeadline(n.began.Add(keysLimit)); err != nil {
		return nil, nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.Close() }) // no client waits for an answer yet
	tried, waited := false, false
	var wrong error // why the last key that was offered is; nil if it is right
	var user string
	config := s.config
	config.BannerCallback = func(ssh.ConnMetadata) string { // called when keys are exchanged; there is no banner
		n.exchanged()
		return ""
	}
	config.PublicKeyCallback = func(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		tried, user, wrong = true, meta.User(), nil
		if _, err := s.access.SSHKey(ctx, key, user); err != nil {
			wrong = fmt.Errorf("%s: %w", ssh.FingerprintSHA256(key), err)
			// Only a wrong key waits. A right one is accepted at once, whatever other clients at the same address do.
			if wait := min(maxWait, s.access.Wait(remote)); wait > 0 && !waited && errors.Is(err, cache.ErrUnauthenticated) {
				waited = true
				select {
				case <-time.After(wait):
				case <-ctx.Done():
				}
			}
			return nil, err
		}
		permissions := &ssh.Permissions{}
		if cert, ok := key.(*ssh.Certificate); ok {
			*permissions = cert.Permissions // the library sees to source-address
		}
		permissions.ExtraData = map[any]any{whoKey{}: key}
		return permissions, nil
	}
	sc, channels, requests, err := ssh.NewServerConn(c, &config)
	if !stop() && err == nil {
		sc.Close()
		err = fmt.Errorf("the server is ending: %w", context.Cause(ctx))
	}
	if err != nil {
		if tried && ctx.Err() == nil && !n.displaced.Load() {
			s.access.Failed(remote)
			if errors.Is(wrong, cache.ErrUnauthenticated) {
				s.audit.Refused(audit.Client{FrontEnd: audit.SSH, Remote: remote, Cache: user}, audit.WrongKey, wrong)
			}
		}
		return nil, nil, nil, err
	}
	return sc, channels, requests, c.begin()
}

// serveChannels answers the sessions of a connection, until the client hangs up or, once ctx has ended, they have.
func (s *Server) serveChannels(ctx, work context.Context, l *Login, channels <-chan ssh.NewChannel, log *slog.Logger) {
	var sessions sync.WaitGroup
	defer sessions.Wait()
	var open atomic.Int64
	ended := make(chan struct{}, 1) // holds something when a session has ended since it was last looked at
	done := ctx.Done()
	for {
		select {
		case n, ok := <-channels:
			switch {
			case !ok:
				return
			case ctx.Err() != nil:
				n.Reject(ssh.ConnectionFailed, "the server is ending")
			case n.ChannelType() != "session":
				n.Reject(ssh.Prohibited, "this is a Nix cache: it forwards nothing")
			default:
				backlog := l.unread.backlog() // a client may send data before it is told that it may
				if !hasPlace(&open, ended, channels) {
					n.Reject(ssh.ResourceShortage, "too many sessions on one connection")
					backlog.remove()
					continue
				}
				open.Add(1)
				sessions.Go(func() {
					defer backlog.remove()
					defer func() {
						open.Add(-1)
						select {
						case ended <- struct{}{}:
						default:
						}
					}()
					s.serveSession(ctx, work, l, n, backlog, log)
				})
			}
		case <-done:
			done = nil
		case <-ended:
		}
		if ctx.Err() != nil && open.Load() == 0 {
			return
		}
	}
}

const (
	// maxChannels bounds the sessions on one connection, as OpenSSH's MaxSessions does.
	maxChannels = 10
	// endingTime is how long a session may go on ending here that its client has seen to its end.
	endingTime = time.Second
)

// hasPlace reports whether a connection may have one more session. It waits for a session that is about
// to end, because a client may begin the next one before that. It does not wait while further channels
// queue up behind this one: the library keeps what is sent to them as well.
func hasPlace(open *atomic.Int64, ended <-chan struct{}, queue <-chan ssh.NewChannel) bool {
	for late := time.After(endingTime); open.Load() >= maxChannels; {
		if len(queue) > 0 {
			return false
		}
		select {
		case <-ended:
		case <-late:
			return false
		}
	}
	return true
}

// addrOf returns where a connection comes from, the zero Addr if it has no IP address.
func addrOf(nc net.Conn) netip.Addr {
	if a, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr()
	}
	return netip.Addr{}
}

// An idleConn is a connection that ends when nothing was sent in either direction for a while, once it has begun.
type idleConn struct {
	net.Conn
	counts *counts
	idle   time.Duration
	unread atomic.Pointer[unread] // nil until it has logged in
	next   atomic.Int64           // when the deadline is to be moved, in nanoseconds since 1970; 0: it has not begun
}

// deadlineSteps is how often the deadline is moved while idle passes: not with every packet.
const deadlineSteps = 16

func (c *idleConn) begin() error {
	now := time.Now()
	c.next.Store(now.Add(c.idle / deadlineSteps).UnixNano())
	return c.SetDeadline(now.Add(c.idle))
}

func (c *idleConn) touch() {
	next := c.next.Load()
	if next == 0 {
		return
	}
	if now := time.Now(); now.UnixNano() >= next && c.next.CompareAndSwap(next, now.Add(c.idle/deadlineSteps).UnixNano()) {
		c.SetDeadline(now.Add(c.idle)) // fails only when it is closed, which the next call tells
	}
}

func (c *idleConn) Close() error {
	if u := c.unread.Load(); u != nil {
		u.close()
	}
	return c.Conn.Close()
}

func (c *idleConn) Read(p []byte) (int, error) {
	u := c.unread.Load()
	if u != nil {
		if err := u.wait(c.idle); err != nil {
			return 0, err
		}
	}
	n, err := c.Conn.Read(p)
	if n > 0 {
		if u != nil {
			u.received(n)
		}
		c.counts.received.Add(int64(n))
		c.touch()
		acknowledge(c.Conn, n)
	}
	return n, err
}

func (c *idleConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if n > 0 {
		c.counts.sent.Add(int64(n))
		c.touch()
	}
	return n, err
}
