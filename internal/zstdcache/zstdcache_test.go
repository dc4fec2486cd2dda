package zstdcache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"firn/internal/cache"
	"firn/nix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// dump is a NAR in memory. (The cache does not look into NARs, so any bytes will do.)
type dump struct {
	info  *nix.PathInfo
	data  []byte
	opens atomic.Int64

	// before is called before each piece is written, with the offset of that, and may fail.
	before func(ctx context.Context, off int64) error
}

// pieceSize is how many bytes a dump writes at once: no part of a frame.
const pieceSize = 1<<20 - 7

func newDump(data []byte) *dump {
	return &dump{data: data, info: &nix.PathInfo{NARHash: nix.SHA256Sum(sha256.Sum256(data)), NARSize: int64(len(data))}}
}

// randomDump returns a dump that compresses as NARs do: the same one for the same size and seed, everywhere and always.
func randomDump(size int, seed uint64) *dump {
	rng := rand.New(rand.NewPCG(seed, 42))
	words := make([][]byte, 1<<12)
	for i := range words {
		words[i] = make([]byte, 2+rng.IntN(12))
		for j := range words[i] {
			words[i][j] = byte(rng.IntN(1 << (3 + i%6)))
		}
	}
	data := make([]byte, 0, size+64)
	for len(data) < size {
		switch rng.IntN(16) {
		case 0: // as in machine code and tables
			data = binary.LittleEndian.AppendUint64(data, rng.Uint64()&rng.Uint64()&rng.Uint64())
		case 1: // a repetition from anywhere before
			if at := rng.IntN(len(data) + 1); at < len(data) {
				data = append(data, data[at:min(at+rng.IntN(48), len(data))]...)
			}
		default:
			data = append(data, words[int(rng.ExpFloat64()*400)%len(words)]...)
		}
	}
	return newDump(data[:size])
}

func (d *dump) open(context.Context) (cache.NAR, error) {
	d.opens.Add(1)
	return d, nil
}

func (d *dump) Size() int64  { return int64(len(d.data)) }
func (d *dump) Close() error { return nil }

func (d *dump) WriteRange(ctx context.Context, w io.Writer, off, n int64) error {
	for end := off + n; off < end; off += pieceSize {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if d.before != nil {
			if err := d.before(ctx, off); err != nil {
				return err
			}
		}
		if _, err := w.Write(d.data[off:min(off+pieceSize, end)]); err != nil {
			return err
		}
	}
	return nil
}

// house is a Cache in a directory, with a clock that stands still.
type house struct {
	*Cache
	t    testing.TB
	dir  string
	opts Options
	time atomic.Int64
}

func newHouse(t testing.TB, opts Options) *house {
	h := &house{t: t, dir: filepath.Join(t.TempDir(), "zstd"), opts: opts}
	h.time.Store(time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC).Unix())
	h.opts.Now = func() time.Time { return time.Unix(h.time.Load(), 0) }
	h.start()
	t.Cleanup(func() { h.Close() })
	return h
}

func (h *house) start() {
	h.t.Helper()
	var err error
	if h.Cache, err = Open(h.dir, h.opts); err != nil {
		h.t.Fatal(err)
	}
	<-h.Cache.dir.scanned
}

func (h *house) restart() {
	h.t.Helper()
	if err := h.Close(); err != nil {
		h.t.Fatal(err)
	}
	h.start()
}

func (h *house) pass(d time.Duration) { h.time.Add(int64(d / time.Second)) }

// encode returns the whole of what Encode gives for d, and checks its size.
func (h *house) encode(d *dump) []byte {
	h.t.Helper()
	n, err := h.Encode(h.t.Context(), d.info, d.open)
	if err != nil {
		h.t.Fatal(err)
	}
	defer n.Close()
	var b bytes.Buffer
	size := n.Size()
	if err := n.WriteRange(h.t.Context(), &b, 0, size); err != nil {
		h.t.Fatal(err)
	}
	if size >= 0 && int64(b.Len()) != size {
		h.t.Errorf("got %d bytes of %d", b.Len(), size)
	}
	return b.Bytes()
}

// wantKept checks which of some dumps are kept.
func (h *house) wantKept(want []bool, dumps ...*dump) {
	h.t.Helper()
	got := make([]bool, len(dumps))
	for i, d := range dumps {
		_, got[i] = h.Encoded(d.info)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		h.t.Errorf("kept (-want +got):\n%s", diff)
	}
}

// wantFiles checks how many files are in the directory besides the lock.
func wantFiles(t testing.TB, dir string, want int) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries)-1 != want {
		t.Errorf("there are %d files instead of %d: %v", len(entries)-1, want, entries)
	}
}

// wantRanges checks some ranges of n, and that none beyond its end is answered.
func wantRanges(t *testing.T, n cache.NAR, want []byte) {
	t.Helper()
	size := int64(len(want))
	for _, r := range [][2]int64{{0, size}, {0, 0}, {size, 0}, {0, 1}, {size - 1, 1}, {size / 2, size / 3}} {
		var b bytes.Buffer
		if err := n.WriteRange(t.Context(), &b, r[0], r[1]); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(b.Bytes(), want[r[0]:r[0]+r[1]]) {
			t.Errorf("other bytes in range %v", r)
		}
	}
	for _, r := range [][2]int64{{0, size + 1}, {size, 1}, {-1, 1}, {0, -1}, {size + 1, -1}, {1, 1<<63 - 1}} {
		if err := n.WriteRange(t.Context(), io.Discard, r[0], r[1]); err == nil {
			t.Errorf("range %v of %d bytes was answered", r, size)
		}
	}
}

// The same NAR gives the same bytes, whatever the number of cores, and whatever the encoders did before.
func TestDeterminism(t *testing.T) {
	d := randomDump(2*frameSize+12345, 7)
	var want []byte
	for _, procs := range []int{1, 2, 8} {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
		h := newHouse(t, Options{})
		for seed := range uint64(procs) {
			other := randomDump(1<<(10+3*int(seed%4)), seed)
			h.encode(other)
		}
		got := h.encode(d)
		if want == nil {
			want = got
		}
		if !bytes.Equal(got, want) {
			t.Errorf("other bytes on %d cores", procs)
		}
		// It does not matter either how large a frame could have been.
		for seed := range uint64(procs) {
			small := randomDump(smallSize-int(seed)*100_000, seed)
			var frames [2][]byte
			for i, l := range []*lane{h.small, h.large} {
				if err := l.compress(t.Context(), small.info, small, 0, func(frame []byte) error {
					frames[i] = append(frames[i], frame...)
					return nil
				}); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(frames[0], frames[1]) {
				t.Errorf("other bytes in the other lane")
			}
		}
	}
}

// However many NARs are compressed at once, only so many frames are in memory.
func TestMemory(t *testing.T) {
	const (
		streams = 40
		workers = 2
		most    = 160 << 20 // bytes: 3 frames and 2 encoders are a third of that, a frame for each stream three times
	)
	defer debug.SetGCPercent(debug.SetGCPercent(10)) // so that the heap is what is in use
	h := newHouse(t, Options{Workers: workers})
	inUse := func() int64 {
		sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(sample)
		return int64(sample[0].Value.Uint64())
	}
	runtime.GC()
	before := inUse()
	var peak atomic.Int64
	data := randomDump(frameSize/16, 1).data
	var reading sync.WaitGroup
	for i := range streams {
		d := &repeated{piece: append(data[:len(data):len(data)], byte(i)), times: 17}
		d.before = func() {
			for now, last := inUse()-before, peak.Load(); now > last && !peak.CompareAndSwap(last, now); last = peak.Load() {
			}
		}
		reading.Go(func() {
			n, err := h.Encode(t.Context(), d.info(), func(context.Context) (cache.NAR, error) { return d, nil })
			if err != nil {
				t.Error(err)
				return
			}
			defer n.Close()
			if err := n.WriteRange(t.Context(), io.Discard, 0, n.Size()); err != nil {
				t.Error(err)
			}
		})
	}
	reading.Wait()
	if got := peak.Load(); got > most || got < frameSize/2 {
		t.Errorf("%d bytes were in use", got)
	}
}

// repeated is a cache.NAR that takes little memory.
type repeated struct {
	piece  []byte
	times  int
	before func() // each piece
}

func (r *repeated) info() *nix.PathInfo {
	hash := sha256.New()
	for range r.times {
		hash.Write(r.piece)
	}
	return &nix.PathInfo{NARHash: nix.SHA256Sum([32]byte(hash.Sum(nil))), NARSize: r.Size()}
}

func (r *repeated) Size() int64  { return int64(len(r.piece) * r.times) }
func (r *repeated) Close() error { return nil }

func (r *repeated) WriteRange(_ context.Context, w io.Writer, _, _ int64) error {
	for range r.times {
		r.before()
		if _, err := w.Write(r.piece); err != nil {
			return err
		}
	}
	return nil
}

func TestOpen(t *testing.T) {
	if _, err := Open(t.TempDir(), Options{Level: 23}); !errors.Is(err, cache.ErrInvalid) {
		t.Errorf("level 23: %v", err)
	}
	h := newHouse(t, Options{})
	if c, err := Open(h.dir, Options{}); err == nil {
		c.Close()
		t.Error("a second process may open the directory")
	}
	h.Close()
	if _, err := h.Encode(t.Context(), randomDump(9, 1).info, randomDump(9, 1).open); !errors.Is(err, cache.ErrUnavailable) {
		t.Errorf("after Close: %v", err)
	}
	h.start()
}
