package transfer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"

	"firn/internal/cache"
	"firn/internal/remote"
)

const (
	// tries is how often something is asked for. With pauses that grow from half a second that is some 20 seconds.
	tries = 7
	// patience is how long nothing may come: the time after which a client of Nix goes away too.
	patience = 5 * time.Minute
	// maxWait bounds what a server may ask for with Retry-After.
	maxWait = time.Minute
)

// An httpOrigin is a cache reached over HTTP.
type httpOrigin struct {
	site   remote.Site
	agent  string
	client *http.Client
	pause  time.Duration // before the first repetition
	retry  func(err error, pause time.Duration)
}

func newHTTPOrigin(base *url.URL, opts *ImportOptions) (*httpOrigin, error) {
	site, err := remote.ParseSite(base, opts.Netrc)
	if err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableCompression = true // what is asked for in parts has to be as it is
	transport.ResponseHeaderTimeout = patience
	transport.MaxIdleConnsPerHost = 2 * opts.Workers
	retry := opts.Retry
	if retry == nil {
		retry = func(error, time.Duration) {}
	}
	return &httpOrigin{
		retry:  retry,
		site:   site,
		agent:  cmp.Or(opts.UserAgent, "firn"),
		client: &http.Client{Transport: transport, CheckRedirect: remote.CheckRedirect},
		pause:  cmp.Or(opts.pause, backoff.DefaultInitialInterval),
	}, nil
}

func (o *httpOrigin) close() { o.client.CloseIdleConnections() }

func (o *httpOrigin) list(context.Context, string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) { yield("", errNoListing) }
}

func (o *httpOrigin) open(ctx context.Context, name string) (io.ReadCloser, string, error) {
	u, err := o.site.Resolve(name)
	if err != nil {
		return nil, "", err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	d := &download{ctx: ctx, cancel: cancel, origin: o, url: u, size: -1}
	if err := d.connect(); err != nil {
		cancel(nil)
		return nil, "", err
	}
	return d, d.encoding, nil
}

// A download reads one file, and goes on where it was when the connection breaks. One goroutine uses it.
type download struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	origin *httpOrigin
	url    *url.URL

	body     io.ReadCloser
	encoding string
	tag      string // ETag of the first answer
	size     int64  // -1: not known
	off      int64  // bytes that were read
	failures int    // since bytes last came
}

// errStalled is why a download ends that brings nothing.
var errStalled = unreachable{fmt.Errorf("%w: nothing came for %v", cache.ErrUnavailable, patience)}

// Read implements io.Reader.
func (d *download) Read(p []byte) (int, error) {
	for {
		stall := time.AfterFunc(patience, func() { d.cancel(errStalled) })
		n, err := d.body.Read(p)
		stall.Stop()
		d.off += int64(n)
		if n > 0 {
			d.failures = 0
			return n, nil // an error will come again
		}
		switch {
		case err == nil:
			continue
		case err == io.EOF && (d.size < 0 || d.off == d.size):
			return 0, io.EOF
		case d.ctx.Err() != nil:
			return 0, context.Cause(d.ctx)
		}
		if d.failures++; d.failures >= tries {
			return 0, unreachable{fmt.Errorf("get %s: %w", d.url, err)}
		}
		d.origin.retry(fmt.Errorf("get %s: it broke off after %d bytes: %w", d.url, d.off, err), 0)
		if err := d.connect(); err != nil {
			return 0, err
		}
	}
}

// Close implements io.Closer.
func (d *download) Close() error {
	d.cancel(nil)
	return d.body.Close()
}

// connect asks for what follows the bytes that were read, again and again where that may help.
func (d *download) connect() error {
	if d.body != nil {
		d.body.Close()
	}
	pauses := backoff.NewExponentialBackOff()
	pauses.InitialInterval = d.origin.pause
	_, err := backoff.Retry(d.ctx, func() (struct{}, error) { return struct{}{}, d.ask() },
		backoff.WithBackOff(pauses), backoff.WithMaxTries(tries), backoff.WithMaxElapsedTime(0),
		backoff.WithNotify(func(err error, pause time.Duration) { d.origin.retry(d.explain(err), pause) }))
	if d.ctx.Err() != nil {
		return context.Cause(d.ctx)
	}
	return d.explain(err)
}

// explain says what a server that asks for patience has said.
func (d *download) explain(err error) error {
	if retry, ok := errors.AsType[*backoff.RetryAfterError](err); ok {
		return unreachable{fmt.Errorf("get %s: %w: it asks to be left alone for %v", d.url, cache.ErrUnavailable, retry.Duration)}
	}
	return err
}

// unreachable is the error of an origin that does not answer, or not well, however often it is asked.
type unreachable struct{ error }

func (u unreachable) Unwrap() error { return u.error }

// ask asks once.
func (d *download) ask() error {
	r, err := http.NewRequestWithContext(d.ctx, http.MethodGet, d.url.String(), nil)
	if err != nil {
		return backoff.Permanent(err)
	}
	r.Header.Set("User-Agent", d.origin.agent)
	d.origin.site.Authorize(r)
	if d.off > 0 {
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-", d.off))
		if d.tag != "" {
			r.Header.Set("If-Range", d.tag)
		}
	}
	res, err := d.origin.client.Do(r)
	if err != nil {
		if errors.Is(err, cache.ErrInvalid) { // a redirect
			return backoff.Permanent(err)
		}
		return unreachable{err}
	}
	if err := d.take(res); err != nil {
		res.Body.Close()
		return err
	}
	return nil
}

// take takes an answer for the rest of the file.
func (d *download) take(res *http.Response) error {
	// Not in the server's own words, which could be anything, and go to a terminal.
	fail := func(kind error) error {
		return fmt.Errorf("get %s: %w: %d %s", d.url, kind, res.StatusCode, http.StatusText(res.StatusCode))
	}
	switch code := res.StatusCode; {
	case code == http.StatusNotFound, code == http.StatusGone:
		return backoff.Permanent(fail(cache.ErrNotFound))
	case code == http.StatusUnauthorized:
		return backoff.Permanent(fmt.Errorf("%w; a user and a password can stand in the file of --netrc-file, or in the URL", fail(cache.ErrDenied)))
	case code == http.StatusForbidden: // also what object stores say of what they do not have
		return backoff.Permanent(fail(cache.ErrNotFound))
	case code == http.StatusTooManyRequests, code == http.StatusServiceUnavailable:
		if seconds, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && seconds > 0 {
			return backoff.RetryAfter(min(seconds, int(maxWait.Seconds())))
		}
		return unreachable{fail(cache.ErrUnavailable)}
	case code == http.StatusRequestTimeout, code >= 500:
		return unreachable{fail(cache.ErrUnavailable)}
	case d.off > 0 && code == http.StatusPartialContent:
		var first, last, size int64
		_, err := fmt.Sscanf(res.Header.Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &size)
		if err != nil || first != d.off || d.size >= 0 && size != d.size || res.Header.Get("Content-Encoding") != d.encoding {
			return backoff.Permanent(fmt.Errorf("get %s: %w: asked for bytes from %d on, got %q", d.url, cache.ErrInvalid, d.off, res.Header.Get("Content-Range")))
		}
		d.body = res.Body
		return nil
	case code != http.StatusOK:
		return backoff.Permanent(fail(cache.ErrInvalid))
	}
	if d.off > 0 { // the whole once more
		if d.size >= 0 && res.ContentLength != d.size || res.Header.Get("Etag") != d.tag || res.Header.Get("Content-Encoding") != d.encoding {
			return backoff.Permanent(fmt.Errorf("get %s: %w: it was replaced while it was fetched", d.url, cache.ErrConflict))
		}
		if _, err := io.CopyN(io.Discard, res.Body, d.off); err != nil {
			return unreachable{fmt.Errorf("get %s: %w", d.url, err)}
		}
		d.body = res.Body
		return nil
	}
	d.body, d.size, d.tag, d.encoding = res.Body, res.ContentLength, res.Header.Get("Etag"), res.Header.Get("Content-Encoding")
	return nil
}
