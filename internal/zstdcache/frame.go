package zstdcache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"sync"

	"github.com/klauspost/compress/zstd"

	"firn/internal/cache"
	"firn/internal/fairlimit"
	"firn/nix"
	"firn/nix/nar"
)

const (
	// format is raised whenever the bytes that a level makes of a NAR change:
	// with frameSize, the options below, or a new version of the library (a test pins the bytes).
	// Files of another format are not served.
	format = 1

	// frameSize is how many bytes of a NAR one frame holds. Frames are compressed independently of each other,
	// on as many cores as there are. Measured on 297 NARs of Debian packages (1,020 MB) at the default level,
	// against whole NARs by `zstd -3`: 256 KiB +8.6 %, 1 MiB +4.6 %, 4 MiB +1.1 %, 8 MiB -0.4 %, 16 MiB -0.9 %.
	// 8 MiB is also the most memory that RFC 8878 (3.1.1.1.2) has every decoder support.
	frameSize = 8 << 20

	// smallSize is the size up to which a NAR is small: two thirds of all are.
	// They have a lane of their own, so that they do not queue behind the frames of large ones.
	smallSize = 1 << 20
)

// version names what the bytes of a frame depend on besides its input.
func version(level zstd.EncoderLevel) string { return fmt.Sprintf("v%d-%s", format, level) }

// lane makes frames. It bounds how many are in memory at once, over everyone who has them made in it.
type lane struct {
	level    zstd.EncoderLevel
	size     int           // of the input of a frame, at most
	open     chan struct{} // holds something for each NAR that is open,
	slots    chan struct{} // for each frame in memory,
	working  chan struct{} // and for each frame that is being made
	frames   sync.Pool     // of *frame
	encoders sync.Pool     // of *zstd.Encoder, which take size and 1.4 MB each
}

func newLane(level zstd.EncoderLevel, inMemory, workers, size int) *lane {
	return &lane{
		level: level, size: size,
		open: make(chan struct{}, fairlimit.OfProcess().Making), slots: make(chan struct{}, inMemory), working: make(chan struct{}, workers),
	}
}

// enter takes a place in one of the channels of a lane.
func enter(ctx context.Context, places chan struct{}) error {
	select {
	case places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// frame is a piece of a NAR on its way. It holds a slot of its lane.
type frame struct {
	in, out []byte
	made    chan struct{} // receives once when out is there
}

// get returns a frame to fill, once there is a slot for it.
func (l *lane) get(ctx context.Context) (*frame, error) {
	if err := enter(ctx, l.slots); err != nil {
		return nil, err
	}
	if f, ok := l.frames.Get().(*frame); ok {
		return f, nil
	}
	// Most NARs compress to less than half. For the others out grows, once.
	return &frame{in: make([]byte, 0, l.size), out: make([]byte, 0, l.size/2), made: make(chan struct{}, 1)}, nil
}

// encode makes the frame of its input.
func (l *lane) encode(f *frame) {
	l.working <- struct{}{}
	defer func() { <-l.working }()
	e, ok := l.encoders.Get().(*zstd.Encoder)
	if !ok {
		var err error
		e, err = zstd.NewWriter(nil,
			zstd.WithEncoderLevel(l.level),
			zstd.WithWindowSize(l.size), // larger ones would not change a byte, only take more memory
			zstd.WithEncoderConcurrency(1),
			zstd.WithLowerEncoderMem(true)) // room for one window instead of two: no frame is longer
		if err != nil {
			panic(err) // the options are constants, and the level was checked
		}
	}
	defer l.encoders.Put(e)
	f.out = e.EncodeAll(f.in, f.out)
	f.made <- struct{}{}
}

func (l *lane) put(f *frame) {
	f.in, f.out = f.in[:0], f.out[:0]
	l.frames.Put(f)
	<-l.slots
}

// compress hands the frames of a NAR to commit, in order, from the frame with the number first on.
// Each is made on a goroutine of its own while the next is read; commit is called on one other, one frame at a time.
// The whole NAR is read and checked against info, and the last frame is not handed over when it fails:
// [nar.ErrMismatch].
func (l *lane) compress(ctx context.Context, info *nix.PathInfo, in cache.NAR, first int64, commit func(frame []byte) error) error {
	if size := in.Size(); size != info.NARSize {
		return fmt.Errorf("%w: it has %d bytes instead of %d", nar.ErrMismatch, size, info.NARSize)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	k := &cutter{
		lane: l, info: info, skip: first * frameSize, hash: sha256.New(),
		next:  func() (*frame, error) { return l.get(ctx) },
		queue: make(chan *frame, cap(l.slots)), // whatever is in it has a slot, so sending never blocks
	}
	var failed error
	var committing sync.WaitGroup
	committing.Go(func() {
		for f := range k.queue {
			<-f.made
			if failed == nil {
				if failed = commit(f.out); failed != nil {
					cancel(failed)
				}
			}
			l.put(f)
		}
	})
	err := in.WriteRange(ctx, k, 0, info.NARSize)
	if k.frame != nil {
		l.put(k.frame)
	}
	close(k.queue)
	committing.Wait()

	switch {
	case failed != nil:
		return failed
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return err
	case k.read < info.NARSize:
		return errors.New("source wrote less than it was asked for")
	}
	return nil
}

// cutter is an io.Writer that cuts a NAR into frames and puts them in the queue.
type cutter struct {
	lane  *lane
	info  *nix.PathInfo
	skip  int64 // bytes that are only hashed
	next  func() (*frame, error)
	queue chan *frame

	hash  hash.Hash
	read  int64
	frame *frame // the one that is being filled; nil between two
}

func (k *cutter) Write(p []byte) (n int, err error) {
	if int64(len(p)) > k.info.NARSize-k.read {
		return 0, nar.ErrMismatch
	}
	k.hash.Write(p)
	for n < len(p) {
		if k.read < k.skip {
			m := min(k.skip-k.read, int64(len(p)-n))
			n, k.read = n+int(m), k.read+m
			continue
		}
		if k.frame == nil {
			if k.frame, err = k.next(); err != nil {
				return n, err
			}
		}
		f := k.frame
		m := min(len(p)-n, k.lane.size-len(f.in))
		f.in = append(f.in, p[n:n+m]...)
		n, k.read = n+m, k.read+int64(m)

		last := k.read == k.info.NARSize
		if last && nix.SHA256Sum([sha256.Size]byte(k.hash.Sum(nil))) != k.info.NARHash {
			return n, nar.ErrMismatch
		}
		if last || len(f.in) == k.lane.size {
			k.frame = nil
			k.queue <- f
			if last {
				k.lane.encode(f) // there is nothing to read in between
			} else {
				go k.lane.encode(f)
			}
		}
	}
	return n, nil
}
