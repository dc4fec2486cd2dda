// Package decompress decompresses uploads in bounded memory, and wraps NARs in xz files without
// compressing them.
//
//	limits := decompress.NewLimits(decompress.Options{}) // one for the whole server
//	plain, err := decompress.Decode(ctx, nix.XZ, request.Body, limits)
//	…
//	n = decompress.WrapXZ(n) // the answer to GET nar/….nar.xz
package decompress

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"

	"github.com/klauspost/compress/gzip"

	"firn/internal/cache"
	"firn/internal/fairlimit"
	"firn/nix"
)

// Memory is how many bytes the windows and dictionaries of all decoders of a program may take
// together: four of the largest, so that an owner's half leaves room for one of another owner, see
// [fairlimit.NewMemory]; or 64 of `xz -6`, which Nix makes where it is not told otherwise, of which a
// server decodes 32 at once.
const Memory = 4 * maxDecoder

const (
	// maxDecoder bounds, in bytes, what one decoder may take: `zstd --long=27`, or `zstd --ultra
	// -22`, the most that zstd itself decodes without being told to; `xz -9` takes half of it.
	maxDecoder = 128 << 20

	// defaultRatio is more than gzip reaches on zeros (1030) only by that little.
	// NARs of Debian packages stay under 30; the most repetitive log of a gigabyte, under 300.
	defaultRatio = 1000

	// defaultFree lets everything through that is harmless: a small file of zeros compresses to
	// nothing.
	defaultFree = 1 << 30

	// inputBuffer is the size in bytes of the buffer before a decoder. Block headers of xz are up to 1 KiB.
	inputBuffer = 32 << 10
)

// Options of Limits.
type Options struct {
	// Lend lends the bytes that a decoder takes for its window or dictionary, until done is called.
	// It may wait for them. If it fails, so does the reading.
	// Each decoder takes up to 1 MiB more, for which it does not ask.
	// If Lend is nil, the decoders share as many bytes as Memory, and wait for each other.
	Lend func(ctx context.Context, bytes int64) (done func(), err error)

	// Most bounds, in bytes, what one decoder may ask for, 128 MiB if zero.
	Most int64

	// Ratio is how many bytes one byte may decompress to, 1000 if zero; Free, how many bytes a stream may give
	// before that counts, 1 GiB if zero.
	Ratio, Free int64
}

// Limits bounds all decoders that share it. It is safe for concurrent use.
type Limits struct {
	lend        func(ctx context.Context, bytes int64) (done func(), err error)
	most        int64 // of one decoder
	ratio, free int64
}

// NewLimits returns the limits that opts say.
func NewLimits(opts Options) *Limits {
	if opts.Lend == nil {
		memory := fairlimit.NewMemory(Memory)
		opts.Lend = func(ctx context.Context, bytes int64) (func(), error) { return memory.TakeN(ctx, int(bytes)) }
	}
	return &Limits{
		lend:  opts.Lend,
		most:  cmp.Or(opts.Most, maxDecoder),
		ratio: cmp.Or(opts.Ratio, defaultRatio),
		free:  cmp.Or(opts.Free, defaultFree),
	}
}

// Decode returns the uncompressed bytes of r. Bytes after the end of the compressed data are an error, and
// so is an early end. Several streams of a format one after another count as one, as for the programs of
// these formats. ErrInvalid if the compression is unknown.
//
// Reading fails with ErrInvalid if r is not of that compression, and with ErrTooLarge if it exceeds l, both
// with a text for the client. It also fails with the errors of r and of the wait for memory, which ctx
// ends. The caller closes the result, which does not close r. No two goroutines may use it at once.
func Decode(ctx context.Context, c nix.Compression, r io.Reader, l *Limits) (io.ReadCloser, error) {
	if c == nix.None || c == "" {
		return io.NopCloser(r), nil
	}
	f, ok := formats[string(c)]
	if !ok {
		return nil, cache.Refuse(cache.ErrInvalid, "this server cannot decompress %q; it can: none, br, bzip2, gzip, lz4, lzip, lzma, xz, zstd", c)
	}
	return newStream(ctx, string(c), f, r, l), nil
}

// DecodeEncoding is Decode for the value of a Content-Encoding, which may be empty. It knows the names of
// HTTP and those of Nix.
func DecodeEncoding(ctx context.Context, encoding string, r io.Reader, l *Limits) (io.ReadCloser, error) {
	name := strings.ToLower(strings.TrimSpace(encoding))
	switch name {
	case "identity":
		name = ""
	case "x-gzip":
		name = "gzip"
	case "deflate":
		return newStream(ctx, name, deflate, r, l), nil
	}
	plain, err := Decode(ctx, nix.Compression(name), r, l)
	if err != nil {
		return nil, cache.Refuse(cache.ErrInvalid, "this server cannot decode Content-Encoding: %q", encoding)
	}
	return plain, nil
}

// A format opens the next part of a stream: all of it, or up to where more memory is needed. It reserves
// the memory of the part before it takes any. If it returns io.EOF, the stream ends too early. The reader
// that it returns ends with io.EOF where the part does. When bytes are left then, the format is called
// again; a stream consists of parts only.
type format func(s *stream) (io.Reader, error)

// formats has the formats by their names in Nix. For the others that Nix knows (compress, grzip, lrzip,
// lzop) there is no maintained decoder in Go, and they have no users.
var formats = map[string]format{
	string(nix.Brotli): brotliFormat,
	string(nix.Bzip2):  bzip2Format,
	string(nix.Gzip):   gzipFormat,
	string(nix.LZ4):    lz4Format,
	string(nix.Lzip):   lzipFormat,
	string(nix.LZMA):   lzmaFormat,
	string(nix.XZ):     xzFormat,
	string(nix.Zstd):   zstdFormat,
}

// stream is the io.ReadCloser that Decode returns.
type stream struct {
	ctx    context.Context // for as long as the stream lives
	name   string
	open   format
	limits *Limits

	source source
	in     *bufio.Reader // of source
	frames *frames       // of formats that are walked; else nil
	gzip   *gzip.Reader  // of all parts of gzip; else nil

	part   io.Reader // nil before the first one and between two
	opened int       // parts
	held   int64     // bytes of memory
	done   func()    // gives these back; nil if there are none
	unlent error     // why there is no memory
	taken  int64     // bytes of memory of all parts so far
	out    int64     // bytes given
	err    error     // what Read fails with from now on
}

func newStream(ctx context.Context, name string, open format, r io.Reader, l *Limits) *stream {
	s := &stream{ctx: ctx, name: name, open: open, limits: l, source: source{r: r}}
	s.in = bufio.NewReaderSize(&s.source, inputBuffer)
	return s
}

func (s *stream) Read(p []byte) (n int, err error) {
	if s.err != nil || len(p) == 0 {
		return 0, s.err
	}
	n, err = s.read(p)
	s.out += int64(n)
	switch {
	case err == io.EOF:
	case err != nil:
		err = s.explain(err)
	case s.out > s.limits.free && s.out/s.limits.ratio > s.source.n:
		err = cache.Refuse(cache.ErrTooLarge,
			"the %s data decompresses to more than %d times its size, which only something made to do harm does", s.name, s.limits.ratio)
	}
	if err != nil {
		s.err = err
		s.release()
	}
	return n, err
}

// read reads from the parts one after another.
func (s *stream) read(p []byte) (n int, err error) {
	// Decoders do not check everything in hostile bytes. When one panics with an index out of range,
	// that must end the upload and not the server.
	defer func() {
		if r := recover(); r != nil {
			e, ok := r.(runtime.Error)
			if !ok {
				panic(r)
			}
			err = fmt.Errorf("%w: %w", errPanic, e)
		}
	}()
	for range maxEmptyReads {
		if s.part == nil {
			if s.part, err = s.open(s); err != nil {
				return 0, early(err)
			}
			s.opened++
		}
		n, err = s.part.Read(p)
		if err == io.EOF {
			if err = s.end(); err == nil && n == 0 {
				continue
			}
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
	return 0, io.ErrNoProgress
}

// maxEmptyReads bounds how many parts without any bytes there may be in a row.
const maxEmptyReads = 1000

// errTrailing is of formats that have one part only.
var errTrailing = errors.New("there is more after its end")

// errPanic is of a decoder that the data confused.
var errPanic = errors.New("the decoder failed")

// end ends a part: io.EOF if it was the last.
func (s *stream) end() error {
	s.part = nil
	if s.frames != nil {
		return s.frames.end()
	}
	_, err := s.in.Peek(1)
	return err
}

// reserve reserves n bytes of memory in place of those reserved before, which must not be in use any more.
//
// Memory that each part takes again has to be cleared, and collected. So the memory of earlier parts counts
// like decompressed bytes once it is more than one decoder may take. Else a few bytes for each of many parts
// would cost as much as megabytes.
func (s *stream) reserve(n int64) error {
	if n > s.limits.most {
		return cache.Refuse(cache.ErrTooLarge, "to decompress the %s data takes %s of memory, and this server allows %s: compress it at a lower level",
			s.name, mebibytes(n), mebibytes(s.limits.most))
	}
	if s.taken > s.limits.most && s.taken/s.limits.ratio > s.source.n {
		return cache.Refuse(cache.ErrTooLarge,
			"the %s data has many small parts, each of which takes much memory to decompress: compress it in one part, or at a lower level", s.name)
	}
	s.taken += n
	if n <= s.held {
		return nil
	}
	// A stream that waits for memory must not hold any: two such streams would wait for each other.
	s.release()
	s.done, s.unlent = s.limits.lend(s.ctx, n)
	if s.unlent == nil {
		s.held = n
	}
	return s.unlent
}

func mebibytes(n int64) string { return fmt.Sprintf("%d MiB", (n+1<<20-1)>>20) }

func (s *stream) release() {
	s.part = nil
	if s.done != nil {
		s.done()
		s.done, s.held = nil, 0
	}
}

func (s *stream) Close() error {
	if s.err == nil {
		s.err = fmt.Errorf("read %s data: %w", s.name, io.ErrClosedPipe)
	}
	s.release()
	return nil
}

// explain returns the error for the client: what is wrong with its data, if anything is.
func (s *stream) explain(err error) error {
	refusal, refused := errors.AsType[*cache.Refusal](err)
	switch {
	case s.source.err != nil:
		return fmt.Errorf("read %s data: %w", s.name, s.source.err)
	case refused:
		return refusal
	case s.unlent != nil:
		return fmt.Errorf("wait for memory to decompress: %w", s.unlent)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return cache.Refuse(cache.ErrInvalid, "the %s data ends early", s.name)
	}
	return cache.Refuse(cache.ErrInvalid, "the %s data is damaged: %v", s.name, err)
}

// early turns an end that comes too early into io.ErrUnexpectedEOF.
func early(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// source counts the bytes read, and remembers the error of reading, which decoders do not always pass on.
type source struct {
	r   io.Reader
	n   int64
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n += int64(n)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}
