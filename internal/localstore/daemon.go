package localstore

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"firn/nix"
)

// The worker protocol, in the part that is needed here. All integers are 8 bytes, little-endian;
// a string is its length, its bytes, and zeros up to a multiple of 8 (worker-protocol.md of Nix's manual).
const (
	magicClient = 0x6e697863
	magicServer = 0x6478696f

	// Versions are major<<8 | minor. The lower one of both ends is spoken.
	// From 1.38 on features are negotiated, of which none is of use here.
	protocolVersion = 1<<8 | 37
	protocolOldest  = 1<<8 | 21 // Nix 2.1

	opAddTempRoot           = 11
	opQueryPathInfo         = 26
	opQueryPathFromHashPart = 29

	stderrNext          = 0x6f6c6d67
	stderrStartActivity = 0x53545254
	stderrStopActivity  = 0x53544f50
	stderrResult        = 0x52534c54
	stderrLast          = 0x616c7473
	stderrError         = 0x63787470
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

	maxDaemonString     = 64 << 10 // bytes; longer than any path, name or signature, and than messages are of use
	maxDaemonReferences = 1 << 20  // store paths in one set
	maxDaemonFields     = 64       // fields of an activity, traces of an error
)

// daemon asks the Nix daemon over its socket. It is safe for concurrent use.
type daemon struct {
	socket   string
	storeDir nix.StoreDir
	idle     chan *daemonConn
	turns    chan struct{} // holds something for each exchange

	mu     sync.Mutex
	failed failure // of the last exchange; zero after one that went well
}

func newDaemon(socket string, storeDir nix.StoreDir) *daemon {
	return &daemon{
		socket: socket, storeDir: storeDir,
		idle: make(chan *daemonConn, daemonIdleConns), turns: make(chan struct{}, maxExchanges),
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
	err := d.do(ctx, func(c *daemonConn) error {
		path, err := c.queryPathFromHashPart(hash)
		if err != nil || path == "" {
			return err
		}
		info, err = c.queryPathInfo(d.storeDir, path)
		return err
	})
	return info, err
}

// do runs one exchange on a connection, once more on a fresh one when a kept one turns out to be dead.
func (d *daemon) do(ctx context.Context, exchange func(*daemonConn) error) error {
	select {
	case d.turns <- struct{}{}:
		defer func() { <-d.turns }()
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
			return nil
		}
		c.Close()
		if kept && ctx.Err() == nil && isClosed(err) {
			continue
		}
		if errors.As(err, new(*answerError)) || errors.As(err, new(*rowError)) {
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
	if err != nil {
		return nil, d.fail(ctx, err)
	}
	c := &daemonConn{Conn: nc, r: bufio.NewReader(nc)}
	if err := c.exchange(ctx, (*daemonConn).handshake); err != nil {
		c.Close()
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
		d.failed = failure{err, time.Now()}
	}
	return err
}

// daemonConn is one connection to the daemon, for one goroutine at a time.
// After any error it is of no more use.
type daemonConn struct {
	net.Conn
	r       *bufio.Reader
	out     []byte // the request that is being made
	version uint64
	used    time.Time
}

// exchange runs f within the time that an exchange may take.
func (c *daemonConn) exchange(ctx context.Context, f func(*daemonConn) error) error {
	deadline := time.Now().Add(daemonTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	err := f(c)
	if !stop() && err == nil {
		err = ctx.Err() // the deadline may be set at any time now
	}
	return err
}

func (c *daemonConn) handshake() error {
	c.putUint(magicClient)
	if err := c.send(); err != nil {
		return err
	}
	magic, err := c.uint()
	if err != nil {
		return err
	}
	if magic != magicServer {
		return fmt.Errorf("it does not speak the worker protocol (greeting %#x)", magic)
	}
	theirs, err := c.uint()
	if err != nil {
		return err
	}
	if theirs>>8 != protocolVersion>>8 || theirs < protocolOldest {
		return fmt.Errorf("it speaks version %d.%d of the worker protocol, not 1.21 or later", theirs>>8, theirs&0xff)
	}
	c.version = min(theirs, protocolVersion)
	c.putUint(protocolVersion)
	c.putUint(0) // no CPU affinity
	c.putUint(0) // reserve no space
	if err := c.send(); err != nil {
		return err
	}
	if c.version >= 1<<8|33 {
		if _, err := c.string(); err != nil { // the version of Nix
			return err
		}
	}
	if c.version >= 1<<8|35 {
		if _, err := c.uint(); err != nil { // whether it trusts us
			return err
		}
	}
	return c.finish()
}

// queryPathFromHashPart returns the full path, or "".
func (c *daemonConn) queryPathFromHashPart(hash nix.PathHash) (string, error) {
	c.putUint(opQueryPathFromHashPart)
	c.putString(hash.String())
	if err := c.roundTrip(); err != nil {
		return "", err
	}
	return c.string()
}

// queryPathInfo returns nil if the path has gone meanwhile.
func (c *daemonConn) queryPathInfo(dir nix.StoreDir, path string) (*nix.PathInfo, error) {
	c.putUint(opQueryPathInfo)
	c.putString(path)
	if err := c.roundTrip(); err != nil {
		return nil, err
	}
	if valid, err := c.uint(); err != nil || valid == 0 {
		return nil, err
	}
	row := row{path: path}
	var err error
	text := func(dst *string) {
		if err == nil {
			*dst, err = c.string()
		}
	}
	number := func(dst *int64) {
		var n uint64
		if err == nil {
			n, err = c.uint()
			*dst = int64(n) // what does not fit is negative, and refused as such
		}
	}
	set := func(dst *[]string) {
		if err == nil {
			*dst, err = c.strings()
		}
	}
	var ultimate int64
	text(&row.deriver)
	text(&row.hash) // bare base 16
	set(&row.references)
	number(&row.registered)
	number(&row.narSize)
	number(&ultimate)
	set(&row.signatures)
	text(&row.ca)
	if err != nil {
		return nil, err
	}
	row.hash = "sha256:" + row.hash
	row.ultimate = ultimate != 0
	return row.pathInfo(dir)
}

// addTempRoot keeps path from being collected for as long as the connection is open.
func (c *daemonConn) addTempRoot(path nix.StorePath) error {
	c.putUint(opAddTempRoot)
	c.putString(path.String())
	if err := c.roundTrip(); err != nil {
		return err
	}
	_, err := c.uint()
	return err
}

// roundTrip sends the request and reads up to where its result begins.
func (c *daemonConn) roundTrip() error {
	if err := c.send(); err != nil {
		return err
	}
	return c.finish()
}

// finish reads what the daemon has to say until the request is done, and drops it unless it is an error.
func (c *daemonConn) finish() error {
	for {
		tag, err := c.uint()
		if err != nil {
			return err
		}
		switch tag {
		case stderrLast:
			return nil
		case stderrError:
			return c.readError()
		case stderrNext:
			_, err = c.string()
		case stderrStartActivity:
			err = errors.Join(c.skipUints(3), c.skipString(), c.skipFields(), c.skipUints(1))
		case stderrStopActivity:
			err = c.skipUints(1)
		case stderrResult:
			err = errors.Join(c.skipUints(2), c.skipFields())
		default:
			err = fmt.Errorf("it sent an unknown message, %#x", tag)
		}
		if err != nil {
			return err
		}
	}
}

// readError reads an error of the daemon and returns it, or what went wrong while reading it.
func (c *daemonConn) readError() error {
	if c.version < 1<<8|26 {
		message, err := c.string()
		if err != nil {
			return err
		}
		return &answerError{message}
	}
	if err := errors.Join(c.skipString(), c.skipUints(1), c.skipString()); err != nil { // type, level, name
		return err
	}
	message, err := c.string()
	if err != nil {
		return err
	}
	// Positions and traces follow, but the connection is given up after an error anyway.
	return &answerError{strings.TrimSpace(message)}
}

// answerError is what the daemon says against a request.
type answerError struct{ message string }

func (e *answerError) Error() string { return "the Nix daemon answered: " + e.message }

func (c *daemonConn) skipString() error {
	_, err := c.string()
	return err
}

func (c *daemonConn) skipUints(n int) error {
	_, err := c.r.Discard(8 * n)
	return err
}

// skipFields skips the fields of an activity: integers (tag 0) and strings (tag 1).
func (c *daemonConn) skipFields() error {
	n, err := c.count(maxDaemonFields)
	if err != nil {
		return err
	}
	for range n {
		tag, err := c.uint()
		switch {
		case err != nil:
		case tag == 0:
			err = c.skipUints(1)
		case tag == 1:
			err = c.skipString()
		default:
			err = fmt.Errorf("it sent a field of unknown type %d", tag)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *daemonConn) putUint(n uint64) { c.out = binary.LittleEndian.AppendUint64(c.out, n) }

func (c *daemonConn) putString(s string) {
	c.putUint(uint64(len(s)))
	c.out = append(c.out, s...)
	c.out = append(c.out, make([]byte, padding(len(s)))...)
}

// padding is how many zeros follow n bytes.
func padding(n int) int { return -n & 7 }

func (c *daemonConn) send() error {
	_, err := c.Write(c.out)
	c.out = c.out[:0]
	return err
}

func (c *daemonConn) uint() (uint64, error) {
	b, err := c.r.Peek(8)
	if err != nil {
		return 0, err
	}
	n := binary.LittleEndian.Uint64(b)
	_, err = c.r.Discard(8)
	return n, err
}

// count reads how many of something follow.
func (c *daemonConn) count(most uint64) (uint64, error) {
	n, err := c.uint()
	if err == nil && n > most {
		err = fmt.Errorf("it sent a list or a string of %d, more than %d", n, most)
	}
	return n, err
}

func (c *daemonConn) string() (string, error) {
	n, err := c.count(maxDaemonString)
	if err != nil {
		return "", err
	}
	buf := make([]byte, int(n)+padding(int(n)))
	if _, err := io.ReadFull(c.r, buf); err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func (c *daemonConn) strings() ([]string, error) {
	n, err := c.count(maxDaemonReferences)
	if err != nil {
		return nil, err
	}
	var all []string
	for range n {
		s, err := c.string()
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}
