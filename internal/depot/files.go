package depot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/semaphore"

	"firn/internal/cache"
	"firn/internal/depot/catalog"
	"firn/nix"
)

const (
	// maxLogText and maxLogKept bound a build log, in bytes, as text and compressed.
	maxLogText = 256 << 20
	maxLogKept = 32 << 20
	// smallLog is how many compressed bytes of a log count as nothing while it comes. Nearly all logs are smaller.
	smallLog = 1 << 20
	// maxSmallLogs bounds the bytes of open logs that are small, and maxLargeLogs those of the others, and of the others that come:
	// apart, so that two of the largest do not keep all the small ones waiting, nor who reads those who write.
	maxSmallLogs = 96 << 20
	maxLargeLogs = 64 << 20
	// logPart is how many bytes of a log are compressed at once.
	logPart = 256 << 10

	// maxSignatures is how many signatures a realisation or build trace can have, for nix to parse it.
	maxSignatures = 64
)

// logRooms are the memory for logs, in bytes.
type logRooms struct{ small, large, coming *semaphore.Weighted }

func newLogRooms() logRooms {
	return logRooms{semaphore.NewWeighted(maxSmallLogs), semaphore.NewWeighted(maxLargeLogs), semaphore.NewWeighted(maxLargeLogs)}
}

// PutLog keeps a build log, compressed.
func (p *Part) PutLog(ctx context.Context, drv nix.StorePath, log io.Reader) error {
	kept, release, err := p.d.readLog(ctx, log)
	defer release()
	if err == nil {
		err = failure("write catalog", p.d.catalog.PutFile(ctx, p.id, &catalog.File{Key: catalog.LogKey(drv), Content: kept}, false))
	}
	if err != nil {
		return fmt.Errorf("keep log of %v: %w", drv, err)
	}
	return nil
}

// readLog returns a log as zstd frames of logPart bytes. release gives back the memory that it takes.
func (d *Depot) readLog(ctx context.Context, log io.Reader) (kept []byte, release func(), err error) {
	release = func() {}
	part := make([]byte, logPart)
	kept = []byte{}
	for size, large := 0, false; ; {
		if ctx.Err() != nil {
			return nil, release, context.Cause(ctx)
		}
		n, err := io.ReadFull(log, part)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return nil, release, err
		}
		size += n
		d.coders.work(func() { kept = d.coders.encode(kept, part[:n]) })
		if !large && len(kept) > smallLog {
			if err := d.logs.coming.Acquire(ctx, maxLogKept); err != nil {
				return nil, release, context.Cause(ctx)
			}
			large, release = true, func() { d.logs.coming.Release(maxLogKept) }
		}
		if size > maxLogText || len(kept) > maxLogKept {
			return nil, release, cache.Refuse(cache.ErrTooLarge, "this log has more than %d bytes, or %d when it is compressed", maxLogText, maxLogKept)
		}
		if err != nil {
			return kept, release, nil
		}
	}
}

// OpenLog opens a build log. How many may be open depends on their sizes; one more is ErrUnavailable.
func (p *Part) OpenLog(ctx context.Context, drv nix.StorePath) (cache.Log, error) {
	kept, err := p.d.catalog.File(ctx, p.id, catalog.LogKey(drv))
	if err != nil {
		return nil, failure(fmt.Sprintf("open log of %v", drv), err)
	}
	room, weight := p.d.logs.small, int64(len(kept))+2*logPart
	if len(kept) > smallLog {
		room = p.d.logs.large
	}
	if !room.TryAcquire(weight) {
		return nil, fmt.Errorf("open log of %v: %w: too many logs are open", drv, cache.ErrUnavailable)
	}
	z, err := p.d.coders.decoder()
	if err == nil {
		err = z.Reset(bytes.NewReader(kept))
	}
	if err != nil {
		room.Release(weight)
		return nil, fmt.Errorf("open log of %v: %w", drv, err)
	}
	return &openLog{z: z, close: sync.OnceFunc(func() {
		p.d.coders.putDecoder(z)
		room.Release(weight)
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

func realisationKey(id nix.RealisationID) string { return "realisations/" + id.String() + ".doi" }

func traceKey(drv nix.StorePath, output string) string {
	return "build-trace-v2/" + drv.Base() + "/" + output + ".doi"
}

// Realisation returns what was kept of an output.
func (p *Part) Realisation(ctx context.Context, id nix.RealisationID) (*nix.Realisation, error) {
	text, err := p.d.catalog.File(ctx, p.id, realisationKey(id))
	if err != nil {
		return nil, failure(fmt.Sprintf("find realisation %v", id), err)
	}
	return nix.ParseRealisation(p.dir, text)
}

// BuildTrace returns what was kept of an output.
func (p *Part) BuildTrace(ctx context.Context, drv nix.StorePath, output string) (*nix.BuildTrace, error) {
	text, err := p.d.catalog.File(ctx, p.id, traceKey(drv, output))
	if err != nil {
		return nil, failure(fmt.Sprintf("find build trace of %v!%s", drv, output), err)
	}
	return nix.ParseBuildTrace(drv, output, text)
}

// PutRealisation keeps a realisation, or adds its signatures to the one that says the same.
func (p *Part) PutRealisation(ctx context.Context, r *nix.Realisation) error {
	err := p.merge(ctx, realisationKey(r.ID), r.OutPath, r, func(text []byte) (json.Marshaler, error) {
		old, err := nix.ParseRealisation(p.dir, text)
		if err != nil || !bytes.Equal(old.AppendFingerprint(nil), r.AppendFingerprint(nil)) {
			return nil, err
		}
		merged := *old
		merged.Signatures = merge(old.Signatures, r.Signatures)
		return &merged, nil
	})
	if err != nil {
		return fmt.Errorf("keep realisation %v: %w", r.ID, err)
	}
	return nil
}

// PutBuildTrace keeps a build trace, or adds its signatures to the one that says the same.
func (p *Part) PutBuildTrace(ctx context.Context, t *nix.BuildTrace) error {
	err := p.merge(ctx, traceKey(t.Drv, t.Output), t.OutPath, t, func(text []byte) (json.Marshaler, error) {
		old, err := nix.ParseBuildTrace(t.Drv, t.Output, text)
		if err != nil || old.OutPath != t.OutPath {
			return nil, err
		}
		merged := *old
		merged.Signatures = merge(old.Signatures, t.Signatures)
		return &merged, nil
	})
	if err != nil {
		return fmt.Errorf("keep build trace of %v!%s: %w", t.Drv, t.Output, err)
	}
	return nil
}

// merge keeps under a key what says first that a path was built, and replaces it by what combine makes of that; nil leaves it as it is.
func (p *Part) merge(ctx context.Context, key string, built nix.StorePath, first json.Marshaler, combine func(old []byte) (json.Marshaler, error)) error {
	p.d.merging.Lock()
	defer p.d.merging.Unlock()
	old, err := p.d.catalog.File(ctx, p.id, key)
	if errors.Is(err, catalog.ErrNotFound) {
		text, err := encodeJSON(first)
		if err != nil {
			return err
		}
		// If another process was faster, its own stays.
		return p.putBuilt(ctx, &catalog.File{Key: key, Content: text, Path: built}, true)
	}
	if err != nil {
		return failure("read catalog", err)
	}
	combined, err := combine(old)
	if err != nil || combined == nil {
		return err
	}
	text, err := encodeJSON(combined)
	if err != nil || bytes.Equal(text, old) {
		return err
	}
	return p.putBuilt(ctx, &catalog.File{Key: key, Content: text, Path: built}, false)
}

func (p *Part) putBuilt(ctx context.Context, f *catalog.File, keep bool) error {
	err := p.d.catalog.PutFile(ctx, p.id, f, keep)
	if errors.Is(err, catalog.ErrDeleted) {
		return cache.Refuse(cache.ErrConflict, "%s was deleted from this cache just now; push that first", f.Path)
	}
	return failure("write catalog", err)
}

func encodeJSON(v json.Marshaler) ([]byte, error) {
	text, err := v.MarshalJSON()
	if err == nil && len(text) > nix.MaxRealisationSize {
		err = cache.Refuse(cache.ErrTooLarge, "this is longer than %d bytes", nix.MaxRealisationSize)
	}
	return text, err
}

// merge returns old signatures and new ones, as many as may be.
func merge(old, more []nix.Signature) []nix.Signature {
	all := slices.Clone(old)
	for _, s := range more {
		if len(all) < maxSignatures && !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all
}
