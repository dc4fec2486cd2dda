// Package zstdcache compresses NARs with zstd when they are asked for, and keeps the result.
//
//	c, err := zstdcache.Open(dir, zstdcache.Options{Size: 10 << 30})
//	…
//	n, err := c.Encode(ctx, info, open) // a cache.NAR
//
// What is kept is a static file: it has a size, is sent with sendfile, and any range of it at once.
// What is not, is compressed while it is sent, by as many cores as there are, into a file that grows.
// All who ask for the same NAR at that time read that file as it grows, each at its own pace;
// one that goes away stops nothing for the others. When none is left, a NAR that is half made is finished,
// and one that is not is given up.
//
// The input is checked against its NAR hash; if that fails, the last frame is not sent, and nothing is kept.
// Where no file can be kept, because the disk is full, each who asks gets the same bytes made for itself.
//
// A compressed NAR is a row of zstd frames, of 8 MiB of the NAR each, with that size in their headers.
// Its bytes depend on the NAR and the Version only, never on the number of cores or on what was compressed before.
// So a download can be resumed after the file was evicted and made again.
package zstdcache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"

	"firn/internal/cache"
	"firn/nix"
)

const (
	// defaultSize bounds the directory, in bytes, where Options do not.
	defaultSize = 10 << 30

	// maxWorkers bounds how many frames are compressed at once where Options do not.
	// One takes up to 26 MB of memory: input, output, and what the encoder remembers. Half of that is usual.
	maxWorkers = 16

	// maxDirect bounds how many readers at once have a NAR compressed for themselves because it cannot be kept.
	// Unlike others these hold a frame in memory, 26 MB again, for as long as the client takes to read it.
	maxDirect = 8
)

// closeLimit is how long Close waits for the frames that are being compressed, which cannot be stopped.
// At the highest levels one takes up to a minute, and nothing is lost with it: what is half made is removed at the next start.
const closeLimit = 2 * time.Second

// errAbandoned ends the making of a NAR for which no client waits any more.
var errAbandoned = errors.New("no client waits for it")

// Options of a Cache. The zero value is good.
type Options struct {
	// Size bounds the bytes that the directory takes on disk; what was used longest ago goes first. 10 GiB if zero.
	// What is being made may take half of that, so a NAR that compresses to more is never kept.
	Size int64

	// Level is the compression level on the scale of the zstd command, 1 to 22, of which four steps are told apart:
	// from 1, 3, 6 and 10 on. 3 if zero. Files made at another level are removed when the directory
	// is opened.
	Level int

	// Workers is how many frames are compressed at once. If zero, as many as there are cores, but no more than 16.
	Workers int

	// Now is the clock; time.Now if nil.
	Now func() time.Time

	// Logger is told of what goes wrong with the directory. Nil discards.
	Logger *slog.Logger
}

// Cache is a cache.Encoder. It is safe for concurrent use.
type Cache struct {
	level zstd.EncoderLevel
	dir   *dir
	log   *slog.Logger

	small, large *lane         // of NARs up to smallSize, and above
	directs      chan struct{} // holds something for each reader that has its own frames made

	mu      sync.Mutex // taken before that of a stream, and of dir
	closed  bool
	streams map[nix.Hash]*stream
	running sync.WaitGroup
	stop    context.CancelFunc // ends the scan of the directory

	hits, misses, joins, direct atomic.Int64
}

// Stats are numbers of a Cache, counted from when it was opened.
type Stats struct {
	Files     int   // kept now
	Bytes     int64 // that they take on disk
	Making    int   // NARs being compressed now
	Hits      int64 // requests for what was kept
	Misses    int64 // requests that began a compression
	Joins     int64 // requests that joined one
	Direct    int64 // requests that had a NAR compressed for themselves, or the rest of it, because it could not be kept
	Evictions int64
}

// Open opens the directory of a cache and makes it if it is not there. One process can have it open at a time.
// What it holds is found out in the background; until then Encode waits, and Encoded knows of nothing.
// The caller closes the Cache.
func Open(dir string, opts Options) (*Cache, error) {
	if opts.Level < 0 || opts.Level > 22 {
		return nil, fmt.Errorf("open compressed NARs: %w: level %d is not from 1 to 22", cache.ErrInvalid, opts.Level)
	}
	level := zstd.EncoderLevelFromZstd(cmp.Or(opts.Level, 3))
	workers := cmp.Or(opts.Workers, min(runtime.GOMAXPROCS(0), maxWorkers))
	c := &Cache{
		level:   level,
		log:     cmp.Or(opts.Logger, slog.New(slog.DiscardHandler)),
		small:   newLane(level, 2*workers, 2*workers, smallSize),
		large:   newLane(level, workers+1, workers, frameSize), // one more is being read at the same time
		directs: make(chan struct{}, maxDirect),
		streams: make(map[nix.Hash]*stream),
	}
	now := opts.Now
	if now == nil {
		now = time.Now
	}
	var err error
	if c.dir, err = openDir(dir, c.Version(), cmp.Or(opts.Size, defaultSize), now, c.log); err != nil {
		return nil, fmt.Errorf("open compressed NARs: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	c.running.Go(func() {
		if err := c.dir.scan(ctx); err != nil && ctx.Err() == nil {
			c.log.Error("not all compressed NARs were found", "error", err)
		}
	})
	return c, nil
}

// Close ends all compressions and closes the directory. What Encode gave can still be closed, and fails if it was not whole.
func (c *Cache) Close() error {
	c.mu.Lock()
	c.closed = true
	for _, s := range c.streams {
		s.cancel(errClosed)
	}
	c.mu.Unlock()
	c.stop()
	ended := make(chan struct{})
	go func() {
		c.running.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(closeLimit):
	}
	return c.dir.close()
}

// errClosed is what Encode and what it gave fail with after Close.
var errClosed = fmt.Errorf("%w: the cache is closed", cache.ErrUnavailable)

// Compression is zstd.
func (c *Cache) Compression() nix.Compression { return nix.Zstd }

// Version names the format and the level.
func (c *Cache) Version() string { return version(c.level) }

// Stats returns numbers for metrics.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	making := len(c.streams)
	c.mu.Unlock()
	c.dir.mu.Lock()
	defer c.dir.mu.Unlock()
	return Stats{
		Files: c.dir.files.Len(), Bytes: c.dir.files.Cost() + c.dir.making, Making: making,
		Hits: c.hits.Load(), Misses: c.misses.Load(), Joins: c.joins.Load(), Direct: c.direct.Load(),
		Evictions: c.dir.evictions,
	}
}

// Encoded returns the size of the compressed NAR if it is kept.
func (c *Cache) Encoded(info *nix.PathInfo) (size int64, ok bool) {
	return c.dir.size(info.NARHash)
}

// Encode returns the compressed NAR, see [cache.Encoder]: the kept file, or one that is being made.
// A NAR of one frame, which is up to 8 MiB, is made before Encode returns, so it has a size.
func (c *Cache) Encode(ctx context.Context, info *nix.PathInfo, open func(context.Context) (cache.NAR, error)) (cache.NAR, error) {
	if info.NARHash.Algorithm() != nix.SHA256 || info.NARSize <= 0 {
		return nil, fmt.Errorf("compress NAR of %s: %w: no NAR hash or size", info.Path, cache.ErrInvalid)
	}
	k, s, err := c.find(ctx, info, open)
	if err != nil {
		return nil, fmt.Errorf("compress NAR of %s: %w", info.Path, err)
	}
	if k != nil {
		c.hits.Add(1)
		return k, nil
	}
	r := &reader{cache: c, stream: s, open: open, size: -1}
	if err := r.begin(ctx); err != nil {
		r.Close()
		return nil, fmt.Errorf("compress NAR of %s: %w", info.Path, err)
	}
	return r, nil
}

// find returns the kept file of a NAR or the stream that makes it, which the caller must leave.
func (c *Cache) find(ctx context.Context, info *nix.PathInfo, open func(context.Context) (cache.NAR, error)) (*kept, *stream, error) {
	select {
	case <-c.dir.scanned:
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
	for {
		k, err := c.dir.open(info.NARHash)
		if k != nil || err != nil {
			return k, nil, err
		}
		s, err := c.join(ctx, info, open)
		if s != nil || err != nil {
			return nil, s, err
		}
	}
}

// join returns the stream that makes a NAR, and begins it if there is none; nil if the NAR is kept by now.
func (c *Cache) join(ctx context.Context, info *nix.PathInfo, open func(context.Context) (cache.NAR, error)) (*stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errClosed
	}
	if s, ok := c.streams[info.NARHash]; ok {
		s.users++
		c.joins.Add(1)
		return s, nil
	}
	if _, ok := c.dir.size(info.NARHash); ok {
		return nil, nil
	}
	c.misses.Add(1)
	s := &stream{info: info, users: 2, grown: make(chan struct{})}
	ctx, s.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	c.streams[info.NARHash] = s
	c.running.Go(func() {
		err := c.run(ctx, s, open)
		if errors.Is(err, errNotKept) && err != errFull {
			c.log.Warn("a compressed NAR cannot be kept", "path", info.Path.String(), "error", err)
		}
		s.cancel(nil)
		c.end(s, err)
	})
	return s, nil
}

// leave is called by each reader of a stream when it goes.
func (c *Cache) leave(s *stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	hash := s.info.NARHash
	if running := c.streams[hash] == s; running && s.users == 2 && !s.halfMade() {
		delete(c.streams, hash)
		s.cancel(errAbandoned)
	}
	s.release()
}

// end is called by the maker of a stream when it goes. No reader joins a stream that has ended.
func (c *Cache) end(s *stream, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if hash := s.info.NARHash; c.streams[hash] == s {
		delete(c.streams, hash)
	}
	s.change(func() { s.ended, s.err = true, err })
	s.release()
}
