// Package doctor finds out what is wrong with a binary cache, of whatever server, by asking it what clients ask.
//
//	findings, err := doctor.Examine(ctx, "https://cache.example.org", doctor.Options{Path: path, TrustedKeys: keys})
//
// It goes through a list of checks, and each gives one finding: what was seen, whether that is good, and if not what to do.
// A check that needs what an earlier one did not find is skipped, and says why.
//
// Servers may be hostile: what is read of them is bounded in size and time, no other host is asked than those that the
// server redirects to, and what findings show of answers is quoted.
package doctor

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode"

	"firn/internal/decompress"
	"firn/internal/remote"
	"firn/nix"
)

// Options say what is known of this machine. The zero value knows nothing.
type Options struct {
	// Path is the path hash of a path that the cache should have; zero: one of Candidates.
	Path nix.PathHash
	// Candidates are paths that the cache may have. The first that it has is looked at.
	Candidates []nix.StorePath
	// NoCandidates says why there are none.
	NoCandidates string

	// StoreDir is the store directory of this machine; "": /nix/store.
	StoreDir nix.StoreDir
	// TrustedKeys are those that this machine trusts, and TrustedBy says where that stands. None: signatures are not looked at.
	TrustedKeys []nix.PublicKey
	TrustedBy   string
	// Substituters are the caches that this machine asks, as its configuration has them. Nil: that is not known.
	Substituters []string
	// Netrc is a file with users and passwords, as curl and Nix read it; "": none. What is in the URL wins.
	Netrc string
	// Roots are the authorities of certificates; nil: those of this machine.
	Roots *x509.CertPool

	// MaxSize is up to which size NARs are read, compressed and uncompressed, in bytes; 0: 1 GiB; below that: none are.
	MaxSize int64
	// References is how many references of the path are asked for; 0: 20.
	References int
	// Patience is how long the server may take before an answer begins, and between two bytes of it; 0: 20 seconds.
	Patience time.Duration
	// Push asks whether the password may push.
	Push bool
	// UserAgent is who asks; "": firn.
	UserAgent string
	// Tell is called with each finding at once. Nil is not called.
	Tell func(Finding)
	// Now is the clock; nil: time.Now.
	Now func() time.Time

	slow time.Duration // how long a narinfo may take; 0: a second
}

const (
	defaultMaxSize    = 1 << 30
	defaultReferences = 20
	defaultPatience   = 20 * time.Second
	defaultSlow       = time.Second // a client asks for 25 narinfos at once, and for thousands
)

// A Verdict says what to think of a finding.
type Verdict string

// The verdicts.
const (
	OK   Verdict = "ok"
	Warn Verdict = "warn" // works, but not as well as it should, or not with every client
	Fail Verdict = "fail"
	Skip Verdict = "skip" // was not looked at
)

// A Finding is what a check has found.
type Finding struct {
	Check   string  `json:"check"`
	Verdict Verdict `json:"verdict"`
	Seen    string  `json:"seen"`             // or why nothing was
	Advice  string  `json:"advice,omitempty"` // what to do about it
}

func ok(format string, args ...any) Finding {
	return Finding{Verdict: OK, Seen: fmt.Sprintf(format, args...)}
}

func warn(seen, advice string) Finding { return Finding{Verdict: Warn, Seen: seen, Advice: advice} }
func fail(seen, advice string) Finding { return Finding{Verdict: Fail, Seen: seen, Advice: advice} }

func skip(format string, args ...any) Finding {
	return Finding{Verdict: Skip, Seen: fmt.Sprintf(format, args...)}
}

// worst makes one finding of several complaints: its verdict is that of the worst. None is good.
func worst(good Finding, complaints []Finding) Finding {
	if len(complaints) == 0 {
		return good
	}
	var f Finding
	var seen, advice []string
	for _, c := range complaints {
		if f.Verdict != Fail {
			f.Verdict = c.Verdict
		}
		seen = append(seen, c.Seen)
		if c.Advice != "" && !strings.Contains(strings.Join(advice, "; "), c.Advice) {
			advice = append(advice, c.Advice)
		}
	}
	f.Seen, f.Advice = strings.Join(seen, "; "), strings.Join(advice, "; ")
	return f
}

// An examination goes through the checks. One goroutine uses it.
type examination struct {
	opts   Options
	site   remote.Site
	limits *decompress.Limits
	client *client

	proxy     string      // which requests go through; "": none
	addresses []string    // of the host, with its port
	reachable []string    // of these
	trusted   bool        // the certificate is good, or there is none to look at
	cacheInfo *answer     // nix-cache-info; nil: there is none
	status    int         // with which it was refused: 401 or 403
	root      *url.URL    // of a server of firn; nil: it is none, or that is not known yet
	fields    []infoField // of it
	path      *answer     // the narinfo of a path that is there; nil: there is none
	hash      nix.PathHash
	narInfo   *nix.NARInfo // nil: it cannot be parsed
	narURL    *url.URL     // nil: it leads to another host
	head      *answer      // HEAD of the NAR; nil: none
	nar       *download    // nil: it was not read
}

// A need is what a check needs of those before it: a reason not to run it, or "".
type need func(*examination) string

// Complete reports whether all was looked at that it takes to say that clients will be fine: a path
// that the cache has, with its NAR unless opts has it left out, and whether it can be pushed to, if
// that was asked.
func Complete(findings []Finding, opts Options) bool {
	for _, f := range findings {
		if f.Verdict == Skip && (f.Check == "path" || f.Check == "nar" && opts.MaxSize >= 0 || f.Check == "push") {
			return false
		}
	}
	return true
}

// A check looks at one thing. Where there is nothing to say of it, its finding is the zero one, and
// is left out.
type check struct {
	name   string
	need   need
	run    func(*examination, context.Context) Finding
	wanted func(*examination) bool // nil: always
}

// checks are in an order in which what they need comes first.
var checks = []check{
	{name: "name", need: nothing, run: (*examination).checkName},
	{name: "connect", need: anAddress, run: (*examination).checkConnect},
	{name: "certificate", need: aConnection, run: (*examination).checkCertificate},
	{name: "cache-info", need: trust, run: (*examination).checkCacheInfo},
	{name: "store-dir", need: aCacheInfo, run: (*examination).checkStoreDir},
	{name: "priority", need: aCacheInfo, run: (*examination).checkPriority},
	{name: "mass-query", need: aCacheInfo, run: (*examination).checkMassQuery},
	{name: "redirects", need: aCacheInfo, run: (*examination).checkRedirects},
	{name: "netrc", need: nothing, run: (*examination).checkNetrc, wanted: func(e *examination) bool { return e.opts.Netrc != "" }},
	{name: "credentials", need: trust, run: (*examination).checkCredentials},
	{name: "push", need: trust, run: (*examination).checkPush, wanted: func(e *examination) bool { return e.opts.Push }},
	{name: "room", need: nothing, run: (*examination).checkRoom, wanted: func(e *examination) bool { return e.cacheInfo != nil }},
	{name: "substituters", need: nothing, run: (*examination).checkSubstituters},
	{name: "missing", need: aCacheInfo, run: (*examination).checkMissing},
	{name: "path", need: aCacheInfo, run: (*examination).checkPath},
	{name: "narinfo", need: aPath, run: (*examination).checkNARInfo},
	{name: "signature", need: aNARInfo, run: (*examination).checkSignature},
	{name: "references", need: aNARInfo, run: (*examination).checkReferences},
	{name: "head", need: aPath, run: (*examination).checkHead},
	{name: "nar", need: aNARInfo, run: (*examination).checkNAR},
	{name: "nar-encoding", need: aDownload, run: (*examination).checkNAREncoding},
	{name: "compression", need: aDownload, run: (*examination).checkCompression},
	{name: "nar-hash", need: aDownload, run: (*examination).checkNARHash},
	{name: "ranges", need: aNARInfo, run: (*examination).checkRanges},
	{name: "etag", need: aCacheInfo, run: (*examination).checkETag},
	{name: "encoding", need: aCacheInfo, run: (*examination).checkEncoding},
	{name: "clock", need: aCacheInfo, run: (*examination).checkClock},
	{name: "connections", need: aCacheInfo, run: (*examination).checkConnections},
	{name: "latency", need: aCacheInfo, run: (*examination).checkLatency},
}

func nothing(*examination) string { return "" }

func anAddress(e *examination) string {
	if e.proxy == "" && len(e.addresses) == 0 {
		return "the host has no address"
	}
	return ""
}

func aConnection(e *examination) string {
	if e.proxy == "" && len(e.reachable) == 0 {
		return cmp.Or(anAddress(e), "nothing answers at the host")
	}
	return ""
}

func trust(e *examination) string {
	if !e.trusted {
		return cmp.Or(aConnection(e), "no client would ask a server with this certificate")
	}
	return ""
}

func aCacheInfo(e *examination) string {
	if e.cacheInfo == nil {
		return cmp.Or(trust(e), "there is no nix-cache-info to be had, so no cache")
	}
	return ""
}

func aPath(e *examination) string {
	if e.path == nil {
		return cmp.Or(aCacheInfo(e), "no store path is known that this cache has; name one with --path")
	}
	return ""
}

func aNARInfo(e *examination) string {
	if e.narInfo == nil {
		return cmp.Or(aPath(e), "the narinfo cannot be read")
	}
	return ""
}

func aDownload(e *examination) string {
	if e.nar == nil {
		return cmp.Or(aNARInfo(e), "the NAR was not read")
	}
	return ""
}

// ErrURL is why a URL cannot be that of a cache that is examined.
var ErrURL = errors.New("firn doctor looks at caches that are reached over HTTP: want http://HOST/PATH or https://HOST/PATH")

// ParseURL parses the URL of a cache. ErrURL if it is none.
func ParseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil && !strings.Contains(text, "://") {
		return nil, fmt.Errorf("%w, and this has neither in front", ErrURL) // HOST:PORT; not shown, as it may have a password
	}
	if err != nil {
		if parse, ok := errors.AsType[*url.Error](err); ok {
			err = parse.Err // the rest may show a password
		}
		return nil, fmt.Errorf("%w: %w", ErrURL, err)
	}
	switch u.Scheme {
	case "http", "https":
	case "ssh", "ssh-ng":
		return nil, fmt.Errorf("%w; of a store over SSH, nix store info --store %s tells whether it answers", ErrURL, u.Redacted())
	case "":
		return nil, fmt.Errorf("%w, and %q has neither in front", ErrURL, text)
	default:
		return nil, fmt.Errorf("%w, and this begins with %s", ErrURL, u.Scheme)
	}
	if u.RawQuery != "" {
		return nil, fmt.Errorf("%w, without what follows the question mark: that is for clients", ErrURL)
	}
	if u.Host == "" || u.Hostname() == "" || u.Fragment != "" {
		return nil, ErrURL
	}
	return u, nil
}

// Examine goes through all checks. Its error is that the URL is none, or that the netrc file cannot be read.
func Examine(ctx context.Context, at string, opts Options) ([]Finding, error) {
	u, err := ParseURL(at)
	if err != nil {
		return nil, err
	}
	site, err := remote.ParseSite(u, opts.Netrc)
	if err != nil {
		return nil, err
	}
	opts.StoreDir = cmp.Or(opts.StoreDir, nix.DefaultStoreDir)
	opts.MaxSize = cmp.Or(opts.MaxSize, defaultMaxSize)
	opts.References = cmp.Or(opts.References, defaultReferences)
	opts.Patience = cmp.Or(opts.Patience, defaultPatience)
	opts.slow = cmp.Or(opts.slow, defaultSlow)
	opts.UserAgent = cmp.Or(opts.UserAgent, "firn")
	if opts.Now == nil {
		opts.Now = time.Now
	}
	e := &examination{opts: opts, site: site, limits: decompress.NewLimits(decompress.Options{})}
	e.client = newClient(site, opts)
	defer e.client.close()
	findings := make([]Finding, 0, len(checks))
	for _, c := range checks {
		if c.wanted != nil && !c.wanted(e) {
			continue
		}
		var f Finding
		reason := c.need(e)
		switch {
		case ctx.Err() != nil:
			f = skip("the time is over")
		case reason != "":
			f = skip("%s", reason)
		default:
			f = c.run(e, ctx)
			if f.Verdict == Fail && ctx.Err() != nil { // which is no fault of the server
				f = skip("the time was over: allow more with --timeout, or name a smaller path with --path")
			}
		}
		if f.Verdict == "" {
			continue
		}
		f.Check, f.Seen, f.Advice = c.name, printable(f.Seen), printable(f.Advice)
		findings = append(findings, f)
		if opts.Tell != nil {
			opts.Tell(f)
		}
	}
	return findings, nil
}

// printable is a line that no terminal stumbles over. Most texts of the server are quoted before; errors may have more of them.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, text)
	return string([]rune(text)[:min(len([]rune(text)), maxLine)])
}

// maxLine bounds what a finding says, in characters.
const maxLine = 1000
