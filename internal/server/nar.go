package server

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"firn/internal/cache"
	"firn/nix"
)

// Lengths of the hashes in names, in digits of base 32.
const (
	pathHashLen = 32
	narHashLen  = 52
)

// serveNAR answers with the NAR of a store path, or a range of it, under any of the names in use:
//
//	nar/<path hash>-<NAR hash>.nar         ours, and of newer nix-serves
//	nar/<NAR hash>.nar?hash=<path hash>    of harmonia
//	nar/<path hash>.nar                    of older nix-serves
//
// Clients remember these for a month, also those of the server that was here before.
// With .zst at its end, each stands for the compressed NAR.
//
// A HEAD request is answered like a GET, also with a Range, but has nothing compressed.
func (s *Server) serveNAR(x *exchange, compression nix.Compression) error {
	archive, ok := parseNARName(x.target.name, x.r.URL.RawQuery)
	if !ok {
		return s.missing("this is not the name of a NAR here")
	}
	archive.Compression = compression
	if x.isHead() {
		info, size, known, err := s.cache.StatNAR(x.r.Context(), archive)
		if err != nil {
			return s.noNAR(archive, err)
		}
		if !known {
			size = -1
		}
		status, _, _, err := s.beginNAR(x, archive, info, size)
		if err == nil {
			x.begin(status)
		}
		return err
	}

	n, info, err := s.cache.OpenNAR(x.r.Context(), archive)
	if err != nil {
		return s.noNAR(archive, err)
	}
	defer n.Close()
	if making, ok := n.(cache.Unfinished); ok && n.Size() < 0 && x.r.Header["Range"] != nil {
		// Whoever resumes a download has its first bytes, and has to get the others from where it left off.
		// Where the file cannot be kept, the whole is still a right answer.
		if err := making.Wait(x.r.Context()); err != nil && x.r.Context().Err() != nil {
			return err
		}
	}
	status, off, length, err := s.beginNAR(x, archive, info, n.Size())
	if err != nil {
		return err
	}
	if status == http.StatusNotModified {
		x.begin(status)
		return nil
	}
	err = n.WriteRange(x.r.Context(), &body{x: x, status: status}, off, length)
	if err == nil && length >= 0 && x.sent != length {
		err = fmt.Errorf("write NAR of %s: %d bytes of %d", info.Path, x.sent, length)
	}
	return err
}

// beginNAR sets the header of the answer to a request for an archive of the given size, -1 if that is not known yet,
// and returns what is to be sent: length is -1 for all there will be.
func (s *Server) beginNAR(x *exchange, archive cache.Archive, info cache.ArchiveInfo, size int64) (status int, off, length int64, err error) {
	tag := `"` + info.Tag + `"`
	h := x.w.Header()
	h["ETag"] = []string{tag}
	h["Accept-Ranges"] = byteRanges
	h["Cache-Control"] = cacheForever
	if archive.NARHash.IsZero() {
		h["Cache-Control"] = cacheShort // the path may come back with other bytes
	}
	unchanged, err := precondition(x.r.Header, tag)
	if err != nil {
		return 0, 0, 0, err
	}
	if unchanged {
		return http.StatusNotModified, 0, 0, nil
	}

	status, length = http.StatusOK, size
	if size >= 0 {
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
		x.setLength(h, length)
	}
	h["Content-Type"] = typeNAR
	h["X-Content-Type-Options"] = noSniff
	h["Content-Security-Policy"] = sandbox
	return status, off, length, nil
}

// noNAR says what was not found.
func (s *Server) noNAR(archive cache.Archive, err error) error {
	if errors.Is(err, cache.ErrNotFound) {
		return s.missing("no such NAR of a store path with hash " + archive.Path.String() + " here")
	}
	return err
}

// parseNARName parses the name of a NAR without its suffix.
func parseNARName(name, query string) (a cache.Archive, ok bool) {
	var path, contents string
	switch len(name) {
	case pathHashLen + len("-") + narHashLen:
		path, contents, _ = strings.Cut(name, "-")
	case narHashLen:
		values, err := url.ParseQuery(query)
		if err != nil {
			return a, false
		}
		path, contents = values.Get("hash"), name
	case pathHashLen:
		path = name
	}
	hash, err := nix.ParsePathHash(path)
	if err != nil {
		return a, false
	}
	a.Path = hash
	if path == name {
		return a, true
	}
	a.NARHash, err = nix.ParseHashOf(nix.SHA256, contents)
	return a, err == nil && len(contents) == narHashLen
}
