package doctor

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
)

// checkRanges asks for a part from the middle of the NAR, as clients do whose download broke off.
func (e *examination) checkRanges(ctx context.Context) Finding {
	if e.narURL == nil {
		return skip("the NAR is on another host")
	}
	whole := e.head
	size := int64(-1)
	var window []byte
	if d := e.nar; d != nil && d.err == nil {
		whole, size = &d.answer, d.file.size
		window = d.file.window
	} else if whole != nil && whole.is(http.StatusOK) {
		size = whole.length
	}
	if size < 2 {
		return skip("the size of the NAR is not known")
	}
	from, to := middle(size)
	if int64(len(window)) != to-from {
		window = nil // its place was not known before it was read
	}
	q := request{url: e.narURL, bytes: fmt.Sprintf("%d-%d", from, to-1)}
	a, err := e.small(ctx, q, windowSize)
	if err != nil {
		return fail(fmt.Sprintf("a range of the NAR is not answered: %v", err), rangeAdvice)
	}
	advertised := strings.EqualFold(whole.header.Get("Accept-Ranges"), "bytes")
	want := fmt.Sprintf("bytes %d-%d/%d", from, to-1, size)
	got := a.header.Get("Content-Range")
	switch {
	case a.is(http.StatusOK) && advertised:
		return fail("the server says that it has ranges, and answers one with the whole NAR: clients that resume get it damaged", rangeAdvice)
	case !a.is(http.StatusPartialContent) && advertised:
		return fail("the server says that it has ranges, and answers one with "+status(a.status), rangeAdvice)
	case !a.is(http.StatusPartialContent):
		return warn(fmt.Sprintf("there are none (%s), so a download that breaks off begins again", status(a.status)), rangeAdvice)
	case a.header.Get("Content-Encoding") != "":
		return fail("a range is compressed on its way, as "+shown(a.header.Get("Content-Encoding")), rangeAdvice)
	case got != want && !strings.HasPrefix(got, strings.TrimSuffix(want, fmt.Sprint(size))+"*"):
		return fail(fmt.Sprintf("asked for %s, the server says %s", want, shown(got)), rangeAdvice)
	case a.over || int64(len(a.body)) != to-from:
		return fail(fmt.Sprintf("a range of %d bytes has %d", to-from, len(a.body)), rangeAdvice)
	case window != nil && !bytes.Equal(window, a.body):
		return fail("the bytes of a range are not those of the whole", "the bytes at a URL must never change, and not differ between servers of one name: clients that resume get them mixed")
	case !advertised:
		return warn("there are ranges, but the server does not say so with Accept-Ranges: bytes, and clients do not ask", "have the server, and the proxy before it, send that header")
	case window == nil:
		return ok("206 with what was asked for; the NAR was not read to compare")
	}
	return ok("206 with what was asked for, the same bytes as in the whole")
}

const rangeAdvice = "clients resume a download that broke off by asking for the rest of it: have the server, and the proxy before it, answer ranges of NARs with 206"
