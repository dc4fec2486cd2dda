package fastpath

import (
	"bytes"
	"context"
	"net/http"
	"net/textproto"
	"net/url"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxRequest is the length in bytes of the longest request that is answered here. Those of Nix
	// have some 250.
	maxRequest = 1 << 10
	// gatheredBytes is how many bytes of answers to requests that came together are gathered before
	// they are sent.
	gatheredBytes = 16 << 10
	// keptBytes is how much memory for the answers of one connection is reused for others.
	keptBytes = 64 << 10
)

// conn reads the requests of a connection that net/http has not got yet, and is the
// http.ResponseWriter of their answers.
type conn struct {
	f    *listener
	conn unreadConn

	buf     [maxRequest]byte
	request http.Request // one after the other: a handler does not keep it
	url     url.URL      // of request
	fields  []byte       // what the header of request was parsed from; nil if nothing was

	header http.Header // of the answer
	began  bool        // header is in out
	out    *[]byte     // answers that are not sent yet
	whole  int         // bytes of out before the answer that a handler is giving now
}

// next says what becomes of a connection.
type next uint8

const (
	stays   next = iota // its next request is read here
	givenOn             // to net/http
	isOver
)

// gathered is memory for connections that have answers.
var gathered = sync.Pool{New: func() any { return new([]byte) }}

// serve answers the requests of a connection for as long as they are simple, and reports whether
// net/http has to go on. If not, the connection is closed.
func (f *listener) serve(u unreadConn) (more bool) {
	c := &conn{f: f, conn: u, header: make(http.Header)}
	ctx := context.Background()
	if f.srv.BaseContext != nil {
		ctx = f.srv.BaseContext(f)
	}
	ctx = context.WithValue(ctx, http.ServerContextKey, f.srv)
	if f.srv.ConnContext != nil {
		ctx = f.srv.ConnContext(ctx, u)
	}
	ctx = context.WithValue(ctx, http.LocalAddrContextKey, u.LocalAddr())
	r := http.Request{Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, URL: &c.url, Body: http.NoBody, RemoteAddr: u.RemoteAddr().String()}
	c.request = *r.WithContext(ctx)
	defer func() {
		// As with net/http: a handler that panics ends its connection, and nothing else.
		if p := recover(); p != nil && p != http.ErrAbortHandler && f.srv.ErrorLog != nil {
			f.srv.ErrorLog.Printf("panic serving %s: %v\n%s", r.RemoteAddr, p, debug.Stack())
		}
		if !more {
			u.Close()
		}
	}()
	return c.run() == givenOn
}

// deadlineStep is by how much the deadline for the next request may come too early: setting it costs
// more than reading the request.
const deadlineStep = time.Second

func (c *conn) run() next {
	var until time.Time // the deadline
	for limit := c.f.srv.ReadHeaderTimeout; ; limit = c.f.srv.IdleTimeout {
		if now := time.Now(); until.Sub(now) < limit-deadlineStep {
			until = now.Add(limit)
			if err := c.conn.SetReadDeadline(until); err != nil {
				return isOver
			}
		}
		size, err := c.conn.Read(c.buf[:])
		if err != nil {
			return isOver
		}
		if next := c.schedule(c.buf[:size]); next != stays {
			return next
		}
	}
}

// schedule answers the requests that have come. If other connections answer too, it then lets those
// go first that wait for a core: by then the next request may have come, which saves a read that
// finds nothing, and a wait. With no others that would only cost time.
func (c *conn) schedule(requests []byte) next {
	others := c.f.busy.Add(1) > 1
	defer c.f.busy.Add(-1)
	c.setState(http.StateActive)
	next := c.answer(requests)
	c.setState(http.StateIdle) // also where only a part of a request has come: net/http will say when it has all
	if next == stays && (others || c.f.busy.Load() > 1) {
		runtime.Gosched()
	}
	return next
}

func (c *conn) setState(s http.ConnState) {
	if c.f.srv.ConnState != nil {
		c.f.srv.ConnState(c.conn, s)
	}
}

// answer answers the requests that have come.
func (c *conn) answer(requests []byte) next {
	c.out = gathered.Get().(*[]byte)
	c.whole = 0
	defer func() {
		if c.whole > 0 { // A handler panics. As with net/http, the answers before its own are sent.
			_, _ = c.conn.Write((*c.out)[:c.whole]) // The connection is closed in any case.
		}
		if cap(*c.out) <= keptBytes {
			*c.out = (*c.out)[:0]
			gathered.Put(c.out)
		}
		c.out = nil
	}()
	for len(requests) > 0 {
		size := c.parse(requests)
		if size == 0 {
			c.conn.Unread(bytes.Clone(requests))
			return c.send(givenOn)
		}
		requests = requests[size:]
		clear(c.header)
		c.began = false
		c.whole = len(*c.out)
		c.f.srv.Handler.ServeHTTP(c, &c.request)
		if c.header["Connection"] != nil {
			return c.send(isOver)
		}
		if len(*c.out) > gatheredBytes && c.send(stays) == isOver {
			return isOver
		}
	}
	return c.send(stays)
}

// send sends the answers, and returns what becomes of the connection if that succeeds.
func (c *conn) send(then next) next {
	c.whole = 0
	if len(*c.out) > 0 {
		if _, err := c.conn.Write(*c.out); err != nil {
			return isOver
		}
		*c.out = (*c.out)[:0]
	}
	return then
}

var (
	lineEnd   = []byte("\r\n")
	headerEnd = []byte("\r\n\r\n")
)

// parse reads the request at the beginning of b, and returns its length: 0 if it is not all there, or
// is not simple.
func (c *conn) parse(b []byte) int {
	end := bytes.Index(b, headerEnd)
	if end < 0 {
		return 0
	}
	line, fields, _ := bytes.Cut(b[:end+len(lineEnd)], lineEnd)
	method := http.MethodGet
	path, ok := bytes.CutPrefix(line, []byte("GET "))
	if !ok {
		method = http.MethodHead
		if path, ok = bytes.CutPrefix(line, []byte("HEAD ")); !ok {
			return 0
		}
	}
	if path, ok = bytes.CutSuffix(path, []byte(" HTTP/1.1")); !ok || !isSimple(path) {
		return 0
	}
	// Nearly all requests of a connection have the same header.
	if c.fields == nil || !bytes.Equal(fields, c.fields) {
		if c.fields = nil; !c.parseFields(fields) {
			return 0
		}
		c.fields = bytes.Clone(fields)
	}
	c.request.Method = method
	c.url.Path = string(path)
	c.request.RequestURI = c.url.Path
	return end + len(headerEnd)
}

// isSimple reports whether a path is that of a narinfo or of nix-cache-info, with nothing in it that
// has to be decoded.
func isSimple(path []byte) bool {
	if !bytes.HasSuffix(path, []byte(".narinfo")) && !bytes.HasSuffix(path, []byte("/nix-cache-info")) || path[0] != '/' {
		return false
	}
	for _, b := range path {
		if !('a' <= b && b <= 'z' || '0' <= b && b <= '9' || b == '/' || b == '.' || b == '-' || b == '_') {
			return false
		}
	}
	return true
}

// simpleFields are the fields that the header of a simple request may have. None of them changes how
// the request is framed, and none changes the answer other than by what the handlers make of it.
var simpleFields = map[string]bool{
	"Accept": true, "Accept-Encoding": true, "Accept-Language": true, "Authorization": true, "Connection": true, "Host": true, "User-Agent": true,
	"Forwarded": true, "Via": true, "X-Forwarded-For": true, "X-Forwarded-Host": true, "X-Forwarded-Prefix": true, "X-Forwarded-Proto": true, "X-Real-Ip": true,
}

// parseFields reads the header of a request, and reports whether the request is simple.
func (c *conn) parseFields(fields []byte) bool {
	header, host := make(http.Header), ""
	for line := range bytes.SplitSeq(bytes.TrimSuffix(fields, lineEnd), lineEnd) {
		name, rest, colon := bytes.Cut(line, []byte(":"))
		key := textproto.CanonicalMIMEHeaderKey(string(name))
		value := string(bytes.Trim(rest, " \t"))
		switch {
		case !colon || !simpleFields[key] || strings.ContainsFunc(value, notPlain):
			return false
		case key == "Host":
			if value == "" || host != "" || strings.Trim(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:[]") != "" {
				return false
			}
			host = value // which net/http does not leave in the header either
			continue
		case key == "Connection" && !strings.EqualFold(value, "keep-alive"):
			return false
		}
		header[key] = append(header[key], value)
	}
	c.request.Header, c.request.Host = header, host
	return host != ""
}

func notPlain(r rune) bool { return r < ' ' && r != '\t' || r > '~' }

// Header returns the header of the answer.
func (c *conn) Header() http.Header { return c.header }

// WriteHeader begins the answer.
func (c *conn) WriteHeader(status int) {
	if c.began {
		return
	}
	c.began = true
	if c.header["Content-Length"] == nil {
		c.header["Connection"] = []string{"close"} // which says where the answer ends
	}
	out := append(*c.out, "HTTP/1.1 "...)
	out = strconv.AppendInt(out, int64(status), 10)
	out = append(out, ' ')
	out = append(out, http.StatusText(status)...)
	var array [16]string
	keys := array[:0]
	for key := range c.header {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		for _, value := range c.header[key] {
			out = appendField(out, key, value)
		}
	}
	out = appendField(out, "Date", date())
	*c.out = append(out, headerEnd...)
}

// appendField appends a field behind the end of the line before it. No value has a line end: ours
// have none, and a request with a line end in a field is not simple.
func appendField(dst []byte, key, value string) []byte {
	dst = append(dst, lineEnd...)
	dst = append(dst, key...)
	dst = append(dst, ": "...)
	return append(dst, value...)
}

// Write adds to the body of the answer. A large body is sent at once: the handler bounds how long it
// is in memory.
func (c *conn) Write(p []byte) (int, error) {
	c.WriteHeader(http.StatusOK)
	switch {
	case c.request.Method == http.MethodHead:
	case len(p) <= keptBytes:
		*c.out = append(*c.out, p...)
	default:
		c.whole = 0
		if _, err := c.conn.Write(*c.out); err != nil {
			return 0, err
		}
		*c.out = (*c.out)[:0]
		return c.conn.Write(p)
	}
	return len(p), nil
}

// second is a time as answers have it.
type second struct {
	unix int64
	text string
}

var lastSecond atomic.Pointer[second]

// date returns the time as answers have it.
func date() string {
	now := time.Now()
	if last := lastSecond.Load(); last != nil && last.unix == now.Unix() {
		return last.text
	}
	s := &second{now.Unix(), now.UTC().Format(http.TimeFormat)}
	lastSecond.Store(s)
	return s.text
}
