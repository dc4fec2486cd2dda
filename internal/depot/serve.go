package depot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/internal/depot/index"
	"firn/nix"
	"firn/nix/nar"
)

// maxPublished is how many published paths a view remembers, some 200 bytes each.
const maxPublished = 16 << 10

// published is the NAR of a published path.
type published struct {
	nar      catalog.Sum
	fileSize int64
	tag      string
}

// A storedNAR is a NAR that was found in the catalog.
type storedNAR struct {
	*recipe
	id    index.NARID
	hash  catalog.Sum
	fault index.Fault
	right sync.Map // the caches for which this process has compared it with its hash
}

// lookup returns what is known of a NAR, which may be damaged.
func (d *Depot) lookup(ctx context.Context, hash catalog.Sum) (*storedNAR, error) {
	now := d.catalog.Version(ctx)
	k, at, known := d.recipes.Get(hash)
	if known && at.Hit(now) {
		return k, nil
	}
	n, err := d.index.NAR(ctx, hash)
	if err != nil {
		return nil, failure("find NAR", err)
	}
	r, err := parseRecipe(n)
	if err != nil {
		return nil, err
	}
	// The tag stays when frames are moved.
	if !known || k.id != n.ID || k.tag != r.tag || k.fault != n.Fault || !slices.Equal(k.packs, r.packs) || !slices.Equal(k.extents, r.extents) {
		k = &storedNAR{recipe: r, id: n.ID, hash: hash, fault: n.Fault}
	}
	d.recipes.Put(hash, k, now, r.memSize())
	return k, nil
}

// lookupIntact returns what is known of a NAR that is to be sent. It is not found if it is damaged.
func (d *Depot) lookupIntact(ctx context.Context, hash catalog.Sum) (*storedNAR, error) {
	k, err := d.lookup(ctx, hash)
	if err == nil && k.fault != index.Whole {
		return nil, fmt.Errorf("find NAR %x: %w: it is withheld", hash, cache.ErrNotFound)
	}
	return k, err
}

// PathInfo returns what was published.
func (p *View) PathInfo(ctx context.Context, hash nix.PathHash) (*nix.PathInfo, error) {
	path, _, err := p.lookupPath(ctx, hash)
	if errors.Is(err, catalog.ErrNotFound) {
		return nil, missError{hash}
	}
	if err == nil {
		err = p.d.present(ctx)
	}
	if err != nil {
		return nil, failure("look up path hash "+hash.String(), err)
	}
	return &path.Info, nil
}

// lookupPath asks the catalog for a path, and remembers its NAR: a client that asks for a path info
// asks for the NAR next.
func (p *View) lookupPath(ctx context.Context, hash nix.PathHash) (*index.Path, published, error) {
	now := p.d.catalog.Version(ctx)
	path, err := p.d.index.Path(ctx, p.id, hash)
	if err != nil {
		return nil, published{}, err
	}
	s := published{catalog.Sum(path.Info.NARHash.Sum()), path.FileSize, path.Tag}
	p.published.Put(hash, s, now, 1)
	return path, s, nil
}

// lookupPublished returns the NAR that is published now under the path hash of a path info that
// this view gave. It is not found if another NAR is published there.
func (p *View) lookupPublished(ctx context.Context, info *nix.PathInfo) (published, error) {
	if info.NARHash.Algorithm() != nix.SHA256 {
		return published{}, fmt.Errorf("find NAR of %v: %w: its NAR hash is no SHA-256", info.Path, cache.ErrInvalid)
	}
	hash := info.Path.Hash()
	s, at, known := p.published.Get(hash)
	if !known || !at.Hit(p.d.catalog.Version(ctx)) {
		var err error
		if _, s, err = p.lookupPath(ctx, hash); err != nil {
			return published{}, failure(fmt.Sprintf("find NAR of %v", info.Path), err)
		}
	}
	if s.nar != catalog.Sum(info.NARHash.Sum()) {
		return published{}, fmt.Errorf("find NAR of %v: %w: another NAR is published there", info.Path, cache.ErrNotFound)
	}
	return s, nil
}

// missError is the answer to the most frequent question, made without formatting anything.
type missError struct{ hash nix.PathHash }

func (e missError) Error() string { return fmt.Sprintf("look up path hash %v: not found", e.hash) }
func (e missError) Unwrap() error { return cache.ErrNotFound }

// lookupNAR returns the recipe of a NAR that lookupPublished finds.
func (p *View) lookupNAR(ctx context.Context, info *nix.PathInfo) (*storedNAR, error) {
	s, err := p.lookupPublished(ctx, info)
	if err != nil {
		return nil, err
	}
	k, err := p.d.lookupIntact(ctx, s.nar)
	if err != nil {
		return nil, fmt.Errorf("find NAR of %v: %w", info.Path, err)
	}
	return k, nil
}

// WriteListing writes the listing of a published path as JSON. Only the stored form is in memory,
// which is a tenth as large.
func (p *View) WriteListing(ctx context.Context, info *nix.PathInfo, w io.Writer) error {
	k, err := p.lookupNAR(ctx, info)
	if err != nil {
		return err
	}
	text, err := p.d.index.Listing(ctx, k.hash)
	if err != nil {
		return fmt.Errorf("list NAR of %v: %w", info.Path, failure("read listing", err))
	}
	return nar.WriteListing(w, p.d.coders.entries(text))
}

// Compression returns zstd.
func (p *View) Compression() nix.Compression { return nix.Zstd }

// StatCompressed returns the size of the frames of a NAR, and their tag.
func (p *View) StatCompressed(ctx context.Context, info *nix.PathInfo) (int64, string, error) {
	s, err := p.lookupPublished(ctx, info)
	return s.fileSize, s.tag, err
}

// OpenCompressed opens the frames of a NAR, and returns their tag.
func (p *View) OpenCompressed(ctx context.Context, info *nix.PathInfo) (cache.NAR, string, error) {
	k, err := p.lookupNAR(ctx, info)
	if err != nil {
		return nil, "", err
	}
	return &frames{p.open(k)}, k.tag, nil
}

// OpenNAR opens a NAR, to be decompressed while it is sent.
func (p *View) OpenNAR(ctx context.Context, info *nix.PathInfo) (cache.NAR, error) {
	k, err := p.lookupNAR(ctx, info)
	if err != nil {
		return nil, err
	}
	return &plain{p.open(k)}, nil
}

// opened is an open NAR. Its packs are not deleted before it is closed.
type opened struct {
	d     *Depot
	cache catalog.CacheID // that opened it
	*storedNAR
	closed bool
}

func (p *View) open(k *storedNAR) opened {
	p.d.packs.pin(k.packs)
	return opened{d: p.d, cache: p.id, storedNAR: k}
}

// Close lets the packs be deleted.
func (o *opened) Close() error {
	if !o.closed {
		o.closed = true
		o.d.packs.unpin(o.packs)
	}
	return nil
}

func (o *opened) describe(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("write NAR %s: %w", nix.SHA256Sum(o.hash), err)
}

// outside returns an error if a range is not within size bytes.
func outside(off, n, size int64) error {
	if off < 0 || n < 0 || off > size-n {
		return fmt.Errorf("%d bytes from %d on are outside of its %d bytes", n, off, size)
	}
	return nil
}

// buffer is memory for reading packs.
type buffer struct{ buf []byte }

// gathers are buffers that short extents are gathered in.
var gathers = sync.Pool{New: func() any { return &buffer{make([]byte, gatherSize)} }}
