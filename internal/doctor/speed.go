package doctor

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"time"

	"firn/nix"
)

const (
	// rounds is how often something is asked for to see how long that takes.
	rounds = 9
	// maxSkew is how far clocks may be apart.
	maxSkew = 5 * time.Minute
)

// seen are the answers that were good.
func (e *examination) seen() []*answer {
	list := []*answer{e.cacheInfo}
	if e.path != nil {
		list = append(list, e.path)
	}
	if e.head != nil {
		list = append(list, e.head)
	}
	if e.nar != nil {
		list = append(list, &e.nar.answer)
	}
	return list
}

// checkETag looks for the one that makes clients take an answer for an old one.
func (e *examination) checkETag(context.Context) Finding {
	for _, a := range e.seen() {
		if tag, has := a.header["Etag"]; has && strings.TrimSpace(tag[0]) == "" {
			return fail(fmt.Sprintf("%s comes with an empty ETag, which Nix takes for that of what it has, and reads nothing", shown(a.name)), "leave the header out, or give it a value")
		}
	}
	if e.nar == nil {
		return ok("none is empty")
	}
	tag := e.nar.header.Get("Etag")
	if e.head != nil && e.head.is(http.StatusOK) && e.head.header.Get("Etag") != tag && e.nar.header.Get("Content-Encoding") == "" {
		return warn(fmt.Sprintf("the ETag of the NAR is %s, and that of its HEAD %s", shown(tag), shown(e.head.header.Get("Etag"))), "it has to be the same for the same bytes: are there several servers behind one name?")
	}
	if tag == "" {
		return ok("the NAR has none, and needs none")
	}
	return ok("the NAR has %s", shown(tag))
}

// checkEncoding looks at how small files are compressed on their way.
func (e *examination) checkEncoding(context.Context) Finding {
	var used []string
	for _, a := range []*answer{e.cacheInfo, e.path} {
		if a == nil {
			continue
		}
		values, has := a.header["Content-Encoding"]
		if !has {
			continue
		}
		switch name := strings.ToLower(strings.TrimSpace(values[0])); name {
		case "gzip", "br", "zstd":
			used = append(used, name)
		case "identity", "":
			return warn(fmt.Sprintf("%s comes with Content-Encoding: %s, which Nix before 2.31 does not know", shown(a.name), shown(values[0])), "leave the header out")
		case "deflate":
			return warn(fmt.Sprintf("%s comes with Content-Encoding: deflate, which Nix 2.14 to 2.33 offers, but cannot read", shown(a.name)), "use gzip, br or zstd")
		default:
			return warn(fmt.Sprintf("%s comes with Content-Encoding: %s, which no client offers since Nix 2.34", shown(a.name), shown(values[0])), "use gzip, br or zstd, and only where the client offers it")
		}
	}
	if len(used) == 0 {
		return ok("small files come as they are")
	}
	slices.Sort(used)
	return ok("small files come compressed as %s", strings.Join(slices.Compact(used), ", "))
}

func (e *examination) checkClock(context.Context) Finding {
	date, err := http.ParseTime(e.cacheInfo.header.Get("Date"))
	if err != nil {
		return skip("the server does not say what time it has")
	}
	skew := e.opts.Now().Sub(date).Abs()
	if skew > maxSkew {
		return warn(fmt.Sprintf("the clocks of the server and of this machine are %s apart", skew.Round(time.Second)), "set the one that is wrong: certificates and tokens end by them")
	}
	return ok("the clocks of the server and of this machine agree")
}

// sample is something small that is there.
func (e *examination) sample() request {
	if e.narInfo != nil {
		return e.file(e.hash.String() + ".narinfo")
	}
	return e.file("nix-cache-info")
}

// ask asks several times for the same, each time after the last answer, and returns how long each took, the connections that
// were made, and the protocol. With fresh, each goes over a connection of its own.
func (e *examination) ask(ctx context.Context, fresh bool) (took []time.Duration, connections int, proto string, err error) {
	c := newClient(e.site, e.opts)
	defer c.close()
	c.http.Transport.(*http.Transport).DisableKeepAlives = fresh
	ctx, cancel := context.WithTimeoutCause(ctx, 2*e.opts.Patience, errSlow)
	defer cancel()
	trace := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		if !i.Reused {
			connections++
		}
	}})
	for range rounds {
		begun := time.Now()
		res, err := c.do(trace, e.sample())
		if err != nil {
			return nil, 0, "", why(ctx, err)
		}
		_, err = io.Copy(io.Discard, io.LimitReader(res.Body, nix.MaxNARInfoSize))
		res.Body.Close()
		if err != nil {
			return nil, 0, "", why(ctx, err)
		}
		took, proto = append(took, time.Since(begun)), res.Proto
		if res.StatusCode != http.StatusOK {
			return nil, 0, "", fmt.Errorf("asked %d times in a row, the server answers %s", len(took), status(res.StatusCode))
		}
	}
	return took, connections, proto, nil
}

// checkConnections looks whether a connection is good for more than one request.
func (e *examination) checkConnections(ctx context.Context) Finding {
	_, connections, proto, err := e.ask(ctx, false)
	switch {
	case err != nil:
		return fail(err.Error(), "a client asks for thousands of narinfos: look at the limits of the server, and of the proxy before it")
	case connections > 1+e.sampleHops():
		return warn(fmt.Sprintf("%s, and %d requests took %d connections", proto, rounds, connections), "have the server, and the proxy before it, keep connections: keepalive_timeout in nginx, and no Connection: close")
	case strings.HasPrefix(proto, "HTTP/1") && e.site.Base.Scheme == "https":
		return ok("%s, and connections are kept; with HTTP/2 one would carry many requests at once", proto)
	}
	return ok("%s, and connections are kept", proto)
}

// sampleHops is how many other hosts a request may need a connection to.
func (e *examination) sampleHops() int {
	if e.narInfo != nil {
		return e.path.hops
	}
	return e.cacheInfo.hops
}

// checkLatency says how long a narinfo takes.
func (e *examination) checkLatency(ctx context.Context) Finding {
	what := "nix-cache-info"
	if e.narInfo != nil {
		what = "a narinfo"
	}
	kept, _, _, err := e.ask(ctx, false)
	if err != nil {
		return fail(err.Error(), "a client asks for thousands of narinfos: look at the limits of the server, and of the proxy before it")
	}
	fresh, _, _, err := e.ask(ctx, true)
	if err != nil {
		return fail(err.Error(), "a client makes up to 25 connections: look at the limits of the server, and of the proxy before it")
	}
	f := ok("%s takes %s, over a new connection %s (medians of %d)", what, median(kept), median(fresh), rounds)
	if median(kept) > e.opts.slow {
		f.Verdict, f.Advice = Warn, "clients wait for it before they know what to fetch: look at the load of the server and at the way to it"
	}
	return f
}

func median(list []time.Duration) time.Duration {
	slices.Sort(list)
	return list[len(list)/2].Round(10 * time.Microsecond)
}
