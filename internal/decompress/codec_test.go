package decompress

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"firn/internal/cache"
	"firn/nix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sample returns n bytes that compress somewhat, in runs of text, noise and zeros.
func sample(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	for b.Len() < n {
		switch r.IntN(4) {
		case 0:
			b.Write(make([]byte, r.IntN(5000)))
		case 1:
			for range r.IntN(500) {
				b.WriteByte(byte(r.Uint32()))
			}
		default:
			for range r.IntN(200) {
				fmt.Fprintf(&b, "/nix/store/%d-lib.so ", r.IntN(100))
			}
		}
	}
	return b.Bytes()[:n]
}

// run returns what a command makes of in. The commands are in the Makefile: `make nix`.
func run(t testing.TB, in []byte, command ...string) []byte {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, errs.Bytes())
	}
	return out.Bytes()
}

// command is one that compresses its input, and what Nix calls that.
type command struct {
	c       nix.Compression
	command string
}

// commands have every program and option that changes the shape of the data.
var commands = []command{
	{nix.Gzip, "gzip -1"}, {nix.Gzip, "gzip -9"},
	{nix.Bzip2, "bzip2 -1"}, {nix.Bzip2, "bzip2 -9"},
	{nix.XZ, "xz -T1 -0"}, {nix.XZ, "xz -T1 -6"}, {nix.XZ, "xz -T1 -2e"},
	{nix.XZ, "xz -T2 -0 --block-size=300KiB"}, {nix.XZ, "xz -T1 -1 --block-size=300KiB"},
	{nix.XZ, "xz -T1 -1 --check=none"}, {nix.XZ, "xz -T1 -1 --check=crc32"}, {nix.XZ, "xz -T1 -1 --check=sha256"},
	{nix.XZ, "xz -T1 --x86 --lzma2=preset=1"}, {nix.XZ, "xz -T1 --delta=dist=4 --lzma2=preset=1,lc=1,lp=3,pb=0"},
	{nix.LZMA, "xz --format=lzma -0"}, {nix.LZMA, "xz --format=lzma -6"},
	{nix.Lzip, "lzip -0"}, {nix.Lzip, "lzip -6"}, {nix.Lzip, "lzip -1 -b 300KiB"},
	{nix.Zstd, "zstd -1"}, {nix.Zstd, "zstd -3 --no-check"}, {nix.Zstd, "zstd -19"}, {nix.Zstd, "zstd -T2 -3"},
	{nix.Zstd, "zstd --long=22"},
	{nix.LZ4, "lz4 -1"}, {nix.LZ4, "lz4 -9"}, {nix.LZ4, "lz4 -B4 -BD"}, {nix.LZ4, "lz4 -B5 -BX --no-frame-crc"}, {nix.LZ4, "lz4 -B7"},
	{nix.Brotli, "brotli -c -q 1"}, {nix.Brotli, "brotli -c -q 5"}, {nix.Brotli, "brotli -c -q 9 -w 24"}, {nix.Brotli, "brotli -c -q 5 -w 10"},
}

// one returns a command for each compression.
func one() []command {
	var all []command
	for _, c := range commands {
		if len(all) == 0 || all[len(all)-1].c != c.c {
			all = append(all, c)
		}
	}
	return all
}

func (c command) run(t testing.TB, in []byte) []byte {
	return run(t, in, strings.Fields(c.command)...)
}

func decode(c nix.Compression, r io.Reader, l *Limits) ([]byte, error) {
	plain, err := Decode(context.Background(), c, r, l)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	return io.ReadAll(plain)
}

// lender counts what it lends.
type lender struct {
	*Limits
	lent atomic.Int64
}

func newLender(opts Options) *lender {
	l := &lender{}
	opts.Lend = func(_ context.Context, bytes int64) (func(), error) {
		l.lent.Add(bytes)
		return func() { l.lent.Add(-bytes) }, nil
	}
	l.Limits = NewLimits(opts)
	return l
}

func (l *lender) wantFree(t *testing.T) {
	t.Helper()
	if n := l.lent.Load(); n != 0 {
		t.Errorf("%d bytes of memory are still lent", n)
	}
}

// wantRefused fails unless decoding is refused with this kind, and a text that has all words.
func wantRefused(t *testing.T, err, kind error, words string) {
	t.Helper()
	refusal, ok := errors.AsType[*cache.Refusal](err)
	if !ok || !errors.Is(err, kind) || !strings.Contains(refusal.Text(), words) {
		t.Errorf("got %v, want %v with %q", err, kind, words)
	}
}

func BenchmarkDecode(b *testing.B) {
	plain := sample(16 << 20)
	for _, c := range append(one(), command{nix.Zstd, "zstd -3"}, command{nix.XZ, "xz -6"}) {
		data := c.run(b, plain)
		l := NewLimits(Options{})
		b.Run(c.command, func(b *testing.B) {
			b.SetBytes(int64(len(plain)))
			b.ReportAllocs()
			for b.Loop() {
				r, _ := Decode(b.Context(), c.c, bytes.NewReader(data), l)
				if n, err := io.Copy(io.Discard, r); err != nil || n != int64(len(plain)) {
					b.Fatal(n, err)
				}
				r.Close()
			}
		})
	}
}

func TestNames(t *testing.T) {
	l := newLender(Options{})
	for _, c := range []nix.Compression{nix.Compress, nix.Grzip, nix.Lrzip, nix.Lzop, "zip", "XZ"} {
		_, err := Decode(t.Context(), c, strings.NewReader(""), l.Limits)
		wantRefused(t, err, cache.ErrInvalid, fmt.Sprintf("cannot decompress %q", string(c)))
	}
	for _, c := range []nix.Compression{nix.Brotli, nix.Bzip2, nix.Gzip, nix.LZ4, nix.Lzip, nix.LZMA, nix.XZ, nix.Zstd} {
		_, err := decode(c, strings.NewReader(""), l.Limits)
		wantRefused(t, err, cache.ErrInvalid, fmt.Sprintf("the %s data ends early", c))
		_, err = decode(c, strings.NewReader(strings.Repeat("\r\x00\x00\x00", 100)), l.Limits)
		wantRefused(t, err, cache.ErrInvalid, fmt.Sprintf("the %s data is damaged", c))
	}
	l.wantFree(t)
}
