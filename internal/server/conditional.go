package server

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
)

var (
	errRange        = errors.New("range not satisfiable")
	errPrecondition = errors.New("precondition failed")
)

// parseRange returns which bytes of a body of the given size a Range header asks for (RFC 9110, 14.1.2).
// ok is false if the header is to be ignored: it is malformed, not of bytes, or of several ranges, for
// which the whole is a right answer, and the only one that costs the server no more than the client.
// errRange if the range begins after the end.
func parseRange(header string, size int64) (off, n int64, ok bool, err error) {
	unit, spec, _ := strings.Cut(header, "=")
	if !strings.EqualFold(unit, "bytes") {
		return 0, 0, false, nil
	}
	first, last, dash := strings.Cut(strings.Trim(spec, " \t"), "-")
	if !dash {
		return 0, 0, false, nil
	}
	if first == "" {
		n, ok := parseDigits(last)
		if ok && n == 0 {
			return 0, 0, true, errRange
		}
		n = min(n, size)
		return size - n, n, ok, nil
	}
	off, ok = parseDigits(first)
	if !ok {
		return 0, 0, false, nil
	}
	end := size - 1
	if last != "" {
		if end, ok = parseDigits(last); !ok || end < off {
			return 0, 0, false, nil
		}
		end = min(end, size-1)
	}
	if off >= size {
		return 0, 0, true, errRange
	}
	return off, end - off + 1, true, nil
}

// parseDigits parses digits and nothing else. A number that is too large counts as the largest.
func parseDigits(s string) (int64, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, _ := strconv.ParseInt(s, 10, 64) // on overflow MaxInt64, and nothing else is left to go wrong
	return n, true
}

// matches reports whether a list of entity tags has the strong tag, or is "*". With weak, the weak form of
// the tag matches too.
func matches(list []string, tag string, weak bool) bool {
	for _, line := range list {
		for line != "" {
			var one string
			one, line, _ = strings.Cut(line, ",") // none of our tags has a comma
			one = strings.Trim(one, " \t")
			if weak {
				one = strings.TrimPrefix(one, "W/")
			}
			if one == tag && tag != "" || one == "*" {
				return true
			}
		}
	}
	return false
}

// precondition evaluates If-Match and If-None-Match. The empty tag matches only "*". There is no date to
// compare with, so the headers that have one do not count.
func precondition(h http.Header, tag string) (unchanged bool, err error) {
	if list := h["If-Match"]; list != nil && !matches(list, tag, false) {
		return false, errPrecondition
	}
	return matches(h["If-None-Match"], tag, true), nil
}

// rangeOf evaluates Range and If-Range against a body of the given size.
func rangeOf(h http.Header, tag string, size int64) (off, n int64, partial bool, err error) {
	asked := h["Range"]
	if len(asked) != 1 {
		return 0, size, false, nil
	}
	if since := h["If-Range"]; since != nil && (len(since) != 1 || since[0] != tag || tag == "") {
		return 0, size, false, nil
	}
	off, n, partial, err = parseRange(asked[0], size)
	if !partial {
		return 0, size, false, nil
	}
	return off, n, true, err
}
