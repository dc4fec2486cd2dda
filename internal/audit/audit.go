// Package audit tells an administrator what clients did, whatever front end they came through:
// one line in the log for each push session, one for each log-in that was refused, and counters of
// both.
//
//	log := audit.New(audit.Options{Logger: logger})
//	s := log.Join(client)  // an upload over HTTP: part of the session of this client
//	s := log.Begin(client) // a conversation over SSH: a session by itself
//	s.Published()
//	s.End()
//	log.Refused(client, audit.WrongToken, err)
//
// Memory is bounded: at most maxSessions push sessions are known at once, and maxAddresses
// addresses that were refused, for log-ins and for access.
package audit

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"firn/internal/fairlimit"
)

const (
	// idle is how long after its last upload a push session over HTTP is over. Nix compresses the
	// next NAR in this time.
	idle = time.Minute
	// lookInterval is the time between two looks for sessions that are over.
	lookInterval = 5 * time.Second
	// maxSessions bounds the push sessions over HTTP that are known, of some 500 bytes each.
	// One more, and the line of the session that had no upload for the longest time is written
	// early.
	maxSessions = 1024
)

// A FrontEnd is what a client talks to.
type FrontEnd string

// The front ends.
const (
	HTTP FrontEnd = "http"
	SSH  FrontEnd = "ssh"
)

// A Client is who does something, with which cache.
type Client struct {
	FrontEnd FrontEnd
	Remote   netip.Addr // zero if it has none, such as one on a Unix socket
	Name     string     // of the token or the SSH key; "" if that is not known
	Cache    string     // as the client named it
}

// remote is the address for the log.
func (c Client) remote() string {
	if !c.Remote.IsValid() {
		return "local"
	}
	return c.Remote.Unmap().WithZone("").String()
}

// maxText bounds what is kept and logged of a text that a client has a say in, in bytes.
const maxText = 200

func short(text string) string { return strings.ToValidUTF8(text[:min(len(text), maxText)], "") }

// bounded is the client with texts of bounded length.
func (c Client) bounded() Client {
	c.Name, c.Cache = short(c.Name), short(c.Cache)
	return c
}

// Options of a Log. The zero value will do.
type Options struct {
	// Logger is told of sessions and refusals at level info. Nil discards.
	Logger *slog.Logger
	// Now is the clock. Nil: time.Now.
	Now func() time.Time
}

// A Log logs and counts what clients did. It is safe for concurrent use, and a
// prometheus.Collector.
type Log struct {
	log     *slog.Logger
	now     func() time.Time
	metrics *metrics
	refused limits // log-ins
	denied  limits // access
	exposed limits

	mu       sync.Mutex
	sessions map[Client]*Session // over HTTP
}

// New returns a Log.
func New(opts Options) *Log {
	l := &Log{
		log:      cmp.Or(opts.Logger, slog.New(slog.DiscardHandler)),
		now:      opts.Now,
		metrics:  newMetrics(),
		sessions: map[Client]*Session{},
		refused:  limits{burst: burst, pause: pause},
		denied:   limits{burst: burst, pause: pause},
		exposed:  limits{burst: 1, pause: time.Hour},
	}
	if l.now == nil {
		l.now = time.Now
	}
	return l
}

// A Session is what one client pushes to one cache, without a long pause. Its methods may be called
// at once. A nil one counts nothing.
type Session struct {
	log    *Log
	client Client

	mu                          sync.Mutex
	alone                       bool // it ends with its last part
	parts                       int  // that go on
	begun, last                 time.Time
	paths, nars, others, failed int64
	bytes                       int64
}

// Begin begins a session that ends, and is logged, with End.
func (l *Log) Begin(c Client) *Session {
	now := l.now()
	return &Session{log: l, client: c.bounded(), alone: true, parts: 1, begun: now, last: now}
}

// Join returns the session of a client that is going on, or begins one. It goes on until End was
// called as often as Join, and then a minute more.
func (l *Log) Join(c Client) *Session {
	c = c.bounded()
	key := c
	key.Remote = fairlimit.Network(c.Remote)
	now := l.now()
	l.mu.Lock()
	s := l.sessions[key]
	var oldest *Session
	if s == nil {
		if len(l.sessions) >= maxSessions {
			oldest = l.evict()
		}
		s = &Session{log: l, client: c, begun: now, last: now}
		l.sessions[key] = s
	}
	s.mu.Lock()
	s.parts++
	s.mu.Unlock()
	l.mu.Unlock()
	if oldest != nil {
		oldest.write()
	}
	return s
}

// evict forgets the session that had no upload for the longest time, and returns it if its line is
// to be written now. If some of its uploads go on, the last of them writes it.
func (l *Log) evict() *Session {
	var key Client
	var oldest *Session
	var since time.Time
	for k, s := range l.sessions {
		s.mu.Lock()
		last := s.last
		s.mu.Unlock()
		if oldest == nil || last.Before(since) {
			key, oldest, since = k, s, last
		}
	}
	delete(l.sessions, key)
	oldest.mu.Lock()
	defer oldest.mu.Unlock()
	oldest.alone = true
	if oldest.parts > 0 {
		return nil
	}
	return oldest
}

// Run logs the sessions over HTTP that are over, until ctx ends.
func (l *Log) Run(ctx context.Context) {
	ticker := time.NewTicker(lookInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			l.end(func(s *Session) bool { return s.parts == 0 && l.now().Sub(s.last) >= idle })
		case <-ctx.Done():
			return
		}
	}
}

// Close logs the sessions that are left.
func (l *Log) Close() { l.end(func(*Session) bool { return true }) }

func (l *Log) end(over func(*Session) bool) {
	var ended []*Session
	l.mu.Lock()
	for key, s := range l.sessions {
		s.mu.Lock()
		if over(s) {
			delete(l.sessions, key)
			ended = append(ended, s)
		}
		s.mu.Unlock()
	}
	l.mu.Unlock()
	for _, s := range ended {
		s.write()
	}
}

// End ends a part of a session. Nothing of it is called afterwards.
func (s *Session) End() {
	s.mu.Lock()
	s.parts--
	s.last = s.log.now()
	over := s.alone && s.parts == 0
	s.mu.Unlock()
	if over {
		s.write()
	}
}

// Received counts a NAR that was received, verified and kept.
func (s *Session) Received() {
	if s != nil {
		s.count(&s.nars, s.log.metrics.nars)
	}
}

// Published counts a store path that was published and not there before.
func (s *Session) Published() {
	if s != nil {
		s.count(&s.paths, s.log.metrics.published)
	}
}

// Kept counts something else that was kept, such as a build log.
func (s *Session) Kept() {
	if s != nil {
		s.count(&s.others, nil)
	}
}

// Failed counts an upload that was refused or failed.
func (s *Session) Failed() {
	if s != nil {
		s.count(&s.failed, nil)
	}
}

// Read counts bytes that the client sent.
func (s *Session) Read(bytes int64) {
	if s == nil {
		return
	}
	s.mu.Lock()
	s.bytes += bytes
	s.mu.Unlock()
	s.log.metrics.bytes[s.client.FrontEnd].Add(float64(bytes))
}

func (s *Session) count(n *int64, metric map[FrontEnd]prometheus.Counter) {
	s.mu.Lock()
	*n++
	s.mu.Unlock()
	if metric != nil {
		metric[s.client.FrontEnd].Inc()
	}
}

// write writes the line of a session, if there was anything in it.
func (s *Session) write() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.paths+s.nars+s.others+s.failed == 0 {
		return
	}
	s.log.metrics.sessions[s.client.FrontEnd].Inc()
	attributes := []any{
		"front_end", string(s.client.FrontEnd), "remote", s.client.remote(), "by", s.client.Name, "cache", s.client.Cache,
		"paths", s.paths, "nars", s.nars, "bytes", s.bytes, "duration", s.last.Sub(s.begun).Round(time.Millisecond).String(),
	}
	if s.others > 0 {
		attributes = append(attributes, "others", s.others)
	}
	if s.failed > 0 {
		attributes = append(attributes, "failed", s.failed)
	}
	s.log.log.Info("pushed", attributes...)
}
