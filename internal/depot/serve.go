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
	"firn/nix"
	"firn/nix/nar"
)

// maxSeen is how many published paths a part remembers, some 200 bytes each.
const maxSeen = 16 << 10

// A sighting is what was published under a path hash.
type sighting struct {
	nar      catalog.Sum
	fileSize int64
	tag      string // of the NAR; "" if an older firn kept it
}

// kept is a NAR that was found in the catalog.
type kept struct {
	*recipe
	id    catalog.NARID
	hash  catalog.Sum
	fault catalog.Fault
	right sync.Map // the caches for which it was compared with its hash by this process
}

// find returns what is kept of a NAR.
func (d *Depot) find(ctx context.Context, hash catalog.Sum) (*kept, error) {
	now := d.version()
	k, at, known := d.recipes.Get(hash)
	if known && at.Hit(now) {
		return k, nil
	}
	n, err := d.catalog.NAR(ctx, hash)
	if err != nil {
		return nil, failure("find NAR", err)
	}
	r, err := parseRecipe(n)
	if err != nil {
		return nil, err
	}
	// The tag stays when frames are moved.
	if !known || k.id != n.ID || k.tag != r.tag || k.fault != n.Fault || !slices.Equal(k.packs, r.packs) || !slices.Equal(k.extents, r.extents) {
		k = &kept{recipe: r, id: n.ID, hash: hash, fault: n.Fault}
	}
	d.recipes.Put(hash, k, now, r.memSize())
	return k, nil
}

// whole is find for a NAR that is to be sent.
func (d *Depot) whole(ctx context.Context, hash catalog.Sum) (*kept, error) {
	k, err := d.find(ctx, hash)
	if err == nil && k.fault != catalog.Whole {
		return nil, fmt.Errorf("find NAR %x: %w: it is withheld", hash, cache.ErrNotFound)
	}
	return k, err
}

// PathInfo returns what was published.
func (p *View) PathInfo(ctx context.Context, hash nix.PathHash) (*nix.PathInfo, error) {
	path, _, err := p.look(ctx, hash)
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

// look asks the catalog for a path, and remembers what else it says of it: who asks for a path info asks for that next.
func (p *View) look(ctx context.Context, hash nix.PathHash) (*catalog.Path, sighting, error) {
	now := p.d.version()
	path, err := p.d.catalog.Path(ctx, p.id, hash)
	if err != nil {
		return nil, sighting{}, err
	}
	s := sighting{catalog.Sum(path.Info.NARHash.Sum()), path.FileSize, path.Tag}
	p.seen.Put(hash, s, now, 1)
	return path, s, nil
}

// sight returns what is published now under the path hash of a path info that this part gave, if it is still the same.
func (p *View) sight(ctx context.Context, info *nix.PathInfo) (sighting, error) {
	if info.NARHash.Algorithm() != nix.SHA256 {
		return sighting{}, fmt.Errorf("find NAR of %v: %w: its NAR hash is no SHA-256", info.Path, cache.ErrInvalid)
	}
	hash := info.Path.Hash()
	s, at, known := p.seen.Get(hash)
	if !known || !at.Hit(p.d.version()) {
		var err error
		if _, s, err = p.look(ctx, hash); err != nil {
			return sighting{}, failure(fmt.Sprintf("find NAR of %v", info.Path), err)
		}
	}
	if s.nar != catalog.Sum(info.NARHash.Sum()) {
		return sighting{}, fmt.Errorf("find NAR of %v: %w: it is another one", info.Path, cache.ErrNotFound)
	}
	return s, nil
}

// missError is the answer to the most frequent question, made without formatting anything.
type missError struct{ hash nix.PathHash }

func (e missError) Error() string { return fmt.Sprintf("look up path hash %v: not found", e.hash) }
func (e missError) Unwrap() error { return cache.ErrNotFound }

// published returns the NAR of a path info that this part gave, if it is still published.
func (p *View) published(ctx context.Context, info *nix.PathInfo) (*kept, error) {
	s, err := p.sight(ctx, info)
	if err != nil {
		return nil, err
	}
	k, err := p.d.whole(ctx, s.nar)
	if err != nil {
		return nil, fmt.Errorf("find NAR of %v: %w", info.Path, err)
	}
	return k, nil
}

// WriteListing writes the listing of a published path as JSON. In memory is only the form in which it is kept, which takes a tenth.
func (p *View) WriteListing(ctx context.Context, info *nix.PathInfo, w io.Writer) error {
	k, err := p.published(ctx, info)
	if err != nil {
		return err
	}
	text, err := p.d.catalog.Listing(ctx, k.hash)
	if err != nil {
		return fmt.Errorf("list NAR of %v: %w", info.Path, failure("read listing", err))
	}
	return nar.WriteListing(w, p.d.coders.entries(text))
}

// Compression returns zstd.
func (p *View) Compression() nix.Compression { return nix.Zstd }

// StatCompressed returns the size of the frames of a NAR, and a tag that is another one if they are others.
func (p *View) StatCompressed(ctx context.Context, info *nix.PathInfo) (int64, string, error) {
	s, err := p.sight(ctx, info)
	if err != nil {
		return 0, "", err
	}
	if s.tag != "" {
		return s.fileSize, s.tag, nil
	}
	k, err := p.published(ctx, info)
	if err != nil {
		return 0, "", err
	}
	return k.fileSize, k.tag, nil
}

// OpenCompressed opens the frames of a NAR, and returns their tag.
func (p *View) OpenCompressed(ctx context.Context, info *nix.PathInfo) (cache.NAR, string, error) {
	k, err := p.published(ctx, info)
	if err != nil {
		return nil, "", err
	}
	return &frames{p.open(k)}, k.tag, nil
}

// OpenNAR opens a NAR, to be decompressed while it is sent.
func (p *View) OpenNAR(ctx context.Context, info *nix.PathInfo) (cache.NAR, error) {
	k, err := p.published(ctx, info)
	if err != nil {
		return nil, err
	}
	return &plain{p.open(k)}, nil
}

// opened is a NAR that is open, and keeps its packs from being deleted.
type opened struct {
	d     *Depot
	cache catalog.CacheID // whose it is, of those that have it
	*kept
	closed bool
}

func (p *View) open(k *kept) opened {
	p.d.packs.pin(k.packs)
	return opened{d: p.d, cache: p.id, kept: k}
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
		return fmt.Errorf("%d bytes from %d on are not within its %d bytes", n, off, size)
	}
	return nil
}

// buffer is memory for reading packs.
type buffer struct{ buf []byte }

// gathers are buffers that short extents are gathered in.
var gathers = sync.Pool{New: func() any { return &buffer{make([]byte, gatherSize)} }}
