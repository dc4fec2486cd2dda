//go:build linux

// Command chunks measures what a depot would keep with chunks of several sizes, files of several
// sizes whose contents are cut out, and zstd of several levels: of the store of Debian packages,
// and of the same after a mass rebuild, that is with other path hashes and, with --versions 8, with
// another version of every eighth package.
//
//	go run ./chunks
//	go run ./chunks --versions 8 --sizes 256 --levels 1 --files 0,16,32,64
//
// It prints the table of docs/adr/0021-chunk-size-and-level.md.
package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/alecthomas/kong"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"firn/internal/chunk"
	"firn/internal/testing/debstore"
	"firn/nix"
	"firn/nix/nar"
)

// minShared is how many bytes a chunk has at least that is kept once, as in the depot.
const minShared = 1 << 10

type flags struct {
	Sizes    []int `help:"Average sizes of chunks in KiB." default:"64,128,256,512"`
	Levels   []int `help:"Levels of zstd." default:"1,3,6,10"`
	Files    []int `help:"Cut out the contents of files of so many KiB and more; 0: of none." default:"16"`
	Versions int   `help:"Give one package in so many another version in the second generation; 0: none."`
	Packages int   `help:"Take no more packages than about so many; 0: all."`
}

func main() {
	var f flags
	kong.Parse(&f, kong.Description("Measure sizes of chunks and levels of zstd on a store of Debian packages."))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := f.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "chunks:", err)
		os.Exit(1)
	}
}

func (f *flags) run(ctx context.Context) error {
	dir, err := debstore.DefaultDir()
	if err != nil {
		return err
	}
	var stores []*debstore.Store
	for generation := range 2 {
		opts := debstore.Options{Generation: generation, Packages: f.Packages}
		if generation > 0 {
			opts.NewVersions = f.Versions
		}
		s, err := debstore.Make(ctx, dir, opts)
		if err != nil {
			return err
		}
		stores = append(stores, s)
	}
	onlyRebuilt(stores)
	fmt.Println("| files from | average chunk | level | kept of one generation | added by the second | seconds of a core | chunks | other frames |")
	fmt.Println("|---|---|---|---|---|---|---|---|")
	for _, files := range f.Files {
		if err := f.measure(ctx, stores, files); err != nil {
			return err
		}
	}
	return nil
}

// measure prints the rows for one size of files.
func (f *flags) measure(ctx context.Context, stores []*debstore.Store, files int) error {
	for _, size := range f.Sizes {
		k := keeping{average: size << 10, files: int64(files) << 10, seen: map[[32]byte]bool{}}
		for _, level := range f.Levels {
			// As the depot does it.
			e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)),
				zstd.WithWindowSize(chunk.MaxSize), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true))
			if err != nil {
				return err
			}
			k.encoders = append(k.encoders, e)
		}
		var per []kept
		for _, s := range stores {
			begun := time.Now()
			k.kept = kept{bytes: make([]int64, len(f.Levels)), cpu: make([]time.Duration, len(f.Levels))}
			if err := k.keep(ctx, s); err != nil {
				return err
			}
			per = append(per, k.kept)
			fmt.Fprintf(os.Stderr, "%d KiB: %d bytes of NARs in %.0f s\n", size, k.kept.raw, time.Since(begun).Seconds())
		}
		for i, level := range f.Levels {
			first, second := per[0].bytes[i], per[1].bytes[i]
			fmt.Printf("| %d KiB | %d KiB | %d | %.1f MB | %.2f MB (%.2f %%) | %.1f | %d + %d | %d |\n", files, size, level,
				float64(first)/1e6, float64(second)/1e6, 100*float64(second)/float64(first),
				per[0].cpu[i].Seconds(), per[0].chunks, per[1].chunks, per[0].unshared)
		}
	}
	return nil
}

// onlyRebuilt leaves those packages that are in both generations: some may have been installed or
// upgraded after the first store was made.
func onlyRebuilt(stores []*debstore.Store) {
	count := map[string]int{}
	for _, s := range stores {
		for _, p := range s.Packages {
			count[debstore.OldName(p)]++
		}
	}
	for _, s := range stores {
		s.Packages = slices.DeleteFunc(s.Packages, func(p nix.StorePath) bool { return count[debstore.OldName(p)] != len(stores) })
		fmt.Fprintf(os.Stderr, "%d packages\n", len(s.Packages))
	}
}

// keeping keeps NARs by the rules of a depot, and throws the bytes away.
type keeping struct {
	average  int
	files    int64 // 0: no contents are cut out
	encoders []*zstd.Encoder

	mu   sync.Mutex
	seen map[[32]byte]bool
	kept kept
}

// kept is what a generation added.
type kept struct {
	raw      int64           // bytes of its NARs
	bytes    []int64         // of frames, by level
	cpu      []time.Duration // that compressing took, by level
	chunks   int             // that were new
	unshared int             // frames of references and what is short between them
}

// keep keeps the packages of a store.
func (k *keeping) keep(ctx context.Context, s *debstore.Store) error {
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, p := range s.Packages {
		g.Go(func() error {
			runtime.LockOSThread() // for the time that the thread takes
			defer runtime.UnlockOSThread()
			return k.keepPath(ctx, s.Path(p))
		})
	}
	return g.Wait()
}

// keepPath keeps the NAR of a path.
func (k *keeping) keepPath(ctx context.Context, path string) error {
	layout, err := nar.NewLayout(ctx, path)
	if err != nil {
		return err
	}
	r, to := io.Pipe()
	go func() { to.CloseWithError(layout.WriteRange(ctx, to, path, 0, layout.Size())) }()
	defer r.Close()
	k.mu.Lock()
	k.kept.raw += layout.Size()
	k.mu.Unlock()

	cutter := chunk.NewCutterSize(nix.DefaultStoreDir, k.average, k.files)
	for h := range layout.Listing().All() {
		if h.Type == nar.TypeRegular && k.files > 0 {
			cutter.Contents(h.Offset, h.Size)
		}
	}
	buf, have, atEOF := make([]byte, 4*chunk.NeedSize), 0, false
	var open []byte // pieces that are not shared become one frame
	for {
		n, err := io.ReadFull(r, buf[have:])
		have += n
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			atEOF = true
		default:
			return err
		}
		begin := 0
		for begin < have {
			n, references := cutter.Next(buf[begin:have], atEOF)
			if n == 0 {
				break
			}
			piece := buf[begin : begin+n]
			begin += n
			if references || n < minShared {
				if len(open)+n > chunk.MaxSize {
					k.compress(open)
					open = open[:0]
				}
				if len(open) == 0 {
					k.mu.Lock()
					k.kept.unshared++
					k.mu.Unlock()
				}
				open = append(open, piece...)
				continue
			}
			k.compress(open)
			open = open[:0]
			if k.isNew(piece) {
				k.compress(piece)
			}
		}
		have = copy(buf, buf[begin:have])
		if atEOF {
			k.compress(open)
			return nil
		}
	}
}

func (k *keeping) isNew(piece []byte) bool {
	sum := sha256.Sum256(piece)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.seen[sum] {
		return false
	}
	k.seen[sum] = true
	k.kept.chunks++
	return true
}

func (k *keeping) compress(b []byte) {
	for i, e := range k.encoders {
		begun := threadTime()
		frame := e.EncodeAll(b, nil)
		took := threadTime() - begun
		k.mu.Lock()
		k.kept.bytes[i] += int64(len(frame))
		k.kept.cpu[i] += took
		k.mu.Unlock()
	}
}

// threadTime is how long this thread has run.
func threadTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
