package server

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"firn/internal/audit"
	"firn/internal/cache"
	"firn/internal/server/connlimit"
	"firn/nix/nar"
)

// Values of headers, in the form of a header map, so that no request allocates them.
var (
	typeCacheInfo = []string{"text/x-nix-cache-info"}
	typeNARInfo   = []string{"text/x-nix-narinfo"}
	typeNAR       = []string{"application/x-nix-nar"}
	typeJSON      = []string{"application/json"}
	typeText      = []string{"text/plain; charset=utf-8"}
	typeHTML      = []string{"text/html; charset=utf-8"}

	noSniff    = []string{"nosniff"}
	sandbox    = []string{"default-src 'none'; sandbox"} // a file of a store must never act as a page of this server
	byteRanges = []string{"bytes"}
	noRanges   = []string{"none"}
	onAccept   = []string{"Accept"}
	closed     = []string{"close"}
	readers    = []string{"GET, HEAD"}
	writers    = []string{"GET, HEAD, PUT"}
	basic      = []string{`Basic realm="firn"`}
	onAcceptBy = []string{"Accept, Authorization"}
	onWho      = []string{"Authorization"}
	retrySoon  = []string{"5"} // seconds
)

// caching says how long an answer may be kept, as values of Cache-Control.
type caching struct {
	public  []string
	private []string // of a private cache
}

var (
	cacheForever = &caching{[]string{"public, max-age=31536000, immutable"}, []string{"private, max-age=31536000, immutable"}} // the URL stands for these bytes only
	cacheShort   = &caching{[]string{"public, max-age=300"}, []string{"private, max-age=300"}}                                 // signatures are added, paths are collected
	cacheMiss    = &caching{[]string{"public, max-age=5"}, []string{"no-store"}}                                               // it may be pushed soon
	cacheNever   = &caching{[]string{"no-store"}, []string{"no-store"}}
)

// errMisdirected is the answer to a request for a host name that no cache has.
var errMisdirected = errors.New("unknown host")

// errMethod is the answer to a method that the thing asked for does not have.
var errMethod = errors.New("method not allowed")

// onlyRest is another reason why a body may be wrong.
const onlyRest = ", or this is only the rest of it: if another error came before this one, that is the cause; push again"

// statuses has the answer to each error: the first entry that matches. Any other error is an internal
// one.
var statuses = []struct {
	err    error
	status int
	text   string
}{
	{cache.ErrNotFound, http.StatusNotFound, "not found"},
	{nar.ErrMismatch, http.StatusNotFound, "it is damaged, and not served any more"}, // which the source has logged
	{errMisdirected, http.StatusMisdirectedRequest, "no cache has this host name"},
	{errMethod, http.StatusMethodNotAllowed, "this method is not answered here"},
	{cache.ErrUnauthenticated, http.StatusUnauthorized, "a token is needed here"},
	{errSlow, http.StatusRequestTimeout, "the body came too slowly" + onlyRest},
	{errGone, http.StatusBadRequest, "the body ended too early"},
	{errRange, http.StatusRequestedRangeNotSatisfiable, "there are no such bytes"},
	{errPrecondition, http.StatusPreconditionFailed, "it is another one"},
	{cache.ErrFull, http.StatusInsufficientStorage, "the disk of this server is full: its administrator has to free space"},
	{cache.ErrUnavailable, http.StatusServiceUnavailable, "unavailable now, try again later"},
	{context.DeadlineExceeded, http.StatusServiceUnavailable, "unavailable now, try again later"},
	{context.Canceled, http.StatusServiceUnavailable, "unavailable now, try again later"},
	{cache.ErrDenied, http.StatusForbidden, "denied"},
	{cache.ErrInvalid, http.StatusBadRequest, "invalid"},
	{cache.ErrConflict, http.StatusConflict, "it is there already, with other contents"},
	{cache.ErrTooLarge, http.StatusRequestEntityTooLarge, "too large"},
}

// exchange is one request and its answer.
type exchange struct {
	w      http.ResponseWriter
	r      *http.Request
	target target
	status int             // of the answer; 0 until its header is sent
	sent   int64           // bytes of its body so far
	ending <-chan struct{} // closed when this answer is to be the last of its connection; nil: never
	length [1]string       // value of Content-Length

	cache      *cache.Cache    // that is asked, nil if there is none of this name
	who        cache.Principal // nil until it was found out
	secret     bool            // the answer is for some clients only
	upload     *uploadBody     // the body of the request as it is read, nil if it is not read
	waited     time.Duration   // for a slot, and for memory
	holdsText  bool            // an upload holds memory of receivedTexts
	otherBytes bool            // the URL is of other bytes than those that are here: a Range counts only with If-Range
	push       *audit.Session  // of which an upload is a part; nil until it is known that it may be
	share      *share          // the space that the upload has reserved

	aborted string // who ended the answer before its end; "" if it was sent whole
}

// begin sends the header of the answer.
func (x *exchange) begin(status int) {
	x.status = status
	select {
	case <-x.ending:
		x.w.Header()["Connection"] = closed // which over HTTP/2 has the client told to begin nothing more
	default:
	}
	x.w.WriteHeader(status)
}

// setLength sets Content-Length without an allocation for the slice around it.
func (x *exchange) setLength(h http.Header, n int64) {
	x.length[0] = strconv.FormatInt(n, 10)
	h["Content-Length"] = x.length[:]
}

// label returns the route that the request is counted under.
func (x *exchange) label() route {
	if x.target.route == routeNoSlash {
		return routeOther
	}
	if x.r.Method == http.MethodPut && x.target.route.canBePut() {
		return x.target.route.put()
	}
	return x.target.route
}

func (x *exchange) isHead() bool { return x.r.Method == http.MethodHead }

// setCaching sets Cache-Control, and Vary where the answer depends on the principal.
func (x *exchange) setCaching(h http.Header, c *caching) {
	if !x.secret {
		h["Cache-Control"] = c.public
		return
	}
	h["Cache-Control"] = c.private
	if h["Vary"] != nil {
		h["Vary"] = onAcceptBy
	} else {
		h["Vary"] = onWho
	}
}

// bytes answers 200 with a body that is in memory.
func (x *exchange) bytes(kind []string, c *caching, text []byte) error {
	return x.answer(http.StatusOK, kind, c, text)
}

// answer answers with a body that is in memory.
func (x *exchange) answer(status int, kind []string, c *caching, text []byte) error {
	h := x.w.Header()
	h["Content-Type"] = kind
	x.setLength(h, int64(len(text)))
	x.setCaching(h, c)
	h["X-Content-Type-Options"] = noSniff
	x.begin(status)
	if x.isHead() {
		return nil
	}
	n, err := x.w.Write(text)
	x.sent += int64(n)
	return err
}

// json answers with the JSON form of a value.
func (x *exchange) json(c *caching, v json.Marshaler) error {
	text, err := v.MarshalJSON()
	if err != nil {
		return err
	}
	x.w.Header()["Content-Security-Policy"] = sandbox
	return x.bytes(typeJSON, c, append(text, '\n'))
}

// body writes a long body to the client. The first byte begins the answer. It is an io.ReaderFrom down
// to the connection, so the kernel sends files.
type body struct {
	x      *exchange
	status int // of the answer, when it begins
}

func (b *body) Write(p []byte) (int, error) {
	b.begin()
	n, err := b.x.w.Write(p)
	b.x.sent += int64(n)
	return n, err
}

func (b *body) ReadFrom(r io.Reader) (int64, error) {
	b.begin()
	n, err := io.Copy(b.x.w, r)
	b.x.sent += n
	return n, err
}

func (b *body) begin() {
	if b.x.status == 0 {
		b.x.begin(b.status)
	}
}

// fail answers with an error. The log gets what the answer does not show.
func (s *Server) fail(x *exchange, err error) {
	status, text := http.StatusInternalServerError, "internal error"
	for _, known := range statuses {
		if errors.Is(err, known.err) {
			status, text = known.status, known.text
			break
		}
	}
	if e, ok := errors.AsType[*cache.Refusal](err); ok {
		text = e.Text()
	}
	wait := retrySoon
	if e, ok := errors.AsType[*cache.TooOftenError](err); ok {
		status, text = http.StatusTooManyRequests, "too many wrong tokens came from this address, wait a little"
		wait = []string{strconv.Itoa(int(math.Ceil(max(1, e.Wait.Seconds()))))}
	}

	h := x.w.Header()
	contentRange := h["Content-Range"]
	clear(h) // it is of the answer that could not be given
	caching := cacheNever
	switch status {
	case http.StatusNotFound:
		caching = cacheMiss
	case http.StatusMethodNotAllowed:
		h["Allow"] = readers
		if x.target.route.canBePut() && (x.cache == nil || x.cache.Keeps()) {
			h["Allow"] = writers
		}
	case http.StatusUnauthorized:
		h["WWW-Authenticate"] = basic
	case http.StatusTooManyRequests:
		h["Retry-After"] = wait
	case http.StatusRequestedRangeNotSatisfiable:
		h["Content-Range"] = contentRange
	case http.StatusServiceUnavailable:
		h["Retry-After"] = wait
		// A client that has gone, and one that asks for more than its share, are not worth a line in
		// the log.
		if x.r.Context().Err() == nil && !errors.Is(err, errQueue) {
			s.log.Warn("unavailable", "path", x.r.URL.Path, "error", err)
		}
	case http.StatusBadRequest:
		if x.upload != nil && x.target.isNAR() && x.sendsRest() {
			text += onlyRest
		}
	case http.StatusInsufficientStorage:
		if x.isFinal() {
			status = http.StatusRequestEntityTooLarge // the client ends with this text, while it would fail in trying again
		}
		s.log.Error("no space is left for uploads: free some on the disk of the state directory, or delete paths or caches; `firn stats` shows what will be removed without that",
			"path", x.r.URL.Path, "error", err)
	case http.StatusInternalServerError:
		s.log.Error("failed", "path", x.r.URL.Path, "error", err)
	}
	if x.hasBody() {
		x.close()
	}
	// An error means that the client has gone, which needs no line in the log now.
	_ = x.answer(status, typeText, caching, []byte(text+"\n"))
}

// close has the connection closed after the answer. A connection of HTTP/2 stays open: it carries other
// answers too, and can end one request alone.
func (x *exchange) close() {
	if x.r.ProtoMajor == 1 {
		x.w.Header()["Connection"] = closed
	}
}

// cut makes sure that the client does not take the end of the connection for that of the body. A client of
// HTTP/1.0 that was told no length would: nginx, for one, unless it is configured to speak HTTP/1.1.
func (x *exchange) cut() {
	if x.length[0] != "" || x.r.ProtoAtLeast(1, 1) {
		return
	}
	if conn, _, err := http.NewResponseController(x.w).Hijack(); err == nil {
		if c, ok := conn.(*connlimit.Conn); ok {
			c.Reset()
		}
		conn.Close()
	}
}

// attributes returns what the log says of an exchange.
func (s *Server) attributes(x *exchange, start time.Time) []any {
	return []any{
		"method", x.r.Method,
		"path", x.r.URL.Path,
		"route", x.label().String(),
		"status", x.status,
		"bytes", x.sent,
		"duration", time.Since(start).String(), // with its unit in JSON too
		"remote", s.originOf(x.r).client(x.r),
	}
}

// A culprit is the cause that an answer ended early.
type culprit uint8

const (
	byClient culprit = iota // it went away
	bySlow                  // it took less than connlimit allows
	bySource                // the NAR could not be written
	culprits int     = iota
)

func (c culprit) String() string { return [culprits]string{"client", "slow client", "source"}[c] }

func abortedBy(r *http.Request, err error) culprit {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return bySlow
	case r.Context().Err() != nil, errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
		return byClient
	}
	return bySource
}

// wantsJSON reports whether a request for a narinfo asks for its JSON form.
func (x *exchange) wantsJSON() bool {
	if q := x.r.URL.RawQuery; q != "" && x.r.URL.Query().Has("json") {
		return true
	}
	for _, accept := range x.r.Header["Accept"] {
		if strings.Contains(accept, "application/json") {
			return true
		}
	}
	return false
}
