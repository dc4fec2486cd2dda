// Package server is the front end for HTTP: it answers Nix clients, people and scrapers.
//
//	s := server.New(caches, server.Options{Version: version, Access: access, Logger: log})
//	err := s.Serve(ctx, listener) // until ctx ends, and then until running answers have
//
// Every request takes the same steps. [parsePath] splits its URL, the cache is found by the URL or by
// the host, the client is authenticated where that matters, a handler answers or returns an error,
// and the table in respond.go turns an error into a status.
//
// A failure after the first byte of a body cuts the connection: a client takes a body that ends early
// but cleanly for the whole one, and retries one that is cut.
package server

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"firn/internal/audit"
	"firn/internal/cache"
	"firn/internal/decompress"
	"firn/internal/fairlimit"
	"firn/internal/logs"
	"firn/internal/server/connlimit"
	"firn/internal/server/fastpath"
	"firn/nix"
)

const (
	// headerLimit is the time in which the header of a request must arrive once it has begun, and in
	// which a new connection must begin one.
	headerLimit = 20 * time.Second

	// headerBytes bounds the header of a request. net/http allows 4 KiB more than it is told: 32 KiB
	// in all.
	headerBytes = 28 << 10

	// idleLimit is how long a connection may wait for its next request.
	// Nix keeps connections for reuse for up to two minutes, and a request on a closed one fails.
	idleLimit = 3 * time.Minute

	// bodyLimit is how long the unread body of a request may take. Only a request that is refused has
	// one.
	bodyLimit = 5 * time.Second

	// bodyBytes is how much of such a body is read after the answer was sent: a client whose bytes
	// are not read may see a broken connection instead of the answer.
	bodyBytes = 8 << 20

	// GraceLimit is how long a server that ends waits for answers that are being sent. systemd kills
	// after 90 seconds.
	GraceLimit = time.Minute

	// openLogs is how many build logs are sent at once, half of them to one address: a log may be in
	// memory while it is sent.
	openLogs = 64
	// logLimit is how long a client waits for a slot to get a log.
	logLimit = 10 * time.Second
	// readLimit is how long a client waits for a slot to get a NAR.
	readLimit = 10 * time.Second

	// healthLimit is how long the sources may take to say that they are well.
	healthLimit = 5 * time.Second
)

// Options of a Server.
type Options struct {
	// Version is what /version says, "unknown" if empty.
	Version string

	// Logger gets every request at level debug, aborted answers at info, and failures at error. Nil
	// discards them.
	Logger *slog.Logger

	// Access authenticates clients. If nil, no client can be authenticated, so nothing can be pushed,
	// and no private cache read.
	Access Authenticator

	// Uploads is how many NARs and logs may be received at once, half of them of one principal or
	// from one address; others wait. If zero, [fairlimit.Divide] says how many.
	Uploads int

	// MaxUpload bounds the size of an upload in bytes, as sent. 64 GiB if zero.
	MaxUpload int64

	// Proxies are trusted to say for which client they ask. The zero value trusts none.
	Proxies Proxies

	// Redirect is the port of HTTPS, to which requests without TLS are redirected, except uploads,
	// which are refused. If zero, all are answered.
	Redirect int

	// HTTPS says that the server answers TLS too, so that a token which comes without it is worth a
	// warning.
	HTTPS bool

	// SSHPort is where the same caches are served over SSH, for the front page. Zero: nowhere.
	SSHPort int

	// NoHTTP2 has ServeTLS speak HTTP/1 only.
	NoHTTP2 bool

	// NoFastPath leaves all requests to net/http. The answers are the same, and those with narinfos
	// take longer.
	NoFastPath bool

	// Challenger answers ACME authorities. If nil, they get a 404.
	Challenger Challenger

	// Requests logs every request whose answer has ended. If nil, none is logged.
	Requests *logs.Requests

	// Audit logs who pushes, and who is refused. If nil, only /metrics shows that.
	Audit *audit.Log

	// Collectors add to what /metrics shows to every client.
	Collectors []prometheus.Collector

	// Inside are collectors for clients that may see the metrics of the process. They tell of private
	// caches.
	Inside []prometheus.Collector
}

// An Authenticator tells which principal a request comes from.
type Authenticator interface {
	// Authenticate takes the value of an Authorization header, and the address of the client, which
	// is the zero Addr if it has none. cache.ErrUnauthenticated if the value is of no known principal;
	// a *cache.TooOftenError if that address has to wait before it tries again.
	Authenticate(ctx context.Context, authorization string, remote netip.Addr) (cache.Principal, error)
}

// Server answers HTTP requests for the caches of a directory.
type Server struct {
	caches   cache.Registry
	access   Authenticator // nil: no client can be authenticated
	version  string
	log      *slog.Logger
	requests *logs.Requests // nil: not logged
	audit    *audit.Log
	metrics  *metrics
	page     *template.Template
	policy   []string // Content-Security-Policy of the front page

	proxies    Proxies
	httpsPort  int // to redirect to; 0: none
	https      bool
	sshPort    int // 0: none
	noHTTP2    bool
	challenger Challenger // nil: none
	noFastPath bool

	listing *semaphore.Weighted // of listingMakers

	seats         *fairlimit.Seats[*connlimit.Conn] // of the connections of all listeners
	readers       *fairlimit.Slots                  // NARs that are sent
	waiting       *fairlimit.Slots                  // requests that wait for one of the others
	large         *fairlimit.Slots                  // of Options.Uploads
	small         *fairlimit.Slots                  // uploads of up to maxSmall bytes, which are in memory
	memory        *fairlimit.Slots                  // bytes of decompress.Memory, for decoders of NARs and logs
	textDecoders  *fairlimit.Slots                  // bytes of memory for decoders of texts
	sentTexts     *fairlimit.Slots                  // of textMemory, in bytes, for large texts that are sent
	receivedTexts *fairlimit.Slots                  // the same for those that are received
	logs          *fairlimit.Slots                  // of openLogs
	listings      *fairlimit.Slots                  // of largeListings
	streams       *fairlimit.Slots                  // of mostRequests
	few           int64                             // fewRequests
	space         *space
	maxUpload     int64
}

// New returns a server for the caches.
func New(caches cache.Registry, opts Options) *Server {
	files := fairlimit.OfProcess()
	if opts.Audit == nil {
		opts.Audit = audit.New(audit.Options{})
	}
	s := &Server{
		caches:   caches,
		access:   opts.Access,
		version:  cmp.Or(opts.Version, "unknown"),
		log:      cmp.Or(opts.Logger, slog.New(slog.DiscardHandler)),
		requests: opts.Requests,
		audit:    opts.Audit,
		metrics:  newMetrics(caches, append([]prometheus.Collector{opts.Audit}, opts.Collectors...), opts.Inside),

		proxies:    opts.Proxies,
		httpsPort:  opts.Redirect,
		https:      opts.HTTPS || opts.Redirect != 0,
		sshPort:    opts.SSHPort,
		noHTTP2:    opts.NoHTTP2,
		challenger: opts.Challenger,
		noFastPath: opts.NoFastPath,

		listing: semaphore.NewWeighted(listingMakers),

		seats:         fairlimit.NewSeats[*connlimit.Conn](files.Connections),
		readers:       fairlimit.New(files.Readers),
		waiting:       fairlimit.New(files.Waiting),
		large:         fairlimit.New(cmp.Or(opts.Uploads, files.Uploads)),
		small:         fairlimit.New(files.SmallUploads),
		memory:        fairlimit.NewMemory(decompress.Memory),
		sentTexts:     fairlimit.NewMemory(textMemory),
		receivedTexts: fairlimit.NewMemory(textMemory),
		textDecoders:  fairlimit.NewMemory(4 * maxTextDecoder),
		logs:          fairlimit.New(openLogs),
		listings:      fairlimit.New(largeListings),
		streams:       fairlimit.New(mostRequests),
		few:           fewRequests,
		space:         newSpace(),
		maxUpload:     cmp.Or(opts.MaxUpload, 64<<30),
	}
	s.page, s.policy = newPage()
	return s
}

// Handler returns the server as a handler. Only Serve runs it with the limits that protect it from slow
// clients.
func (s *Server) Handler() http.Handler { return s.until(nil) }

// until returns the handler of requests. After ending is closed, every answer is the last of its
// connection.
func (s *Server) until(ending <-chan struct{}) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.answer(w, r, ending) })
}

// Serve answers requests that come through the listener until ctx ends. Then it closes the listener,
// and returns when all answers have been sent, or cut after a minute. It may run on several listeners
// at once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error { return s.serve(ctx, l, nil) }

// ServeTLS is Serve with TLS. config has the certificates.
func (s *Server) ServeTLS(ctx context.Context, l net.Listener, config *tls.Config) error {
	return s.serve(ctx, l, config)
}

func (s *Server) serve(ctx context.Context, l net.Listener, config *tls.Config) error {
	// When ctx ends, no more work is accepted; only cut ends the work.
	work, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	srv := &http.Server{
		Handler:           s.until(ctx.Done()),
		ReadHeaderTimeout: headerLimit,
		IdleTimeout:       idleLimit,
		ConnState:         connlimit.SetState,
		MaxHeaderBytes:    headerBytes,
		BaseContext:       func(net.Listener) context.Context { return work },
		ConnContext:       connlimit.Context,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	s.protocols(srv, config)
	limited := connlimit.Listen(l, s.seats, s.ownerOf)
	served := make(chan error, 1)
	go func() {
		switch {
		case config != nil:
			served <- srv.ServeTLS(limited, "", "")
		case s.noFastPath:
			served <- srv.Serve(limited)
		default:
			served <- srv.Serve(fastpath.Listen(limited, srv))
		}
	}()

	select {
	case err := <-served:
		srv.Close()
		limited.Cut()
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	limited.Close()
	grace, stop := context.WithTimeout(work, GraceLimit)
	defer stop()
	if err := limited.Drain(grace); err != nil {
		s.log.Warn("cut the answers that were still being sent", "listener", l.Addr().String())
		cut()
		limited.Cut()
	}
	<-served
	if err := srv.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("end serving %s: %w", l.Addr(), err)
	}
	return nil
}

// ownerOf returns whose seat a connection takes: that of its address. A trusted proxy, and a Unix
// socket, may stand for any number of clients, so they may have all seats that are free; what each
// of the clients does is counted request by request.
func (s *Server) ownerOf(c net.Conn) string {
	peer, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return ""
	}
	addr := peer.AddrPort().Addr().Unmap().WithZone("")
	if s.proxies.have(addr) {
		return ""
	}
	return fairlimit.Address(addr)
}

// answer answers one request: it finds the handler, counts, and logs.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, ending <-chan struct{}) {
	start := time.Now()
	if r.ProtoMajor >= 2 {
		w = newStream(w)
	}
	x := &exchange{w: w, r: r, target: parsePath(r.URL.Path), ending: ending}
	end, err := s.admit(x, s.metrics.inFlight.Add(1))
	defer func() {
		if end != nil {
			end()
		}
		if s.requests != nil {
			s.requests.Add(s.record(x, start))
		}
		s.metrics.inFlight.Add(-1)
		s.metrics.answered(x, time.Since(start))
		if s.log.Enabled(r.Context(), slog.LevelDebug) {
			s.log.Debug("answered", s.attributes(x, start)...)
		}
	}()
	if r.ContentLength != 0 && r.Method != http.MethodPut {
		x.close()
	}

	if err == nil {
		err = s.handle(x)
	}
	broken := x.upload != nil && x.upload.err != nil
	if broken && err != nil {
		err = x.upload.err // net/http ends the context then, and err may only say that it ended
	}
	if x.hasBody() {
		defer x.drain()
	}
	if r.Method == http.MethodPut {
		s.metrics.uploaded(err)
	}
	if err == nil {
		return
	}
	if x.status == 0 && (r.Context().Err() == nil || broken) {
		s.fail(x, err)
		return
	}
	by := abortedBy(r, err)
	x.aborted = by.String()
	s.metrics.aborts[by].Inc()
	s.log.Info("aborted", append(s.attributes(x, start), "by", by.String(), "error", err)...)
	x.cut()
	panic(http.ErrAbortHandler) // closes the connection
}

// handle answers x, or returns an error. If the header has not been sent then (x.status is 0), another
// answer can still be given.
func (s *Server) handle(x *exchange) error {
	switch x.r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPut:
	default:
		return errMethod
	}
	if done, err := s.redirected(x); done {
		return err
	}
	if !x.target.route.ofServer() {
		if err := s.find(x); err != nil {
			return err
		}
		if err := s.allow(x); err != nil {
			return err
		}
	}
	if x.r.Method == http.MethodPut {
		return s.put(x)
	}
	switch x.target.route {
	case routeNARInfo:
		return s.serveNARInfo(x)
	case routeNAR:
		return s.serveNAR(x, nix.None)
	case routeZstdNAR:
		return s.serveNAR(x, nix.Zstd)
	case routeCacheInfo:
		return x.bytes(typeCacheInfo, cacheShort, x.cache.Info().AppendText(nil))
	case routeListing:
		return s.serveListing(x)
	case routeLog:
		return s.serveLog(x)
	case routeRealisation:
		return s.serveRealisation(x)
	case routeBuildTrace:
		return s.serveBuildTrace(x)
	case routeDebugInfo:
		return s.serveDebugInfo(x)
	case routePage:
		return s.servePage(x)
	case routeVersion:
		return x.bytes(typeText, cacheNever, []byte("firn "+s.version+"\n"))
	case routeHealth:
		return s.serveHealth(x)
	case routeMetrics:
		return s.serveMetrics(x)
	case routeNoSlash:
		return s.redirect(x)
	case routeChallenge:
		return s.serveChallenge(x)
	case routeRobots:
		return x.bytes(typeText, cacheShort, []byte("User-agent: *\nDisallow: /\n"))
	}
	return x.missing("nothing here")
}
