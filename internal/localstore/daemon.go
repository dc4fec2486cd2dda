package localstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"sync"
	"syscall"
	"time"

	"firn/internal/cache"
	"firn/nix"
	"firn/nix/protocol"
)

const (
	// daemonTimeout bounds one exchange with the daemon. It answers in well under a millisecond;
	// what takes longer waits for the garbage collector, or for a daemon that hangs.
	daemonTimeout = 5 * time.Second

	// maxExchanges bounds the exchanges at once, and so the processes of the daemon that clients can cause.
	maxExchanges = 8

	// daemonIdleConns is how many connections are kept for the next question:
	// each is a process of the daemon.
	daemonIdleConns = 2

	// daemonIdleTime is how long a connection may lie unused.
	daemonIdleTime = time.Minute

	// daemonPause is how long a daemon that did not answer is left alone,
	// so that one that hangs does not hold up one request after the other.
	daemonPause = time.Second

	// daemonPatience is how long a daemon that does not answer is believed to do so yet. On a machine with too much to do
	// it takes seconds; one that is silent for longer hangs, and counts as one that is not there.
	daemonPatience = 30 * time.Second
)

// daemon asks the Nix daemon over its socket. It is safe for concurrent use.
type daemon struct {
	socket   string
	storeDir nix.StoreDir
	idle     chan *daemonConn
	slots    chan struct{} // holds something for each exchange

	mu     sync.Mutex
	failed failure   // of the last exchange; zero after one that went well
	silent time.Time // since when it has not answered; zero while it does, or is not there
	given  bool      // up, and that was logged
	tried  bool      // a question is under way while it is given up
}

func newDaemon(socket string, storeDir nix.StoreDir) *daemon {
	return &daemon{
		socket: socket, storeDir: storeDir,
		idle: make(chan *daemonConn, daemonIdleConns), slots: make(chan struct{}, maxExchanges),
	}
}

// ping makes sure that there is a connection.
func (d *daemon) ping(ctx context.Context) error {
	c, err := d.dial(ctx)
	if err != nil {
		return err
	}
	d.keep(c)
	return nil
}

// pathInfo asks for the path with the given path hash; nil if the daemon knows none.
func (d *daemon) pathInfo(ctx context.Context, hash nix.PathHash) (*nix.PathInfo, error) {
	var info *nix.PathInfo
	err := d.do(ctx, func(c *protocol.WorkerClient) error {
		path, err := c.PathFromHash(hash)
		if err == nil {
			info, err = pathInfoOf(c, d.storeDir, path)
		}
		if errors.Is(err, protocol.ErrNotFound) {
			return nil
		}
		return err
	})
	return info, err
}

// pathInfoOf asks for what is known of a path. protocol.ErrNotFound if it has gone since.
func pathInfoOf(c *protocol.WorkerClient, dir nix.StoreDir, path nix.StorePath) (*nix.PathInfo, error) {
	r, err := c.Registration(path)
	if err != nil {
		return nil, err
	}
	row := row{
		path: path.String(), hash: "sha256:" + r.NARHash, registered: r.RegistrationTime, deriver: r.Deriver, narSize: r.NARSize,
		ultimate: r.Ultimate, signatures: r.Signatures, ca: r.CA, references: r.References,
	}
	return row.pathInfo(dir)
}

// findsRoot reports whether the daemon finds a root of the garbage collector at this path.
func (d *daemon) findsRoot(ctx context.Context, link string) (found bool, err error) {
	c, err := d.dial(ctx)
	if err != nil {
		return false, err
	}
	defer c.Close()
	err = c.exchangeWithin(ctx, findTimeout, func(c *protocol.WorkerClient) (err error) {
		found, err = c.FindsRoot(link)
		return err
	})
	return found, err
}

// AddNAR adds a path through the daemon.
func (s *Store) AddNAR(ctx context.Context, info *nix.PathInfo, r io.Reader) error {
	return s.daemon.add(ctx, func(c *protocol.WorkerClient) error { return c.AddNAR(info, r) })
}

// AddSignatures adds signatures to a path through the daemon.
func (s *Store) AddSignatures(ctx context.Context, path nix.StorePath, sigs []nix.Signature) error {
	return s.daemon.add(ctx, func(c *protocol.WorkerClient) error { return c.AddSignatures(path, sigs) })
}

// add runs one exchange that may take as long as it likes, on a connection of its own: what it has
// sent cannot be sent again, should a connection that was kept be dead.
func (d *daemon) add(ctx context.Context, exchange func(*protocol.WorkerClient) error) error {
	c, err := d.dial(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", cache.ErrUnavailable, err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Time{}); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { c.Close() })()
	err = exchange(c.client)
	if answer, ok := errors.AsType[*protocol.AnswerError](err); ok {
		err = cache.Refuse(cache.ErrInvalid, "the Nix daemon of the server: %s", answer.Message)
	}
	return err
}

// do runs one exchange on a connection, once more on a fresh one when a kept one turns out to be dead.
func (d *daemon) do(ctx context.Context, exchange func(*protocol.WorkerClient) error) error {
	select {
	case d.slots <- struct{}{}:
		defer func() { <-d.slots }()
	case <-ctx.Done():
		return d.fail(ctx, ctx.Err())
	}
	for {
		var c *daemonConn
		select {
		case c = <-d.idle:
		default:
		}
		kept := c != nil
		if kept && time.Since(c.used) > daemonIdleTime {
			c.Close()
			continue
		}
		if !kept {
			var err error
			if c, err = d.dial(ctx); err != nil {
				return err
			}
		}
		err := c.exchange(ctx, exchange)
		if err == nil {
			d.keep(c)
			d.answered()
			return nil
		}
		c.Close()
		if kept && ctx.Err() == nil && isClosed(err) {
			continue
		}
		if errors.As(err, new(*protocol.AnswerError)) || errors.As(err, new(*rowError)) {
			d.answered()
			return err
		}
		return d.fail(ctx, err)
	}
}

// isClosed reports whether err says that the other end has gone.
func isClosed(err error) bool {
	var op *net.OpError
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &op) && !op.Timeout()
}

// isTimeout reports whether err says that there was no answer in time, or no room in the queue of those who wait for one.
func isTimeout(err error) bool {
	t, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	return ok && t.Timeout()
}

// keep keeps a connection for the next exchange, or closes it.
func (d *daemon) keep(c *daemonConn) {
	c.used = time.Now()
	select {
	case d.idle <- c:
	default:
		c.Close()
	}
}

// close closes the connections that are kept.
func (d *daemon) close() {
	for {
		select {
		case c := <-d.idle:
			c.Close()
		default:
			return
		}
	}
}

// dial opens a connection of its own; the caller closes it.
func (d *daemon) dial(ctx context.Context) (*daemonConn, error) {
	if err := d.pausing(); err != nil {
		return nil, err
	}
	dialer := net.Dialer{Timeout: daemonTimeout}
	nc, err := dialer.DialContext(ctx, "unix", d.socket)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		err = fmt.Errorf("none runs: start nix-daemon: %w", err)
	}
	if err != nil {
		return nil, d.fail(ctx, explainDenied(err, d.socket, mayWrite))
	}
	c := &daemonConn{Conn: nc}
	err = c.exchange(ctx, func(*protocol.WorkerClient) (err error) {
		c.client, err = protocol.DialWorker(nc, d.storeDir)
		return err
	})
	if err != nil {
		c.Close()
		if isClosed(err) {
			err = fmt.Errorf("it hung up at once, as it does where allowed-users in its nix.conf has not the user %s: "+
				"add that, and restart nix-daemon: %w", userName(), err)
		}
		return nil, d.fail(ctx, err)
	}
	return c, nil
}

// pausing returns the last error while the daemon is left alone.
func (d *daemon) pausing() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failed.err != nil && time.Since(d.failed.at) < daemonPause {
		return d.failed.err
	}
	return nil
}

// fail wraps an error, and leaves the daemon alone for a while unless the caller has lost patience first.
func (d *daemon) fail(ctx context.Context, err error) error {
	err = fmt.Errorf("ask Nix daemon at %s: %w", d.socket, err)
	if ctx.Err() == nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		now := time.Now()
		switch {
		case !isTimeout(err):
			d.silent, d.given = time.Time{}, false
		case d.silent.IsZero() || now.Sub(d.failed.at) > daemonPatience: // it was not asked in between
			d.silent, d.given = now, false
		}
		d.failed = failure{err, now}
	}
	return err
}

// answered records that the daemon does.
func (d *daemon) answered() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failed, d.silent, d.given = failure{}, time.Time{}, false
}

// givenUp reports whether the daemon is silent for so long that it counts as none, and whether it is the first to find that.
func (d *daemon) givenUp() (yes, first bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	yes = !d.silent.IsZero() && time.Since(d.silent) >= daemonPatience
	first = yes && !d.given
	d.given = d.given || yes
	return yes, first
}

// try reports whether the daemon is worth a question, after which the caller calls done. Of one that is given up one question at a time finds out
// whether it answers again; all others would wait in vain.
func (d *daemon) try() (done func(), ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case !d.given:
		return func() {}, true
	case d.tried:
		return nil, false
	}
	d.tried = true
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.tried = false
	}, true
}

// daemonConn is one connection to the daemon, for one goroutine at a time.
// After any error it is of no more use.
type daemonConn struct {
	net.Conn
	client *protocol.WorkerClient
	used   time.Time
}

// exchange runs f within the time that an exchange may take.
func (c *daemonConn) exchange(ctx context.Context, f func(*protocol.WorkerClient) error) error {
	return c.exchangeWithin(ctx, daemonTimeout, f)
}

func (c *daemonConn) exchangeWithin(ctx context.Context, limit time.Duration, f func(*protocol.WorkerClient) error) error {
	deadline := time.Now().Add(limit)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	err := f(c.client)
	if !stop() && err == nil {
		err = ctx.Err() // the deadline may be set at any time now
	}
	return err
}
