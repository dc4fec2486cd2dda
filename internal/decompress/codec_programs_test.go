//go:build programs

package decompress

import (
	"bytes"
	"compress/zlib"
	"context"
	"errors"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"firn/internal/cache"
	"firn/internal/fairlimit"
	"firn/nix"
)

// heavy have the largest windows there are.
var heavy = []command{{nix.XZ, "xz -9"}, {nix.Zstd, "zstd --ultra -22"}, {nix.Zstd, "zstd --long=27"}}

// wantAll fails unless data decodes to want, and all memory is free afterwards.
func wantAll(t *testing.T, c nix.Compression, data, want []byte) {
	t.Helper()
	l := newLender(Options{})
	got, err := decode(c, bytes.NewReader(data), l.Limits)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("got %d bytes that are others than the %d", len(got), len(want))
	}
	l.wantFree(t)
}

func TestDecode(t *testing.T) {
	plain := sample(1 << 20)
	for _, c := range commands {
		t.Run(c.command, func(t *testing.T) {
			t.Parallel()
			data := c.run(t, plain)
			wantAll(t, c.c, data, plain)

			l := NewLimits(Options{})
			got, err := decode(c.c, iotest.HalfReader(bytes.NewReader(data)), l)
			if err != nil || !bytes.Equal(got, plain) {
				t.Errorf("in small pieces: %d bytes, %v", len(got), err)
			}
			wantAll(t, c.c, c.run(t, nil), nil)
			wantAll(t, c.c, c.run(t, plain[:1]), plain[:1])
		})
	}
	wantAll(t, nix.None, plain, plain)
	wantAll(t, "", plain, plain)
}

// Several streams one after another are one, where the programs take them so.
func TestDecodeSeveral(t *testing.T) {
	plain := sample(1 << 20)
	for _, c := range commands {
		t.Run(c.command, func(t *testing.T) {
			t.Parallel()
			data := bytes.Join([][]byte{c.run(t, plain[:1000]), c.run(t, nil), c.run(t, plain[1000:])}, nil)
			if c.c == nix.LZMA || c.c == nix.Brotli {
				_, err := decode(c.c, bytes.NewReader(data), NewLimits(Options{}))
				wantRefused(t, err, cache.ErrInvalid, "damaged")
				return
			}
			wantAll(t, c.c, data, plain)
		})
	}
	skipped := []byte("\x5a\x2a\x4d\x18\x03\x00\x00\x00abc")
	for _, c := range []command{{nix.Zstd, "zstd"}, {nix.LZ4, "lz4"}} {
		data := c.run(t, plain)
		wantAll(t, c.c, bytes.Join([][]byte{skipped, data, skipped, skipped, data, skipped}, nil), append(plain, plain...))
		wantAll(t, c.c, skipped, nil)
	}
	// A later part may need more memory than the first one.
	big := sample(4 << 20)
	wantAll(t, nix.Zstd, append(run(t, big[:10], "zstd", "-1"), run(t, big[10:], "zstd", "-19", "--long=27")...), big)
	wantAll(t, nix.LZ4, append(run(t, big[:10], "lz4", "-B4"), run(t, big[10:], "lz4", "-B7")...), big)
	wantAll(t, nix.Lzip, append(run(t, big[:10], "lzip", "-0"), run(t, big[10:20], "lzip", "-6")...), big[:20])
	_, err := decode(nix.XZ, bytes.NewReader(append(run(t, big[:10], "xz", "-0"), run(t, big[:10], "xz", "-6")...)), NewLimits(Options{}))
	wantRefused(t, err, cache.ErrTooLarge, "larger dictionary")
	// Padding between and after streams of xz is of four bytes, or multiples.
	data := run(t, big[:10], "xz")
	pad := make([]byte, 8)
	wantAll(t, nix.XZ, bytes.Join([][]byte{data, pad, data, pad}, nil), append(big[:10:10], big[:10]...))
	_, err = decode(nix.XZ, bytes.NewReader(append(data, pad[:3]...)), NewLimits(Options{}))
	wantRefused(t, err, cache.ErrInvalid, "damaged")
}

func TestTruncated(t *testing.T) {
	plain := sample(30_000)
	for _, c := range commands {
		t.Run(c.command, func(t *testing.T) {
			t.Parallel()
			data := c.run(t, plain)
			l := newLender(Options{})
			step := 1
			for n := 0; n < len(data); n += step {
				if step = len(data) / 50; n < 40 || n > len(data)-40 {
					step = 1
				}
				_, err := decode(c.c, bytes.NewReader(data[:n]), l.Limits)
				wantRefused(t, err, cache.ErrInvalid, "")
				if t.Failed() {
					t.Fatalf("at %d of %d", n, len(data))
				}
			}
			l.wantFree(t)
		})
	}
}

func TestTrailing(t *testing.T) {
	plain := sample(30_000)
	for _, c := range commands {
		t.Run(c.command, func(t *testing.T) {
			t.Parallel()
			data := c.run(t, plain)
			for n := 1; n < 15; n++ {
				for _, b := range []string{"x", "\x01"} {
					more := append(data[:len(data):len(data)], strings.Repeat(b, n)...)
					_, err := decode(c.c, bytes.NewReader(more), NewLimits(Options{}))
					wantRefused(t, err, cache.ErrInvalid, "")
				}
			}
		})
	}
}

// No change of a byte may pass as other data: where there is no checksum, it shows in the NAR hash.
func TestDamaged(t *testing.T) {
	plain := sample(20_000)
	for _, c := range commands {
		t.Run(c.command, func(t *testing.T) {
			t.Parallel()
			data := c.run(t, plain)
			unchecked := c.c == nix.Brotli || c.c == nix.LZMA || strings.Contains(c.command, "no")
			l := newLender(Options{})
			wrong := 0
			for i := range len(data) {
				if i > 50 && i < len(data)-50 && i%(len(data)/50) != 0 {
					continue
				}
				bad := bytes.Clone(data)
				bad[i] ^= 0x11
				got, err := decode(c.c, bytes.NewReader(bad), l.Limits)
				if err != nil {
					wrong++
					if errors.Is(err, errPanic) || strings.Contains(err.Error(), errPanic.Error()) {
						t.Errorf("byte %d: %v", i, err)
					}
					continue
				}
				if !unchecked && !bytes.Equal(got, plain) {
					t.Errorf("byte %d: other data", i)
				}
			}
			if wrong == 0 {
				t.Error("nothing was refused")
			}
			l.wantFree(t)
		})
	}
}

func TestBombs(t *testing.T) {
	zeros := make([]byte, 24<<20)
	for _, c := range []command{{nix.XZ, "xz -1"}, {nix.Zstd, "zstd -1"}, {nix.Brotli, "brotli -c -q 5"}, {nix.Bzip2, "bzip2"}} {
		t.Run(string(c.c), func(t *testing.T) {
			t.Parallel()
			data := c.run(t, zeros)
			l := newLender(Options{Free: 8 << 20})
			got, err := decode(c.c, bytes.NewReader(data), l.Limits)
			wantRefused(t, err, cache.ErrTooLarge, "more than 1000 times")
			if len(got) > 16<<20 {
				t.Errorf("%d bytes came out before", len(got))
			}
			l.wantFree(t)
			got, err = decode(c.c, bytes.NewReader(data), NewLimits(Options{}))
			if err != nil || !bytes.Equal(got, zeros) {
				t.Errorf("small enough to be let through: %d bytes, %v", len(got), err)
			}
		})
	}
}

func TestTooMuchMemory(t *testing.T) {
	plain := sample(1 << 20)
	for _, c := range []command{
		{nix.XZ, "xz -9"}, {nix.XZ, "xz --lzma2=dict=1536MiB"}, {nix.XZ, "xz --x86 --lzma2=preset=9"},
		{nix.LZMA, "xz --format=lzma -9"}, {nix.Zstd, "zstd --long=31"}, {nix.Zstd, "zstd --long=27"},
	} {
		t.Run(c.command, func(t *testing.T) {
			l := NewLimits(Options{Most: 16 << 20})
			_, err := decode(c.c, bytes.NewReader(c.run(t, plain)), l)
			wantRefused(t, err, cache.ErrTooLarge, "of memory, and this server allows 16 MiB: compress it at a lower level")
		})
	}
	data := run(t, plain, "lzip")
	data[5] = 29
	_, err := decode(nix.Lzip, bytes.NewReader(data), NewLimits(Options{}))
	wantRefused(t, err, cache.ErrTooLarge, "takes 512 MiB of memory, and this server allows 128 MiB")
	_, err = decode(nix.Zstd, bytes.NewReader(run(t, plain, "zstd", "--long=31")), NewLimits(Options{}))
	wantRefused(t, err, cache.ErrTooLarge, "takes 2048 MiB of memory, and this server allows 128 MiB")
}

// What is reserved is what is taken, up to a little.
func TestMemory(t *testing.T) {
	const overhead = 1 << 20
	plain := sample(1 << 20)
	for _, c := range slices.Concat(commands, heavy) {
		if c.c == nix.LZMA || c.c == nix.Lzip || c.c == nix.LZ4 {
			continue // they leave garbage behind, which would count here
		}
		r, _ := Decode(t.Context(), c.c, bytes.NewReader(c.run(t, plain)), NewLimits(Options{}))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		var held int64
		for buffer := make([]byte, 64<<10); ; {
			_, err := r.Read(buffer)
			if err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			held = max(held, r.(*stream).held)
		}
		runtime.ReadMemStats(&after)
		if took := int64(after.TotalAlloc - before.TotalAlloc); took > held+overhead {
			t.Errorf("%s: took %d KiB and reserved %d", c.command, took>>10, held>>10)
		}
	}
}

// A decoder for which there is no memory waits, and fails as the wait does.
func TestWaitsForMemory(t *testing.T) {
	data := run(t, sample(1000), "xz", "-6") // 8 MiB
	synctest.Test(t, func(t *testing.T) {
		memory := fairlimit.New(20 << 20)
		l := NewLimits(Options{Lend: func(ctx context.Context, n int64) (func(), error) { return memory.TakeN(ctx, int(n)) }})
		var open []io.ReadCloser
		for range 2 {
			r, _ := Decode(t.Context(), nix.XZ, bytes.NewReader(data), l)
			if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
			open = append(open, r)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		failed := make(chan error)
		go func() {
			r, _ := Decode(ctx, nix.XZ, bytes.NewReader(data), l)
			_, err := r.Read(make([]byte, 10))
			failed <- err
		}()
		synctest.Wait()
		gone := errors.New("gone")
		cancel(gone)
		if err := <-failed; !errors.Is(err, gone) || errors.Is(err, cache.ErrInvalid) {
			t.Errorf("got %v", err)
		}

		done := make(chan error)
		go func() {
			_, err := decode(nix.XZ, bytes.NewReader(data), l)
			done <- err
		}()
		synctest.Wait()
		select {
		case <-done:
			t.Error("it did not wait")
		default:
		}
		open[0].Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
		// The memory is free as soon as the data has ended.
		if _, err := io.Copy(io.Discard, open[1]); err != nil {
			t.Error(err)
		}
		if _, ok := memory.TryTakeN(20 << 20); !ok {
			t.Error("memory is still lent")
		}
		open[1].Close()
	})
}

// Decoders without a lender share Memory.
func TestSharedMemory(t *testing.T) {
	l := NewLimits(Options{})
	if _, err := l.lend(t.Context(), Memory); err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Decode(gone, nix.Gzip, bytes.NewReader(run(t, nil, "gzip")), l); err != nil {
		t.Fatal(err)
	}
	r, _ := Decode(gone, nix.Gzip, bytes.NewReader(run(t, nil, "gzip")), l)
	if _, err := io.ReadAll(r); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// A few bytes for each of many parts do not buy as many dictionaries.
func TestManyParts(t *testing.T) {
	small := run(t, []byte("x"), "lzip")
	member := func(dictionary byte, n int) []byte {
		m := bytes.Clone(small)
		m[5] = dictionary
		return bytes.Repeat(m, n)
	}
	var growing []byte
	for window := range byte(17 << 3) { // from 1 KiB to 120 MiB, each with an empty last block
		growing = append(growing, 0x28, 0xb5, 0x2f, 0xfd, 0, window, 1, 0, 0)
	}
	for name, c := range map[string]struct {
		c    nix.Compression
		data []byte
	}{
		"lzip, 128 MiB":       {nix.Lzip, member(27, 1000)},
		"lzip, 8 MiB":         {nix.Lzip, member(23, 1000)},
		"zstd, larger frames": {nix.Zstd, growing},
	} {
		l := newLender(Options{})
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := decode(c.c, bytes.NewReader(c.data), l.Limits)
		runtime.ReadMemStats(&after)
		wantRefused(t, err, cache.ErrTooLarge, "many small parts")
		// Earlier parts took up to 128 MiB, and one more after that as much again.
		if took := after.TotalAlloc - before.TotalAlloc; took > 300<<20 {
			t.Errorf("%s: %d bytes took %d MiB", name, len(c.data), took>>20)
		}
		l.wantFree(t)
	}

	// What programs make is let through.
	plain := sample(2 << 20)
	var one bytes.Buffer
	for i := range 2000 {
		one.Write(small[:i%2*len(small)])
	}
	wantAll(t, nix.Lzip, member(23, 15), bytes.Repeat([]byte("x"), 15))
	wantAll(t, nix.Lzip, one.Bytes(), bytes.Repeat([]byte("x"), 1000))
	wantAll(t, nix.Lzip, run(t, plain, "lzip", "-9", "-b", "100KiB"), plain)
	wantAll(t, nix.Gzip, bytes.Repeat(run(t, []byte("x"), "gzip"), 20_000), bytes.Repeat([]byte("x"), 20_000))
}

func TestSourceFails(t *testing.T) {
	plain := sample(200_000)
	broken := errors.New("connection reset")
	for _, c := range one() {
		data := c.run(t, plain)
		for _, n := range []int{0, 1, 5, 20, len(data) / 2, len(data) - 1, len(data)} {
			r := io.MultiReader(bytes.NewReader(data[:n]), iotest.ErrReader(broken))
			if _, err := decode(c.c, r, NewLimits(Options{})); !errors.Is(err, broken) || errors.Is(err, cache.ErrInvalid) {
				t.Errorf("%s at %d: %v", c.command, n, err)
			}
		}
	}
}

func TestDecodeEncoding(t *testing.T) {
	plain := sample(5000)
	var b bytes.Buffer
	z := zlib.NewWriter(&b)
	z.Write(plain)
	z.Close()
	deflated := b.Bytes()
	gzipped := run(t, plain, "gzip")
	l := newLender(Options{})
	for _, c := range []struct {
		encoding string
		data     []byte
	}{
		{"", plain}, {"identity", plain}, {"gzip", gzipped}, {"x-gzip", gzipped}, {" GZIP ", gzipped},
		{"br", run(t, plain, "brotli", "-c")}, {"zstd", run(t, plain, "zstd")}, {"deflate", deflated},
		{"xz", run(t, plain, "xz")}, {"bzip2", run(t, plain, "bzip2")}, {"lzma", run(t, plain, "xz", "--format=lzma")},
	} {
		r, err := DecodeEncoding(t.Context(), c.encoding, bytes.NewReader(c.data), l.Limits)
		if err != nil {
			t.Errorf("%q: %v", c.encoding, err)
			continue
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%q: %d bytes, %v", c.encoding, len(got), err)
		}
		r.Close()
	}
	for _, encoding := range []string{"gzip, br", "aws-chunked", "compress"} {
		_, err := DecodeEncoding(t.Context(), encoding, strings.NewReader(""), l.Limits)
		wantRefused(t, err, cache.ErrInvalid, "cannot decode Content-Encoding: ")
	}
	r, _ := DecodeEncoding(t.Context(), "deflate", bytes.NewReader(append(deflated, deflated...)), l.Limits)
	_, err := io.ReadAll(r)
	wantRefused(t, err, cache.ErrInvalid, "more after its end")
	l.wantFree(t)
}

func TestClosed(t *testing.T) {
	l := newLender(Options{})
	r, _ := Decode(t.Context(), nix.XZ, bytes.NewReader(run(t, sample(1000), "xz")), l.Limits)
	if _, err := io.ReadFull(r, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.Read(make([]byte, 5)); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v", err)
	}
	l.wantFree(t)
}
