package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"firn/internal/cache"
	"firn/nix"
)

// serveNARInfo answers with a narinfo.
func (s *Server) serveNARInfo(x *exchange) error {
	hash, err := nix.ParsePathHash(x.target.name)
	if err != nil {
		return x.noPath(x.target.name)
	}
	if x.wantsJSON() {
		return s.serveNARInfoJSON(x, hash)
	}
	old := knowsNoZstd(x.r.Header["User-Agent"])
	narInfo := x.cache.NARInfo
	if old {
		narInfo = x.cache.PlainNARInfo
	}
	text, err := narInfo(x.r.Context(), hash)
	if errors.Is(err, cache.ErrNotFound) {
		if any, err := x.cache.HasSources(x.r.Context()); any && err == nil {
			// This is what fail would answer, at less cost: most paths that clients ask for are not there.
			s.metrics.lookups[lookupMiss].Inc()
			return x.answer(http.StatusNotFound, typeText, cacheMiss, []byte(noPathText(x.target.name)+"\n"))
		}
	}
	if err := s.lookedUp(x, err); err != nil {
		return err
	}
	if n := len(text); n > cache.LargeInfo && !x.isHead() {
		done, ok := s.sentTexts.TryTakeN(n, s.owners(x)...)
		if !ok {
			text = nil // so that a request that waits holds nothing
			if done, err = s.textSlot(x, n); err != nil {
				return err
			}
		}
		defer done()
		if !ok {
			if text, err = narInfo(x.r.Context(), hash); err != nil {
				return err
			}
		}
	}
	x.w.Header()["Vary"] = onAccept
	if old {
		// Not for proxies that keep it: they would give it to other clients, which would download several
		// times as much.
		return x.bytes(typeNARInfo, cacheNever, text)
	}
	return x.bytes(typeNARInfo, cacheShort, text)
}

// serveNARInfoJSON answers with the JSON form of a narinfo.
func (s *Server) serveNARInfoJSON(x *exchange, hash nix.PathHash) error {
	info, err := x.cache.Lookup(x.r.Context(), hash)
	if err := s.lookedUp(x, err); err != nil {
		return err
	}
	if size := info.TextSize(); size > cache.LargeInfo {
		info = nil
		done, err := s.textSlot(x, min(3*size, textMemory/2)) // the references are in memory once more
		if err != nil {
			return err
		}
		defer done()
		if info, err = x.cache.Lookup(x.r.Context(), hash); err != nil {
			return err
		}
	}
	x.w.Header()["Vary"] = onAccept
	// Not for proxies that keep it: some of them ignore Vary, and would give this to Nix.
	return x.json(cacheNever, info)
}

// textSlot waits until there is memory for so many bytes of a text, which a slow client may hold for a
// while.
func (s *Server) textSlot(x *exchange, bytes int) (done func(), err error) {
	done, err = s.slot(x, s.sentTexts, bytes, textLimit)
	if err != nil {
		return nil, fmt.Errorf("%w: too many large narinfos are being sent: %w", cache.ErrUnavailable, err)
	}
	return done, nil
}

// knowsNoZstd reports whether a client is a Nix before 2.4, which fails at a narinfo that says zstd.
func knowsNoZstd(agent []string) bool {
	minor, ok := nixVersion(agent)
	return ok && minor < 4
}

// nixVersion returns the N of a client that is Nix 2.N, as in "curl/7.74.0 Nix/2.3.7", and less than 0
// for an older Nix. ok is false if the client is no Nix.
func nixVersion(agent []string) (minor int, ok bool) {
	if len(agent) != 1 {
		return 0, false
	}
	_, version, ok := strings.Cut(agent[0], "Nix/")
	if !ok {
		return 0, false
	}
	rest, ok := strings.CutPrefix(version, "2.")
	if !ok {
		return -1, strings.HasPrefix(version, "1.")
	}
	digits := 0
	for ; digits < len(rest) && digits < 4 && '0' <= rest[digits] && rest[digits] <= '9'; digits++ {
		minor = 10*minor + int(rest[digits]-'0')
	}
	return minor, digits > 0
}

// lookedUp counts a look-up of the path hash in the URL, and returns its error for the client.
func (s *Server) lookedUp(x *exchange, err error) error {
	switch {
	case err == nil:
		s.metrics.lookups[lookupHit].Inc()
	case errors.Is(err, cache.ErrNotFound):
		s.metrics.lookups[lookupMiss].Inc()
		return x.missing(noPathText(x.target.name))
	default:
		s.metrics.lookups[lookupFailed].Inc()
	}
	return err
}

// noPath returns an ErrNotFound for a text that shows it only if it is a path hash.
func (x *exchange) noPath(hash string) error {
	if _, err := nix.ParsePathHash(hash); err != nil {
		return x.missing("this is not a path hash: it has 32 digits of Nix's base 32")
	}
	return x.missing(noPathText(hash))
}

func noPathText(hash string) string { return "no store path with hash " + hash + " here" }

// serveLog answers with a build log.
func (s *Server) serveLog(x *exchange) error {
	drv, err := x.logged()
	if err != nil {
		return err
	}
	done, err := s.slot(x, s.logs, 1, logLimit)
	if err != nil {
		return fmt.Errorf("send log of %s: %w: too many are being sent: %w", drv, cache.ErrUnavailable, err)
	}
	defer done()
	read, err := s.readSlot(x)
	if err != nil {
		return err
	}
	defer read()
	log, err := x.cache.OpenLog(x.r.Context(), drv)
	if errors.Is(err, cache.ErrNotFound) {
		return x.missing("no log of " + drv.Base() + " here")
	}
	if err != nil {
		return err
	}
	defer log.Close()

	h := x.w.Header()
	h["Content-Type"] = typeText
	x.setCaching(h, cacheShort)
	h["X-Content-Type-Options"] = noSniff
	h["Content-Security-Policy"] = sandbox
	size, known := log.Size()
	if known {
		x.setLength(h, size)
	}
	if x.isHead() {
		x.begin(http.StatusOK)
		return nil
	}
	var r io.Reader = log
	if known {
		r = io.LimitReader(log, size) // a log grows as long as its build runs
	}
	_, err = io.Copy(&body{x: x, status: http.StatusOK}, r)
	if err == nil && known && x.sent != size {
		err = fmt.Errorf("send log of %s: %d bytes of %d", drv, x.sent, size)
	}
	if x.status == 0 && err == nil {
		x.begin(http.StatusOK) // it is empty
	}
	return err
}

func (s *Server) serveRealisation(x *exchange) error {
	id, err := nix.ParseRealisationID(x.target.name)
	if err != nil {
		return x.missing("this is not the name of a realisation")
	}
	r, err := x.cache.Realisation(x.r.Context(), id)
	if errors.Is(err, cache.ErrNotFound) {
		return x.missing("no realisation of " + id.String() + " here")
	}
	if err != nil {
		return err
	}
	return x.json(cacheShort, r)
}

func (s *Server) serveBuildTrace(x *exchange) error {
	name, output, _ := strings.Cut(x.target.name, "/")
	drv, err := x.parseDerivation(name)
	if err != nil {
		return err
	}
	t, err := x.cache.BuildTrace(x.r.Context(), drv, output)
	if errors.Is(err, cache.ErrNotFound) {
		return x.missing("no build trace of this output of " + drv.Base() + " here")
	}
	if err != nil {
		return err
	}
	return x.json(cacheShort, t)
}

// logged returns the derivation of a log. Names of derivations may contain a question mark, and Nix does
// not escape it: what looks like a query is the rest of the name.
func (x *exchange) logged() (nix.StorePath, error) {
	name := x.target.name
	if x.r.URL.RawQuery != "" || x.r.URL.ForceQuery {
		rest, err := url.PathUnescape(x.r.URL.RawQuery)
		if err != nil {
			return nix.StorePath{}, x.missing("this is not the name of a derivation")
		}
		name += "?" + rest
	}
	return x.parseDerivation(name)
}

// parseDerivation parses the last element of the store path of a derivation. ErrNotFound if it is none.
func (x *exchange) parseDerivation(base string) (nix.StorePath, error) {
	drv, err := x.cache.Info().StoreDir.ParseBase(base)
	if err != nil || !drv.IsDerivation() {
		return nix.StorePath{}, x.missing("this is not the name of a derivation")
	}
	return drv, nil
}

// serveDebugInfo answers which NAR has the debug information of a build ID. Nix asks with .debug behind
// the ID, Hydra's tools without.
func (s *Server) serveDebugInfo(x *exchange) error {
	id := strings.TrimSuffix(x.target.name, ".debug")
	if !isBuildID(id) {
		return x.missing("this is not a build ID: it has 40 hexadecimal digits")
	}
	info, err := x.cache.DebugInfo(x.r.Context(), id)
	if errors.Is(err, cache.ErrNotFound) {
		return x.missing("no debug info of " + id + " here")
	}
	if err != nil {
		return err
	}
	text, err := json.Marshal(debugInfo{"../" + info.Archive, info.Member})
	if err != nil {
		return err
	}
	return x.json(cacheShort, json.RawMessage(text))
}

// debugInfo is the JSON that Nix uploads for a build ID, and gets for it.
type debugInfo struct {
	Archive string `json:"archive"` // URL of the NAR, relative to debuginfo/
	Member  string `json:"member"`
}

func isBuildID(s string) bool {
	return len(s) == 40 && strings.Trim(s, "0123456789abcdef") == ""
}

// serveHealth asks the sources of the cache at the root whether they can serve.
func (s *Server) serveHealth(x *exchange) error {
	ctx, cancel := context.WithTimeout(x.r.Context(), healthLimit)
	defer cancel()
	c, err := s.caches.ByName(ctx, cache.Main)
	if err == nil {
		err = c.Check(ctx)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", cache.ErrUnavailable, err)
	}
	if nearlyFull(ctx, c) {
		// It serves as before, so no monitor should take it for down.
		return x.bytes(typeText, cacheNever, []byte("ok, but the disk is nearly full: what is pushed may be refused\n"))
	}
	return x.bytes(typeText, cacheNever, []byte("ok\n"))
}
