// Package server is the HTTP door: it answers whatever a Nix client, a person or a scraper asks of a cache.
//
//	s := server.New(c, server.Options{Version: version, Logger: log})
//	err := s.Serve(ctx, listener) // until ctx ends, and then until running answers have
//
// A request goes the same way whatever it asks:
// [parseTarget] splits its URL, a handler answers or returns an error,
// and the one table in respond.go makes an error into a status.
// A failure after the first byte of a body cuts the connection:
// a client takes a body that ends early but cleanly for the whole one, and retries one that is cut.
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"firn/internal/cache"
	"firn/nix"
)

const (
	// headerLimit is the time in which the header of a request must have arrived.
	headerLimit = 20 * time.Second

	// headerBytes bounds the header of a request. net/http allows 4 KiB more than it is told: 32 KiB in all.
	headerBytes = 28 << 10

	// idleLimit is how long a connection may wait for its next request.
	// Nix keeps connections for reuse for up to two minutes, and a request on a closed one fails.
	idleLimit = 3 * time.Minute

	// bodyLimit is how long the unread body of a request may take, which only what is refused anyway has.
	bodyLimit = 5 * time.Second

	// graceLimit is how long answers that are being sent when the server ends may take to their end.
	// systemd kills after 90 seconds.
	graceLimit = time.Minute

	// listingBytes bounds the listings, in bytes of their text, that are in memory while clients take them, however slowly.
	// A larger one counts as this, so it is sent when no other is. 100 bytes a file make that some 300,000 files.
	listingBytes = 32 << 20

	// listingMakers bounds how many listings are made at once, of which each takes a few times its text.
	listingMakers = 4

	// healthLimit is how long the sources may take to say that they are well.
	healthLimit = 5 * time.Second
)

// Options of a Server.
type Options struct {
	// Version is what /version says, "unknown" if empty.
	Version string

	// Logger is told of every request at level debug, of aborted answers at info and of failures at error.
	// Nil discards.
	Logger *slog.Logger

	// Collectors add to what /metrics shows.
	Collectors []prometheus.Collector
}

// Server answers HTTP requests for one cache.
type Server struct {
	cache   *cache.Cache
	version string
	log     *slog.Logger
	metrics *metrics
	page    *template.Template
	policy  []string // Content-Security-Policy of the front page

	listing *semaphore.Weighted // of listingMakers
	listed  *semaphore.Weighted // of listingBytes
}

// New returns a server for the cache.
func New(c *cache.Cache, opts Options) *Server {
	s := &Server{
		cache:   c,
		version: cmp.Or(opts.Version, "unknown"),
		log:     cmp.Or(opts.Logger, slog.New(slog.DiscardHandler)),
		metrics: newMetrics(c, opts.Collectors),
		listing: semaphore.NewWeighted(listingMakers),
		listed:  semaphore.NewWeighted(listingBytes),
	}
	s.page, s.policy = newPage()
	return s
}

// Handler returns the server as a handler.
// Only Serve runs it with the limits that protect it from slow clients.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.answer) }

// Serve answers requests that come through the listener until ctx ends, closes it,
// and returns when all answers have been sent, or cut after a minute. It may run on several listeners at once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	// Ending ctx ends the acceptance of work; only cut ends the work.
	work, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	srv := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: headerLimit,
		IdleTimeout:       idleLimit,
		ConnState:         connState,
		MaxHeaderBytes:    headerBytes,
		BaseContext:       func(net.Listener) context.Context { return work },
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(newLinks(l, mostLinks())) }()

	select {
	case err := <-served:
		srv.Close()
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	grace, stop := context.WithTimeout(work, graceLimit)
	defer stop()
	err := srv.Shutdown(grace)
	if errors.Is(err, context.DeadlineExceeded) {
		s.log.Warn("cut the answers that were still being sent", "listener", l.Addr().String())
		cut()
		err = srv.Close()
	}
	<-served
	if err != nil {
		return fmt.Errorf("end serving %s: %w", l.Addr(), err)
	}
	return nil
}

// answer answers one request: it finds the handler, counts, and logs.
func (s *Server) answer(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	x := &exchange{w: w, r: r, target: parseTarget(r.URL.Path)}
	s.metrics.inFlight.Add(1)
	defer func() {
		s.metrics.inFlight.Add(-1)
		s.metrics.answered(x, time.Since(start))
		if s.log.Enabled(r.Context(), slog.LevelDebug) {
			s.log.Debug("answered", x.attributes(start)...)
		}
	}()
	if r.ContentLength != 0 {
		x.refuseBody()
	}

	err := s.handle(x)
	if err == nil {
		return
	}
	if x.status == 0 && r.Context().Err() == nil {
		s.fail(x, err)
		return
	}
	by := abortedBy(r, err)
	s.metrics.aborts[by].Inc()
	s.log.Info("aborted", append(x.attributes(start), "by", by.String(), "error", err)...)
	x.cut()
	panic(http.ErrAbortHandler) // closes the connection
}

// handle answers x, or returns an error.
// With an error before the header is sent (x.status is 0) another answer can still be given.
func (s *Server) handle(x *exchange) error {
	if x.r.Method != http.MethodGet && x.r.Method != http.MethodHead {
		return errMethod
	}
	switch x.target.route {
	case routeNARInfo:
		return s.serveNARInfo(x)
	case routeNAR:
		return s.serveNAR(x, nix.None)
	case routeZstdNAR:
		return s.serveNAR(x, nix.Zstd)
	case routeCacheInfo:
		return x.bytes(typeCacheInfo, cacheShort, s.cache.Info().AppendText(nil))
	case routeListing:
		return s.serveListing(x)
	case routeLog:
		return s.serveLog(x)
	case routeRealisation:
		return s.serveRealisation(x)
	case routeBuildTrace:
		return s.serveBuildTrace(x)
	case routeDebugInfo:
		return s.missing("no debug info here")
	case routePage:
		return s.servePage(x)
	case routeVersion:
		return x.bytes(typeText, cacheNever, []byte("firn "+s.version+"\n"))
	case routeHealth:
		return s.serveHealth(x)
	case routeMetrics:
		return s.serveMetrics(x)
	case routeRobots:
		return x.bytes(typeText, cacheShort, []byte("User-agent: *\nDisallow: /\n"))
	}
	return s.missing("nothing here")
}

// missing returns an ErrNotFound that says what is not there.
func (s *Server) missing(what string) error {
	if len(s.cache.Sources()) == 0 {
		what += "; this server has nothing to serve yet"
	}
	return cache.Refuse(cache.ErrNotFound, "%s", what)
}
