// Package depot keeps what is pushed to this server, and serves it.
//
//	d := depot.New(cat, blobs, depot.Options{Logger: logger})
//	view := d.For(record)                 // what one cache sees of it: a source and a sink
//	got, err := view.Receive(ctx, upload) // parsed, hashed, cut, compressed, durable; not visible yet
//	info, err := view.Publish(ctx, info)  // visible now
//	nar, err := view.OpenCompressed(ctx, info)
//
// A NAR is cut into chunks ([firn/internal/chunk]). Each chunk becomes one zstd frame, and the new
// frames of an upload go into a pack, which is a blob. The recipe of the NAR says where its frames
// lie. The frames, one after the other, are the compressed NAR, so serving it takes no work.
// docs/format.md describes all formats.
//
// A chunk is looked up by its hash before it is compressed, and is not stored again if it is there.
// If only other caches have the chunk, it is compressed anyway and the result is discarded, so that
// the time of an upload does not reveal that the chunk exists.
//
// A chunk that is there is not read again when a new NAR refers to it. If its pack is damaged on
// disk, the new NAR is damaged too. So whatever [Depot.Verify] or the serving of a NAR finds to be
// damaged is not served any more, and no new NAR refers to it.
package depot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/internal/depot/blob"
	"firn/internal/depot/index"
	"firn/internal/memo"
	"firn/nix"
)

// Options of a Depot. The zero Options will do.
type Options struct {
	// Level of compression on zstd's scale, 1 to 12. Zero: 1.
	Level int
	// MaxNARSize bounds NARs, in bytes. Zero: 64 GiB.
	MaxNARSize int64
	// Grace is how long something stays that nothing refers to. Zero: 24 hours.
	Grace time.Duration
	// RewriteRoom is how many bytes of rewritten packs may wait for the end of their grace before
	// no more packs are rewritten. Zero: 8 GiB. Up to half as much, and one pack more, is on the
	// disk twice.
	RewriteRoom int64
	// RecipeMemory bounds the bytes of recipes in memory. Zero: 32 MiB.
	RecipeMemory int64
	// Spool is the directory where a large build log waits until all of it has come. Empty: the
	// system's directory for temporary files.
	Spool string
	// Logger gets what an operator should know. Nil: nothing is logged.
	Logger *slog.Logger
	// Now is the clock of the sweeps. Nil: time.Now.
	Now func() time.Time
}

const (
	// defaultLevel makes smaller frames than Nix's own caches have, and takes half the time of
	// level 3, whose frames are a twentieth smaller: see docs/adr/0021-chunk-size-and-level.md.
	defaultLevel       = 1
	defaultMaxNARSize  = 64 << 30
	defaultGrace       = 24 * time.Hour
	defaultRewriteRoom = 8 << 30
	defaultMemory      = 32 << 20

	// maxDecoding bounds the memory, in bytes, of all readers of decompressed NARs, not counting
	// the bytes that are on their way to each client.
	maxDecoding = 64 << 20
)

// A Catalog has the records of caches.
type Catalog interface {
	catalog.Database
	catalog.Caches
}

// A Depot keeps NARs. It is safe for concurrent use.
type Depot struct {
	catalog Catalog
	index   index.Index
	blobs   blob.Store
	opts    Options
	log     *slog.Logger

	coders   *coders
	buffers  *bufferPool
	sharing  *sharing
	recipes  *memo.Memo[catalog.Sum, *storedNAR] // costs are bytes
	packs    *packs
	decoding *memoryBudget
	logs     logMemory
	sweeps   sweeps
	absence  absence

	right, wrong atomic.Int64 // NARs that were compared with their hash
}

// New returns a depot on a catalog, an index and a store of packs. The caller closes them, after the depot.
func New(cat Catalog, ix index.Index, blobs blob.Store, opts Options) *Depot {
	opts.Level = cmp.Or(opts.Level, defaultLevel)
	opts.MaxNARSize = cmp.Or(opts.MaxNARSize, defaultMaxNARSize)
	opts.Grace = cmp.Or(opts.Grace, defaultGrace)
	opts.RewriteRoom = cmp.Or(opts.RewriteRoom, defaultRewriteRoom)
	opts.RecipeMemory = cmp.Or(opts.RecipeMemory, defaultMemory)
	if opts.Now == nil {
		opts.Now = time.Now
	}
	return &Depot{
		catalog:  cat,
		index:    ix,
		blobs:    blobs,
		opts:     opts,
		log:      cmp.Or(opts.Logger, slog.New(slog.DiscardHandler)),
		coders:   newCoders(opts.Level),
		buffers:  newBufferPool(runtime.GOMAXPROCS(0)),
		sharing:  newSharing(),
		recipes:  memo.New[catalog.Sum, *storedNAR](opts.RecipeMemory),
		packs:    newPacks(blobs),
		decoding: newMemoryBudget(maxDecoding),
		logs:     newLogMemory(),
	}
}

// Close closes the packs that are open. NARs that are open cannot be read from then on.
func (d *Depot) Close() error { return d.packs.close() }

// For returns the view of the depot that a cache has. It reads only ID and StoreDir of the record.
func (d *Depot) For(c *catalog.Cache) *View {
	return &View{d: d, id: c.ID, dir: c.StoreDir, published: memo.New[nix.PathHash, published](maxPublished), empty: memo.New[struct{}, struct{}](2)}
}

// View is the part of a depot that one cache sees. It is safe for concurrent use.
type View struct {
	d         *Depot
	id        catalog.CacheID
	dir       nix.StoreDir
	published *memo.Memo[nix.PathHash, published]

	there atomic.Bool                    // something was published in it once
	empty *memo.Memo[struct{}, struct{}] // nothing was
}

var (
	_ cache.Receiver  = (*View)(nil)
	_ cache.Publisher = (*View)(nil)
	_ cache.Endorser  = (*View)(nil)
	_ cache.Recorder  = (*View)(nil)

	_ cache.CompressedReceiver = (*View)(nil)
	_ memo.Changes             = (*View)(nil)
	_ cache.Lister             = (*View)(nil)
	_ cache.Logger             = (*View)(nil)
	_ cache.Realiser           = (*View)(nil)
	_ cache.Checker            = (*View)(nil)
	_ cache.Absent             = (*View)(nil)
	_ cache.Enumerator         = (*View)(nil)
	_ cache.DebugInformer      = (*View)(nil)
)

// Name returns "depot".
func (p *View) Name() string { return "depot" }

// StoreDir returns the store directory of the cache.
func (p *View) StoreDir() nix.StoreDir { return p.dir }

// Version changes with every commit to the catalog. It is not known while the packs are not there,
// so that nothing is answered from memory then.
func (p *View) Version(ctx context.Context) memo.Version {
	if p.d.absence.known.Load() {
		return memo.Version{}
	}
	return p.d.catalog.Version(ctx)
}

// Check asks the catalog, and looks whether the packs are there.
func (p *View) Check(ctx context.Context) error {
	err := p.d.catalog.Check(ctx)
	if err == nil {
		err = p.d.look(ctx)
	}
	return failure("check depot", err)
}

// Room returns the room of the depot, which all caches share.
func (p *View) Room(ctx context.Context) (free, all int64, err error) { return p.d.Room(ctx) }

// Verified returns how many NARs of all caches were compared with their hashes while they were
// sent.
func (p *View) Verified() (right, wrong int64) { return p.d.right.Load(), p.d.wrong.Load() }

// IsThere reports whether something is or was published.
func (p *View) IsThere(ctx context.Context) (bool, error) {
	if p.there.Load() {
		return true, nil
	}
	now := p.d.catalog.Version(ctx)
	if _, at, ok := p.empty.Get(struct{}{}); ok && at.Miss(now) {
		return false, nil
	}
	for _, err := range p.d.index.AllPaths(ctx, p.id) {
		p.there.Store(err == nil)
		return err == nil, failure("list paths", err)
	}
	p.empty.Put(struct{}{}, struct{}{}, now, 1)
	return false, nil
}

// full marks an error that was caused by a full disk or quota as ErrFull.
func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", cache.ErrFull, err)
	}
	return err
}

// failure returns an error of the catalog as an error of the core.
func failure(verb string, err error) error {
	if err == nil {
		return nil
	}
	for _, k := range []struct{ in, out error }{
		{catalog.ErrNotFound, cache.ErrNotFound},
		{catalog.ErrConflict, cache.ErrConflict},
		{catalog.ErrGone, cache.ErrUnavailable},
		{catalog.ErrChanged, cache.ErrChanged},
		{catalog.ErrFull, cache.ErrFull},
		{catalog.ErrUnavailable, cache.ErrUnavailable},
	} {
		if errors.Is(err, k.in) {
			return fmt.Errorf("%s: %w: %w", verb, k.out, err)
		}
	}
	return fmt.Errorf("%s: %w", verb, err)
}
