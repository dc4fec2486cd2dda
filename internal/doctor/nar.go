package doctor

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"firn/internal/cache"
	"firn/internal/decompress"
	"firn/nix"
	"firn/nix/nar"
)

// windowSize is how much of a NAR is asked for twice, in bytes.
const windowSize = 64 << 10

// A download is what came of reading a NAR.
type download struct {
	answer
	file      meter // the compressed NAR
	nar       meter // the NAR
	err       error // of reading the file
	plainErr  error // of decompressing it
	formatErr error // of the NAR
	start     []byte
}

// A meter counts and hashes what is read through it, and keeps a window of that.
type meter struct {
	r        io.Reader
	size     int64
	sum      hash.Hash
	from, to int64 // of the window
	window   []byte
	err      error // of r, other than its end
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.sum.Write(p[:n])
	if low, high := max(m.from, m.size), min(m.to, m.size+int64(n)); low < high {
		m.window = append(m.window, p[low-m.size:high-m.size]...)
	}
	m.size += int64(n)
	if err != nil && err != io.EOF {
		m.err = err
	}
	return n, err
}

// hash returns the hash of all that was read.
func (m *meter) hash() nix.Hash { return nix.SHA256Sum([sha256.Size]byte(m.sum.Sum(nil))) }

// checkNAR reads the NAR, once, and compares the file with what the narinfo says of it.
func (e *examination) checkNAR(ctx context.Context) Finding {
	if e.narURL == nil {
		return skip("it is on another host")
	}
	if e.opts.MaxSize < 0 {
		return skip("as you wish")
	}
	if large := max(e.narInfo.FileSize, e.narInfo.NARSize); large > e.opts.MaxSize {
		return skip("it has %s, and no more than %s are read: choose another path, or allow more with --max-size", bytesOf(large), bytesOf(e.opts.MaxSize))
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	res, err := e.client.do(ctx, request{url: e.narURL})
	if err != nil {
		return fail(fmt.Sprintf("the NAR cannot be had: %v", why(ctx, err)), "look at the logs of the server")
	}
	defer res.Body.Close()
	d := &download{answer: *newAnswer(request{url: e.narURL}, res)}
	if !d.is(http.StatusOK) {
		d.body, _ = io.ReadAll(io.LimitReader(res.Body, maxPage)) // what is missing of it is not said
		return fail("the narinfo is there, and its NAR is "+d.refused(), "the file was removed or never came; push the path again, or have the server forget its narinfo")
	}
	e.nar = d
	e.read(ctx, d, &patient{res.Body, func() { cancel(errSlow) }, e.opts.Patience})
	info := e.narInfo
	var complaints []Finding
	if d.err != nil {
		complaints = append(complaints, fail(fmt.Sprintf("it breaks off after %d bytes: %v", d.file.size, why(ctx, d.err)), "look at the logs of the server, and at the timeouts of the proxy before it"))
	} else {
		if d.length < 0 && d.header.Get("Content-Encoding") == "" {
			complaints = append(complaints, warn("it comes without Content-Length, so clients can show no progress, and not resume", "look at the proxy before the server: it should not rewrite NARs"))
		}
		if info.FileSize != 0 && info.FileSize != d.file.size {
			complaints = append(complaints, warn(fmt.Sprintf("the file has %d bytes, and the narinfo says %d", d.file.size, info.FileSize), "Nix does not look at that, but others do"))
		} else if info.FileHash.Algorithm() == nix.SHA256 && info.FileHash != d.file.hash() {
			complaints = append(complaints, warn(fmt.Sprintf("the hash of the file is %s, and the narinfo says %s", d.file.hash(), info.FileHash), "Nix does not look at that, but others do"))
		}
		if e.head != nil && e.head.is(http.StatusOK) && differ(e.head, &d.answer) {
			complaints = append(complaints, fail(fmt.Sprintf("its HEAD says %d bytes, and it has %d", e.head.length, d.length), "have the server, and the proxy before it, answer HEAD as GET, without the body"))
		}
	}
	return worst(ok("%s came, whole", bytesOf(d.file.size)), complaints)
}

// read reads a NAR to its end.
func (e *examination) read(ctx context.Context, d *download, body io.Reader) {
	size := cmp.Or(max(d.length, 0), e.narInfo.FileSize)
	if d.header.Get("Content-Encoding") != "" {
		size = e.narInfo.FileSize
	}
	d.file.from, d.file.to = middle(size)
	d.file.sum, d.nar.sum = sha256.New(), sha256.New()
	raw := &bounded{r: body, left: e.opts.MaxSize}
	file, err := decompress.DecodeEncoding(ctx, d.header.Get("Content-Encoding"), raw, e.limits)
	if err != nil {
		d.err = err
		return
	}
	defer file.Close()
	d.file.r = io.TeeReader(file, &prefix{&d.start})
	defer func() {
		// What decoding left, so that the file is known as a whole.
		if _, err := io.Copy(io.Discard, &d.file); err != nil || d.file.err != nil {
			d.err = cmp.Or(d.file.err, err)
		}
		if raw.err != nil {
			d.err = raw.err
		}
	}()
	plain, err := decompress.Decode(ctx, e.narInfo.Compression, &d.file, e.limits)
	if err != nil {
		d.plainErr = err
		return
	}
	defer plain.Close()
	d.nar.r = &bounded{r: plain, left: e.opts.MaxSize}
	r := nar.NewReader(&d.nar)
	for err == nil {
		_, err = r.Next()
	}
	if err == io.EOF {
		err = r.CheckEnd()
	}
	if d.nar.err != nil {
		d.plainErr = d.nar.err
		return
	}
	d.formatErr = err
	if _, err := io.Copy(io.Discard, &d.nar); err != nil {
		d.plainErr = err
	}
}

// middle is the part of a file of a given size that is asked for twice.
func middle(size int64) (from, to int64) {
	from = size / 2
	return from, min(size, from+windowSize)
}

// A prefix keeps the first bytes.
type prefix struct{ to *[]byte }

func (p *prefix) Write(b []byte) (int, error) {
	if room := 64 - len(*p.to); room > 0 {
		*p.to = append(*p.to, b[:min(room, len(b))]...)
	}
	return len(b), nil
}

// bounded ends with an error what is longer than it may be.
type bounded struct {
	r    io.Reader
	left int64
	err  error // of r, other than its end
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		err = fmt.Errorf("%w: it is longer than --max-size allows", cache.ErrTooLarge)
	}
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

// patient gives up when nothing comes for too long.
type patient struct {
	r      io.Reader
	giveUp func()
	time   time.Duration
}

func (p *patient) Read(b []byte) (int, error) {
	timer := time.AfterFunc(p.time, p.giveUp)
	defer timer.Stop()
	return p.r.Read(b)
}

// checkNAREncoding looks for what a proxy did to the NAR on its way.
func (e *examination) checkNAREncoding(context.Context) Finding {
	encoding := e.nar.header.Get("Content-Encoding")
	resumable := strings.EqualFold(e.nar.header.Get("Accept-Ranges"), "bytes")
	const advice = "keep whatever compresses on its way from NARs: gzip off in nginx, for nar/ at least"
	switch {
	case encoding == "":
		return ok("the NAR comes as it is, with no Content-Encoding")
	case resumable:
		return fail("the NAR is compressed on its way, as "+shown(encoding)+", and said to be had in ranges: clients that resume get it damaged", advice)
	case e.narInfo.Compression != nix.None:
		return fail("the NAR, compressed already, is compressed once more on its way, as "+shown(encoding)+": Nix 2.4 to 2.21 cannot read that, and no client can resume", advice)
	}
	return warn("the NAR is compressed on its way, as "+shown(encoding)+", so clients cannot resume", advice)
}

// checkCompression compares the compression that is declared with the one that is delivered.
func (e *examination) checkCompression(context.Context) Finding {
	declared := e.narInfo.Compression
	delivered := sniff(e.nar.start)
	switch {
	case e.nar.err != nil:
		return skip("the NAR was not read to its end")
	case slices.Contains([]nix.Compression{nix.Compress, nix.Grzip, nix.Lrzip, nix.Lzop}, declared):
		return skip("this program cannot decompress %s; Nix can, where its libarchive does", declared)
	case delivered != "" && nix.Compression(delivered) != declared:
		return fail(fmt.Sprintf("the narinfo says %s, and the file is %s", declared, delivered), "Nix since 2.22 takes the narinfo at its word, and cannot read that: have it say what the file is")
	case e.nar.plainErr != nil:
		return fail(fmt.Sprintf("the file cannot be decompressed: %v", e.nar.plainErr), "the file is damaged: have it made or pushed again")
	}
	return ok("%s, as the narinfo says", declared)
}

// sniff tells what a file is by its first bytes; "" if that is not clear.
func sniff(start []byte) string {
	for _, m := range []struct {
		magic string
		is    nix.Compression
	}{
		{"\xfd7zXZ\x00", nix.XZ}, {"\x28\xb5\x2f\xfd", nix.Zstd}, {"\x1f\x8b", nix.Gzip}, {"BZh", nix.Bzip2},
		{"\x04\x22\x4d\x18", nix.LZ4}, {"LZIP", nix.Lzip}, {"\x0d\x00\x00\x00\x00\x00\x00\x00nix-archive-1", nix.None},
		{"<", "a web page"},
	} {
		if bytes.HasPrefix(start, []byte(m.magic)) {
			return string(m.is)
		}
	}
	return ""
}

// checkNARHash compares the NAR with what was signed.
func (e *examination) checkNARHash(context.Context) Finding {
	d, info := e.nar, e.narInfo
	const advice = "clients refuse it after they have read all of it: have the path made or pushed again, and see why the server sends what it did not check"
	switch {
	case d.err != nil || d.plainErr != nil:
		return skip("the NAR was not read to its end")
	case d.formatErr != nil:
		if _, is := errors.AsType[*nar.FormatError](d.formatErr); is || errors.Is(d.formatErr, io.ErrUnexpectedEOF) {
			return fail(fmt.Sprintf("it is no NAR as Nix makes them: %v", d.formatErr), advice)
		}
		return fail(fmt.Sprintf("it cannot be read: %v", d.formatErr), advice)
	case d.nar.size != info.NARSize:
		return fail(fmt.Sprintf("the NAR has %d bytes, and the narinfo says %d", d.nar.size, info.NARSize), advice)
	case info.NARHash.Algorithm() != nix.SHA256:
		return warn("the NarHash is not one of SHA-256, which was not compared", "Nix takes SHA-256 only")
	case d.nar.hash() != info.NARHash:
		return fail(fmt.Sprintf("the hash of the NAR is %s, and the narinfo says %s", d.nar.hash(), info.NARHash), advice)
	}
	return ok("NAR hash and NAR size are those of the narinfo")
}
