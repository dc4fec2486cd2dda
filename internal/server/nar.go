package server

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"firn/internal/cache"
	"firn/internal/server/connlimit"
	"firn/nix"
)

// Lengths of the hashes in names, in digits of base 32.
const (
	pathHashLen = 32
	narHashLen  = 52
)

// serveNAR answers with the NAR of a store path, or a range of it, under any of the names in use:
//
//	nar/<path hash>-<NAR hash>.nar             ours, and of newer nix-serves
//	nar/<path hash>-<NAR hash>-<tag>.nar.zst   ours, compressed
//	nar/<NAR hash>.nar?hash=<path hash>        of harmonia
//	nar/<path hash>.nar                        of older nix-serves
//	nar/<file hash>.nar.<compression>          under which a client uploaded it
//
// Clients remember these for a month, also those of the server that was here before. With .zst at
// its end, each of the others but the last stands for the compressed NAR too.
//
// A HEAD request is answered like a GET, also with a Range, but has nothing compressed.
func (s *Server) serveNAR(x *exchange, compression nix.Compression) error {
	if len(x.target.name) == narHashLen && !hasHash(x.r.URL.RawQuery) {
		return s.serveReceived(x)
	}
	archive, tag, ok := parseNARName(x.target.name, x.r.URL.RawQuery)
	ok = ok && (x.target.ext == "" && tag == "" || compression == nix.Zstd)
	if !ok {
		return x.missing("this is not the name of a NAR here")
	}
	archive.Compression = compression
	if x.isHead() {
		info, size, known, err := x.cache.StatNAR(x.r.Context(), archive)
		if err != nil {
			return x.noNAR(archive, err)
		}
		if !known {
			size = -1
		}
		status, _, _, err := x.beginNAR(info.Tag, x.cachingOf(archive, tag, info), size)
		if err == nil {
			x.begin(status)
		}
		return err
	}

	done, err := s.readSlot(x)
	if err != nil {
		return err
	}
	defer done()
	n, info, err := x.cache.OpenNAR(x.r.Context(), archive)
	if err != nil {
		return x.noNAR(archive, err)
	}
	defer n.Close()
	if making, ok := n.(cache.Unfinished); ok && n.Size() < 0 && x.r.Header["Range"] != nil {
		// A client that resumes a download has its first bytes, and needs the others from where it
		// left off. Where the file cannot be kept, the whole is still a right answer.
		if err := making.Wait(x.r.Context()); err != nil && x.r.Context().Err() != nil {
			return err
		}
	}
	return x.sendNAR(n, info.Tag, x.cachingOf(archive, tag, info))
}

// sendNAR answers with a NAR, or a range of it.
func (x *exchange) sendNAR(n cache.NAR, tag string, c *caching) error {
	status, off, length, err := x.beginNAR(tag, c, n.Size())
	if err != nil {
		return err
	}
	if x.isHead() || status == http.StatusNotModified {
		x.begin(status)
		return nil
	}
	uncork := x.cork(length)
	err = n.WriteRange(x.r.Context(), &body{x: x, status: status}, off, length)
	uncork(err)
	if err == nil && length >= 0 && x.sent != length {
		err = fmt.Errorf("write NAR %s: %d bytes of %d", tag, x.sent, length)
	}
	return err
}

// corkMin is the length in bytes of bodies from which on they are corked.
const corkMin = 64 << 10

// cork has the kernel send the body in as few packets as it can, until uncork is called. A NAR is written
// in parts, of which many are short, and each one wakes the client: on a virtual machine, which has to
// wake a core for that, this took a fifth of the time of a NAR. length is that of the body, or -1 if it is
// not known yet; such a body is sent as it comes. err is the error of writing the body.
func (x *exchange) cork(length int64) (uncork func(err error)) {
	c, ok := connlimit.Of(x.r.Context())
	if !ok || x.r.TLS != nil || length < corkMin {
		return func(error) {}
	}
	end, ok := c.Cork()
	if !ok {
		return func(error) {}
	}
	return func(err error) {
		if err == nil { // else the connection is cut, and the last bytes do not matter
			_ = http.NewResponseController(x.w).Flush() // what it fails with, the next write fails with
		}
		end()
	}
}

// cachingOf returns how long a NAR may be kept: for ever if its URL stands for these bytes only. It
// does not without a NAR hash, as the path may come back with other bytes, and of a compressed NAR
// without the tag of its bytes. A URL with the tag of other bytes, which were here once, is answered
// with those that are here now; a client that has the first of the others must not get the rest of
// these.
func (x *exchange) cachingOf(a cache.Archive, tag string, info cache.ArchiveInfo) *caching {
	x.otherBytes = tag != "" && tag != info.FileTag
	if a.NARHash.IsZero() || tag != info.FileTag {
		return cacheShort
	}
	return cacheForever
}

// beginNAR sets the header of the answer to a request for a NAR of the given tag, which may be "", and
// size, which is -1 if it is not known yet. It returns the range that is to be sent; length is -1 for all
// there will be.
func (x *exchange) beginNAR(tag string, c *caching, size int64) (status int, off, length int64, err error) {
	h := x.w.Header()
	if tag != "" {
		tag = `"` + tag + `"`
		h["ETag"] = []string{tag}
	}
	ranges := !x.otherBytes || x.r.Header["If-Range"] != nil
	h["Accept-Ranges"] = byteRanges
	if !ranges {
		h["Accept-Ranges"] = noRanges
	}
	x.setCaching(h, c)
	unchanged, err := precondition(x.r.Header, tag)
	if err != nil {
		return 0, 0, 0, err
	}
	if unchanged {
		return http.StatusNotModified, 0, 0, nil
	}

	status, length = http.StatusOK, size
	if size >= 0 && ranges {
		var partial bool
		off, length, partial, err = rangeOf(x.r.Header, tag, size)
		if err != nil {
			h["Content-Range"] = []string{"bytes */" + strconv.FormatInt(size, 10)}
			return 0, 0, 0, err
		}
		if partial {
			status = http.StatusPartialContent
			h["Content-Range"] = []string{fmt.Sprintf("bytes %d-%d/%d", off, off+length-1, size)}
		}
	}
	if size >= 0 {
		x.setLength(h, length)
	}
	h["Content-Type"] = typeNAR
	h["X-Content-Type-Options"] = noSniff
	h["Content-Security-Policy"] = sandbox
	return status, off, length, nil
}

// noNAR returns the error of a look-up of a NAR, with a text for the client if it was not found.
func (x *exchange) noNAR(archive cache.Archive, err error) error {
	if errors.Is(err, cache.ErrNotFound) {
		return x.missing("no such NAR of a store path with hash " + archive.Path.String() + " here")
	}
	return err
}

// hasHash reports whether a query has a path hash, as in URLs of harmonia.
func hasHash(query string) bool {
	if query == "" {
		return false
	}
	values, err := url.ParseQuery(query)
	return err != nil || values.Has("hash")
}

// parseNARName parses the name of a NAR without its suffix, and returns the tag of the compressed
// NAR, "" if the name has none.
func parseNARName(name, query string) (a cache.Archive, tag string, ok bool) {
	const bothLen = pathHashLen + len("-") + narHashLen
	var path, contents string
	switch n := len(name); {
	case n == bothLen, n > bothLen+1 && name[bothLen] == '-':
		if n > bothLen {
			name, tag = name[:bothLen], name[bothLen+1:]
		}
		path, contents, _ = strings.Cut(name, "-")
	case n == narHashLen:
		values, err := url.ParseQuery(query)
		if err != nil {
			return a, "", false
		}
		path, contents = values.Get("hash"), name
	case n == pathHashLen:
		path = name
	}
	hash, err := nix.ParsePathHash(path)
	if err != nil {
		return a, "", false
	}
	a.Path = hash
	if path == name {
		return a, "", true
	}
	a.NARHash, err = nix.ParseHashOf(nix.SHA256, contents)
	return a, tag, err == nil && len(contents) == narHashLen
}
