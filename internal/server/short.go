package server

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

// Narinfos have a short way. Clients ask for thousands of them, and reading a request and writing an answer is nearly all that one costs.
// So a connection begins with a lane, which knows the one form of request that clients send over and over, and gives it to the same handler
// as net/http would. Whatever else comes, whatever is in doubt, and a request of which only a part has come, it leaves to net/http,
// with the connection and all that was read from it. It goes by what a request may have, not by what it may not.

const (
	// laneBytes is the length of the longest request that goes the short way. Those of Nix have some 250 bytes.
	laneBytes = 1 << 10
	// gatheredBytes is how many bytes of answers to requests that came together are gathered before they are sent.
	gatheredBytes = 16 << 10
	// keptBytes is how much memory of one lane for answers is kept for others.
	keptBytes = 64 << 10
)

// lane reads the requests of a connection that net/http has not got yet, and is the http.ResponseWriter of their answers.
type lane struct {
	s      *Server
	link   *link
	ending <-chan struct{} // when closed, every answer is the last of its connection

	buf     [laneBytes]byte
	request http.Request // one after the other: a handler does not keep it
	url     url.URL      // of it
	fields  []byte       // what its header was parsed from; nil if nothing was

	header http.Header // of the answer
	began  bool        // that header is in out
	out    *[]byte     // answers that are not sent yet
}

// What becomes of a connection.
type fate uint8

const (
	staysShort fate = iota // the lane waits for more
	givenOn                // to net/http
	isOver
)

// gathered is memory for lanes that have answers.
var gathered = sync.Pool{New: func() any { return new([]byte) }}

// short answers what comes through a link for as long as it is of the one form, and returns whether net/http has to go on.
// If not, the link is closed.
func (s *Server) short(ctx context.Context, l *link, ending <-chan struct{}) (more bool) {
	n := &lane{s: s, link: l, ending: ending, header: make(http.Header)}
	r := http.Request{Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, URL: &n.url, Body: http.NoBody, RemoteAddr: l.RemoteAddr().String()}
	n.request = *r.WithContext(context.WithValue(ctx, http.LocalAddrContextKey, l.LocalAddr()))
	defer func() {
		// As net/http has it: a handler that panics ends its connection, and nothing else.
		if p := recover(); p != nil && p != http.ErrAbortHandler {
			s.log.Error("panic", "value", p, "stack", string(debug.Stack()))
		}
		if !more {
			l.Close()
		}
	}()
	return n.run() == givenOn
}

// deadlineStep is by how much the deadline for the next request may come too early: setting it costs more than reading the request.
const deadlineStep = time.Second

func (n *lane) run() fate {
	var until time.Time // the deadline
	for limit := headerLimit; ; limit = idleLimit {
		if now := time.Now(); until.Sub(now) < limit-deadlineStep {
			until = now.Add(limit)
			if err := n.link.SetReadDeadline(until); err != nil {
				return isOver
			}
		}
		size, err := n.link.Read(n.buf[:])
		if err != nil {
			return isOver
		}
		fate := n.turn(n.buf[:size])
		if fate != staysShort {
			return fate
		}
	}
}

// turn answers the requests that have come. If other connections have theirs, it lets those go first that wait for a core: by then
// the next request may have come, and neither a read that finds nothing nor a wait is made for it. With no others that would only cost time.
func (n *lane) turn(requests []byte) fate {
	others := n.s.busy.Add(1) > 1
	defer n.s.busy.Add(-1)
	n.link.state(http.StateActive)
	fate := n.answer(requests)
	n.link.state(http.StateIdle) // also where only a part of a request has come: net/http will say when it has all
	if fate == staysShort && (others || n.s.busy.Load() > 1) {
		runtime.Gosched()
	}
	return fate
}

// answer answers the requests that have come.
func (n *lane) answer(requests []byte) fate {
	n.out = gathered.Get().(*[]byte)
	defer func() {
		if cap(*n.out) <= keptBytes {
			*n.out = (*n.out)[:0]
			gathered.Put(n.out)
		}
		n.out = nil
	}()
	for len(requests) > 0 {
		size := n.parse(requests)
		if size == 0 {
			n.link.head = bytes.Clone(requests)
			return n.send(givenOn)
		}
		requests = requests[size:]
		clear(n.header)
		n.began = false
		n.s.answer(n, &n.request, n.ending)
		if n.header["Connection"] != nil {
			return n.send(isOver)
		}
		if len(*n.out) > gatheredBytes && n.send(staysShort) == isOver {
			return isOver
		}
	}
	return n.send(staysShort)
}

// send sends the answers, and returns what becomes of the connection if that succeeds.
func (n *lane) send(then fate) fate {
	if len(*n.out) > 0 {
		if _, err := n.link.Write(*n.out); err != nil {
			return isOver
		}
		*n.out = (*n.out)[:0]
	}
	return then
}

var (
	lineEnd   = []byte("\r\n")
	headerEnd = []byte("\r\n\r\n")
)

// parse reads the request at the beginning of b, and returns its length: 0 if it is not all there, or not for a lane.
func (n *lane) parse(b []byte) int {
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
	if path, ok = bytes.CutSuffix(path, []byte(" HTTP/1.1")); !ok || !isShort(path) {
		return 0
	}
	// Nearly all requests of a connection have the same header.
	if n.fields == nil || !bytes.Equal(fields, n.fields) {
		if n.fields = nil; !n.parseFields(fields) {
			return 0
		}
		n.fields = bytes.Clone(fields)
	}
	n.request.Method = method
	n.url.Path = string(path)
	n.request.RequestURI = n.url.Path
	return end + len(headerEnd)
}

// isShort reports whether a path has the short way. Nothing in it has to be decoded.
func isShort(path []byte) bool {
	if !bytes.HasSuffix(path, []byte(".narinfo")) && !bytes.HasSuffix(path, []byte("/nix-cache-info")) || path[0] != '/' {
		return false
	}
	for _, c := range path {
		if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '/' || c == '.' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}

// shortFields are the fields that the header of a request may have on the short way: none of them changes how the request is framed
// or what is to be answered to it, other than by what the handlers make of it.
var shortFields = map[string]bool{
	"Accept": true, "Accept-Encoding": true, "Accept-Language": true, "Authorization": true, "Connection": true, "Host": true, "User-Agent": true,
	"Forwarded": true, "Via": true, "X-Forwarded-For": true, "X-Forwarded-Host": true, "X-Forwarded-Prefix": true, "X-Forwarded-Proto": true, "X-Real-Ip": true,
}

// parseFields reads the header of a request, and reports whether that is for a lane.
func (n *lane) parseFields(fields []byte) bool {
	header, host := make(http.Header), ""
	for line := range bytes.SplitSeq(bytes.TrimSuffix(fields, lineEnd), lineEnd) {
		name, rest, colon := bytes.Cut(line, []byte(":"))
		key := textproto.CanonicalMIMEHeaderKey(string(name))
		value := string(bytes.Trim(rest, " \t"))
		switch {
		case !colon || !shortFields[key] || strings.ContainsFunc(value, notPlain):
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
	n.request.Header, n.request.Host = header, host
	return host != ""
}

func notPlain(r rune) bool { return r < ' ' && r != '\t' || r > '~' }

// Header returns the header of the answer.
func (n *lane) Header() http.Header { return n.header }

// WriteHeader begins the answer.
func (n *lane) WriteHeader(status int) {
	if n.began {
		return
	}
	n.began = true
	if n.header["Content-Length"] == nil {
		n.header["Connection"] = closed // which says where the answer ends
	}
	out := append(*n.out, "HTTP/1.1 "...)
	out = strconv.AppendInt(out, int64(status), 10)
	out = append(out, ' ')
	out = append(out, http.StatusText(status)...)
	var array [16]string
	keys := array[:0]
	for key := range n.header {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		for _, value := range n.header[key] {
			out = appendField(out, key, value)
		}
	}
	out = appendField(out, "Date", date())
	*n.out = append(out, headerEnd...)
}

// appendField appends a field behind the end of the line before it. No value has a line end: ours have none, and a request that has any in its fields
// does not go the short way.
func appendField(dst []byte, key, value string) []byte {
	dst = append(dst, lineEnd...)
	dst = append(dst, key...)
	dst = append(dst, ": "...)
	return append(dst, value...)
}

// Write adds to the body of the answer. What is large is sent at once: the handler knows for how
// long that is in memory.
func (n *lane) Write(p []byte) (int, error) {
	n.WriteHeader(http.StatusOK)
	switch {
	case n.request.Method == http.MethodHead:
	case len(p) <= keptBytes:
		*n.out = append(*n.out, p...)
	default:
		if _, err := n.link.Write(*n.out); err != nil {
			return 0, err
		}
		*n.out = (*n.out)[:0]
		return n.link.Write(p)
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
