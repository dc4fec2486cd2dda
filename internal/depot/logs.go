package depot

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/semaphore"

	"firn/internal/cache"
	"firn/internal/depot/index"
	"firn/nix"
)

const (
	// maxLogText and maxLogKept bound a build log, in bytes, as text and compressed.
	maxLogText = 256 << 20
	maxLogKept = 32 << 20
	// smallLog is how many compressed bytes of a log are in memory while it comes in. More of it
	// waits on disk until the client has sent all.
	smallLog = 1 << 20
	// maxSmallLogs bounds the bytes of open logs that are small, and maxLargeLogs the bytes of the
	// others. They are apart, so that two of the largest do not keep all small ones waiting.
	maxSmallLogs = 96 << 20
	maxLargeLogs = 64 << 20
	// maxMovingLogs bounds the bytes of logs on their way to the catalog, and the bytes of logs on
	// their way from it, whose size is not known before. Neither waits for a client.
	maxMovingLogs = 2 * maxLogKept
	// logPart is how many bytes of a log are compressed at once.
	logPart = 256 << 10
)

// logMemory bounds the memory of logs, in bytes: of open ones, and of those that are read from the
// catalog or written to it.
type logMemory struct{ small, large, reading, writing *semaphore.Weighted }

func newLogMemory() logMemory {
	return logMemory{semaphore.NewWeighted(maxSmallLogs), semaphore.NewWeighted(maxLargeLogs), semaphore.NewWeighted(maxMovingLogs), semaphore.NewWeighted(maxMovingLogs)}
}

// PutLog stores a build log, compressed.
func (p *View) PutLog(ctx context.Context, drv nix.StorePath, log io.Reader) error {
	in := incoming{d: p.d}
	defer in.close()
	err := in.read(ctx, log)
	if err == nil {
		err = in.hold(ctx, func(kept []byte) error {
			return failure("write catalog", p.d.index.PutFile(ctx, p.id, &index.File{Key: index.LogKey(drv), Content: kept}))
		})
	}
	if err != nil {
		return fmt.Errorf("keep log of %v: %w", drv, err)
	}
	return nil
}

// An incoming log is one that a client sends, as zstd frames of logPart bytes. It holds little
// memory, however long the client takes.
type incoming struct {
	d     *Depot
	kept  []byte   // the last frames
	size  int64    // of the frames before, which are in the file
	spool *os.File // nil: all frames are in kept
}

// read reads all of a log.
func (in *incoming) read(ctx context.Context, log io.Reader) error {
	part := make([]byte, logPart)
	in.kept = []byte{}
	for size := 0; ; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// Not io.ReadFull: after it, a log that breaks off with io.ErrUnexpectedEOF looks complete.
		var n int
		var err error
		for n < len(part) && err == nil {
			var more int
			more, err = log.Read(part[n:])
			n += more
		}
		if err != nil && err != io.EOF {
			return err
		}
		size += n
		in.d.coders.work(func() { in.kept = in.d.coders.encode(in.kept, part[:n]) })
		if size > maxLogText || in.size+int64(len(in.kept)) > maxLogKept {
			return cache.Refuse(cache.ErrTooLarge, "this log has more than %d bytes, or %d when it is compressed", maxLogText, maxLogKept)
		}
		if in.spool != nil || len(in.kept) > smallLog {
			if err := in.spill(); err != nil {
				return fmt.Errorf("write log to disk: %w: %w", cache.ErrUnavailable, full(err))
			}
		}
		if err != nil {
			return nil
		}
	}
}

// spill moves the frames in memory to the file.
func (in *incoming) spill() (err error) {
	if in.spool == nil {
		if in.spool, err = os.CreateTemp(in.d.opts.Spool, "log-"); err != nil {
			return err
		}
		// The file goes with the process, whatever happens.
		if err := os.Remove(in.spool.Name()); err != nil {
			return err
		}
	}
	n, err := in.spool.Write(in.kept)
	in.size += int64(n)
	in.kept = in.kept[:0]
	return err
}

// hold calls do with the whole log, which is in memory until do returns.
func (in *incoming) hold(ctx context.Context, do func(kept []byte) error) error {
	if in.spool == nil {
		return do(in.kept)
	}
	in.kept = nil
	if err := in.d.logs.writing.Acquire(ctx, in.size); err != nil {
		return context.Cause(ctx)
	}
	defer in.d.logs.writing.Release(in.size)
	kept := make([]byte, in.size)
	if _, err := in.spool.ReadAt(kept, 0); err != nil {
		return fmt.Errorf("read log from disk: %w: %w", cache.ErrUnavailable, err)
	}
	return do(kept)
}

func (in *incoming) close() {
	if in.spool != nil {
		in.spool.Close() // its bytes are not needed
	}
}

// OpenLog opens a build log. How many logs may be open depends on their sizes; one more is
// ErrUnavailable.
func (p *View) OpenLog(ctx context.Context, drv nix.StorePath) (cache.Log, error) {
	if err := p.d.logs.reading.Acquire(ctx, maxLogKept); err != nil {
		return nil, fmt.Errorf("open log of %v: %w", drv, context.Cause(ctx))
	}
	defer p.d.logs.reading.Release(maxLogKept)
	kept, err := p.d.index.File(ctx, p.id, index.LogKey(drv))
	if err != nil {
		return nil, failure(fmt.Sprintf("open log of %v", drv), err)
	}
	memory, weight := p.d.logs.small, int64(len(kept))+2*logPart
	if len(kept) > smallLog {
		memory = p.d.logs.large
	}
	if !memory.TryAcquire(weight) {
		return nil, fmt.Errorf("open log of %v: %w: too many logs are open; try again later", drv, cache.ErrUnavailable)
	}
	z, err := p.d.coders.decoder()
	if err == nil {
		err = z.Reset(bytes.NewReader(kept))
	}
	if err != nil {
		memory.Release(weight)
		return nil, fmt.Errorf("open log of %v: %w", drv, err)
	}
	return &openLog{z: z, close: sync.OnceFunc(func() {
		p.d.coders.putDecoder(z)
		memory.Release(weight)
	})}, nil
}

type openLog struct {
	z     *zstd.Decoder
	close func()
}

func (l *openLog) Read(p []byte) (int, error) { return l.z.Read(p) }
func (l *openLog) Size() (int64, bool)        { return 0, false }
func (l *openLog) Close() error {
	l.close()
	return nil
}
