package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"firn/internal/decompress"
	"firn/internal/remote"
)

const (
	// acceptEncoding is what Nix offers for everything but the rest of a download.
	acceptEncoding = "deflate, gzip, br, zstd"
	// maxHeader bounds the header of an answer, in bytes.
	maxHeader = 64 << 10
	// maxShown bounds what findings show of a text of the server, in characters.
	maxShown = 100
	// maxWords bounds what they show of a refusal: firn's name a command or two.
	maxWords = 400
)

// A client asks a cache.
type client struct {
	site     remote.Site
	agent    string
	patience time.Duration
	http     *http.Client
}

// newClient returns a client with connections of its own.
func newClient(site remote.Site, opts Options) *client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableCompression = true // what is compressed on its way is a finding
	transport.ResponseHeaderTimeout = opts.Patience
	transport.TLSHandshakeTimeout = opts.Patience
	transport.MaxResponseHeaderBytes = maxHeader
	if opts.Roots != nil {
		transport.TLSClientConfig.RootCAs = opts.Roots
	}
	return &client{
		site:     site,
		agent:    opts.UserAgent,
		patience: opts.Patience,
		http:     &http.Client{Transport: transport, CheckRedirect: remote.CheckRedirect},
	}
}

func (c *client) close() { c.http.CloseIdleConnections() }

// A request is what a client asks for. The zero value but for the URL is a GET as Nix makes it.
type request struct {
	method    string // "": GET
	body      string // of a PUT
	url       *url.URL
	bytes     string // of a Range; "": all
	anonymous bool   // without user and password
}

// do sends a request. The caller closes the body.
func (c *client) do(ctx context.Context, q request) (*http.Response, error) {
	var body io.Reader
	if q.body != "" {
		body = strings.NewReader(q.body)
	}
	r, err := http.NewRequestWithContext(ctx, q.method, q.url.String(), body)
	if err != nil {
		return nil, err
	}
	r.Header.Set("User-Agent", c.agent)
	r.Header.Set("Accept", "*/*")
	if q.bytes == "" {
		r.Header.Set("Accept-Encoding", acceptEncoding)
	} else {
		r.Header.Set("Range", "bytes="+q.bytes)
	}
	if !q.anonymous {
		c.site.Authorize(r)
	}
	return c.http.Do(r)
}

// An answer is what came back, with its body where that is short.
type answer struct {
	name   string // what was asked for
	status int
	header http.Header
	length int64 // Content-Length; -1: not said
	proto  string
	at     *url.URL // after redirects
	hops   int      // redirects
	body   []byte   // decoded, up to a limit
	over   bool     // there is more of it
}

// small asks for something of which no more than limit bytes are read.
func (e *examination) small(ctx context.Context, q request, limit int) (*answer, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*e.opts.Patience, errSlow)
	defer cancel()
	res, err := e.client.do(ctx, q)
	if err != nil {
		return nil, why(ctx, err)
	}
	defer res.Body.Close()
	a := newAnswer(q, res)
	if q.method == http.MethodHead {
		return a, nil
	}
	plain, err := decompress.DecodeEncoding(ctx, res.Header.Get("Content-Encoding"), res.Body, e.limits)
	if err != nil {
		return nil, fmt.Errorf("it comes with Content-Encoding: %s, which was not asked for", shown(res.Header.Get("Content-Encoding")))
	}
	defer plain.Close()
	a.body, err = io.ReadAll(io.LimitReader(plain, int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("its body ends early: %w", why(ctx, err))
	}
	if len(a.body) > limit {
		a.body, a.over = a.body[:limit], true
	}
	return a, nil
}

func newAnswer(q request, res *http.Response) *answer {
	a := &answer{name: strings.TrimPrefix(q.url.Path, "/"), status: res.StatusCode, header: res.Header, length: res.ContentLength, proto: res.Proto, at: res.Request.URL}
	for r := res.Request.Response; r != nil; r = r.Request.Response {
		a.hops++
	}
	return a
}

// file is a request for a file of the cache.
func (e *examination) file(name string) request { return request{url: e.site.Base.JoinPath(name)} }

// errSlow is why a request was given up.
var errSlow = errors.New("the server takes too long")

// why is what went wrong, without the request around it.
func why(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	return err
}

// is reports whether an answer is good, in the eyes of a client.
func (a *answer) is(status int) bool { return a.status == status }

// page reports whether an answer is for people.
func (a *answer) page() bool {
	kind := strings.ToLower(a.header.Get("Content-Type"))
	start := strings.ToLower(strings.TrimSpace(string(a.body[:min(len(a.body), 64)])))
	return strings.HasPrefix(kind, "text/html") || strings.HasPrefix(start, "<!doctype") || strings.HasPrefix(start, "<html")
}

// shown is a text of the server as it can be shown: quoted, so that it cannot confuse a terminal, and short.
func shown(text string) string { return quoted(text, maxShown) }

// refused is the status of an answer that refuses something, with what the server says of it.
func (a *answer) refused() string {
	text := strings.TrimSpace(string(a.body))
	if a.status < 400 || a.status > 499 || text == "" || a.page() {
		return status(a.status)
	}
	return status(a.status) + ", and the server says " + quoted(text, maxWords)
}

func quoted(text string, most int) string {
	short := text
	for i := range text {
		if i >= most {
			short = text[:i] + "…"
			break
		}
	}
	return fmt.Sprintf("%q", short)
}

// status is a status as people know it.
func status(code int) string {
	if text := http.StatusText(code); text != "" {
		return fmt.Sprintf("%d %s", code, text)
	}
	return fmt.Sprint(code)
}
