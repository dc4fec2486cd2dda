package depot

import (
	"context"
	"errors"
	"fmt"

	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/internal/depot/index"
	"firn/nix"
)

// Receive reads a NAR and stores it. Of a NAR that is stored already, only the name of the upload
// is added.
//
// The order is that of the promises: the NAR is parsed and hashed to its end; it is compared with
// what the client said of it; the pack becomes durable; and only then the NAR is added to the
// catalog.
func (p *View) Receive(ctx context.Context, u cache.Upload) (cache.Received, error) {
	r, err := p.receive(ctx, u)
	if err != nil {
		return cache.Received{}, fmt.Errorf("receive NAR %q: %w", u.URL, full(err))
	}
	return r, nil
}

func (p *View) receive(ctx context.Context, u cache.Upload) (r cache.Received, err error) {
	if u.NARSize > p.d.opts.MaxNARSize {
		return r, cache.Refuse(cache.ErrTooLarge, "this NAR has more than %d bytes", p.d.opts.MaxNARSize)
	}
	in := p.d.newIngest(ctx, p.id, p.dir, u.NAR)
	defer in.close()
	known := false
	if u.NARHash.Algorithm() == nix.SHA256 {
		// A NAR that is stored already is not cut, but read and checked nevertheless.
		n, err := p.lookupReachable(ctx, catalog.Sum(u.NARHash.Sum()))
		if err != nil {
			return r, err
		}
		known = n != nil
	}
	in.cutting.known = known
	listing, sum, err := in.read()
	if err != nil {
		return r, err
	}
	r = cache.Received{NARHash: nix.SHA256Sum(sum), NARSize: in.cutting.size}
	r.FileHash, r.FileSize = r.NARHash, r.NARSize
	r.Compression = u.Compression
	if u.File != nil {
		if r.FileHash, r.FileSize, err = u.File(); err != nil {
			return r, err
		}
		if r.FileHash.Algorithm() != nix.SHA256 {
			return r, fmt.Errorf("%w: %v is no SHA-256", cache.ErrInvalid, r.FileHash)
		}
	}
	if !u.NARHash.IsZero() && u.NARHash != r.NARHash {
		return r, cache.Refuse(cache.ErrInvalid, "this NAR has the hash %v, not %v", r.NARHash, u.NARHash)
	}
	if u.NARSize != 0 && u.NARSize != r.NARSize {
		return r, cache.Refuse(cache.ErrInvalid, "this NAR has %d bytes, not %d", r.NARSize, u.NARSize)
	}
	upload := &index.Upload{
		Cache: p.id, Name: u.URL,
		NARHash: sum, NARSize: r.NARSize,
		FileHash: catalog.Sum(r.FileHash.Sum()), FileSize: r.FileSize,
		Compression: string(u.Compression),
	}
	if upload.Name == "" {
		upload.Name = "nar/" + r.NARHash.Nix32() + ".nar"
	}
	there, err := p.addUpload(ctx, upload)
	if err != nil || there {
		return r, err
	}
	if known {
		return r, fmt.Errorf("%w: the NAR was removed while it was sent; send it again", cache.ErrUnavailable)
	}
	return r, p.add(ctx, in, upload, listing)
}

// lookupReachable returns an intact NAR that is reachable from this cache, or nil. A NAR that only
// other caches have takes as long as one that no cache has.
func (p *View) lookupReachable(ctx context.Context, hash catalog.Sum) (*index.NAR, error) {
	n, err := p.d.index.NAR(ctx, hash)
	if errors.Is(err, catalog.ErrNotFound) {
		return nil, nil
	}
	leads := false
	if err == nil && n.Fault == index.Whole {
		leads, err = p.d.index.Reaches(ctx, p.id, n.ID)
	}
	if err != nil {
		return nil, failure("look up NAR", err)
	}
	if !leads {
		return nil, nil
	}
	r, err := parseRecipe(n)
	if err != nil {
		return nil, err
	}
	if err := p.d.checkIntact(ctx, hash, r); errors.Is(err, cache.ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return n, nil
}

// addUpload adds an upload of a NAR that is reachable from this cache, and reports whether it is.
func (p *View) addUpload(ctx context.Context, u *index.Upload) (bool, error) {
	n, err := p.lookupReachable(ctx, u.NARHash)
	if n == nil {
		return false, err
	}
	u.NAR = n.ID
	err = p.d.index.AddUpload(ctx, u)
	if errors.Is(err, catalog.ErrGone) {
		return false, nil
	}
	return err == nil, failure("add upload", err)
}

// add adds the NAR to the catalog, once its frames are durable.
func (p *View) add(ctx context.Context, in *ingest, u *index.Upload, listing []byte) error {
	if err := in.commit(); err != nil {
		return err
	}
	packed := &in.packing
	u.Uses = packed.uses
	added, err := packed.register(u, listing)
	for range maxRelocations {
		if !errors.Is(err, catalog.ErrGone) {
			break
		}
		moved, failed := packed.relocate(p.id)
		if failed != nil || !moved {
			break
		}
		added, err = packed.register(u, listing)
	}
	// After any other error the NAR may be there, and need its pack. If it is not there, a sweep
	// finds the pack.
	if packed.own >= 0 && (added || err != nil && !errors.Is(err, catalog.ErrGone)) {
		p.d.sharing.need(packed.to, packed.written)
	}
	if err == nil && added {
		p.d.recipes.Remove(u.NARHash) // that of a NAR that was damaged
	}
	return failure("add NAR", err)
}

// register adds the NAR to the catalog, and reports whether it was not there before.
func (p *packing) register(u *index.Upload, listing []byte) (added bool, err error) {
	n := &index.NewNAR{
		NAR:     index.NAR{Hash: u.NARHash, Size: u.NARSize, Packs: p.packs},
		Pack:    p.pack(),
		Chunks:  p.chunks,
		Built:   p.reused,
		Listing: listing,
		Upload:  u,
	}
	for _, f := range p.frames {
		n.FileSize += int64(f.length)
	}
	n.Recipe = appendRecipe(nil, p.frames)
	n.Tag = newTag(n.Recipe, n.Packs)
	_, added, err = p.d.index.AddNAR(p.ctx, n)
	return added, err
}

// discard deletes a pack that no record names.
func (d *Depot) discard(ctx context.Context, name string) {
	if err := d.blobs.Delete(context.WithoutCancel(ctx), name); err != nil {
		d.log.Warn("could not delete an unneeded pack; the next sweep will", "pack", name, "error", err)
	}
}
