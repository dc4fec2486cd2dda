package depot

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"

	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/internal/depot/index"
	"firn/nix"
	"firn/nix/nar"
)

// Received returns what an upload brought. A NAR that is damaged by now is not found, so that the
// client sends it again.
func (p *View) Received(ctx context.Context, url string) (cache.Received, error) {
	u, err := p.d.index.Upload(ctx, p.id, url)
	if err != nil {
		return cache.Received{}, failure(fmt.Sprintf("look up upload %q", url), err)
	}
	r := cache.Received{
		NARHash: nix.SHA256Sum(u.NARHash), NARSize: u.NARSize,
		FileHash: nix.SHA256Sum(u.FileHash), FileSize: u.FileSize,
		Published: u.Published, Compression: nix.Compression(u.Compression),
	}
	k, err := p.d.lookupIntact(ctx, u.NARHash)
	if err == nil {
		err = p.d.checkIntact(ctx, k.hash, k.recipe)
	}
	if err != nil {
		return r, fmt.Errorf("look up upload %q: %w", url, err)
	}
	return r, nil
}

// Renew begins the grace of an upload again.
func (p *View) Renew(ctx context.Context, url string) error {
	u, err := p.d.index.Upload(ctx, p.id, url)
	if err == nil {
		err = p.d.index.AddUpload(ctx, u)
	}
	if errors.Is(err, catalog.ErrGone) {
		return fmt.Errorf("renew upload %q: %w: %w", url, cache.ErrNotFound, err)
	}
	return failure(fmt.Sprintf("renew upload %q", url), err)
}

// OpenReceived opens a NAR that Received returned, to be decompressed while it is sent.
func (p *View) OpenReceived(ctx context.Context, r cache.Received) (cache.NAR, error) {
	k, err := p.lookupOwned(ctx, r.NARHash)
	if err != nil {
		return nil, fmt.Errorf("open NAR %v: %w", r.NARHash, err)
	}
	return &plain{p.open(k)}, nil
}

// OpenReceivedCompressed opens the frames of a NAR that Received returned.
func (p *View) OpenReceivedCompressed(ctx context.Context, r cache.Received) (cache.NAR, string, error) {
	k, err := p.lookupOwned(ctx, r.NARHash)
	if err != nil {
		return nil, "", fmt.Errorf("open NAR %v: %w", r.NARHash, err)
	}
	return &frames{p.open(k)}, k.tag, nil
}

// lookupOwned returns a NAR that was sent to this cache. It does not reveal which NARs other caches
// have.
func (p *View) lookupOwned(ctx context.Context, hash nix.Hash) (*storedNAR, error) {
	if hash.Algorithm() != nix.SHA256 {
		return nil, fmt.Errorf("%w: it is no SHA-256", cache.ErrNotFound)
	}
	k, err := p.d.lookupIntact(ctx, catalog.Sum(hash.Sum()))
	if err != nil {
		return nil, err
	}
	leads, err := p.d.index.Reaches(ctx, p.id, k.id)
	if err != nil {
		return nil, failure("look up uploads", err)
	}
	if !leads {
		return nil, cache.ErrNotFound
	}
	return k, nil
}

// Publish makes a path visible, with the debug information in its NAR.
func (p *View) Publish(ctx context.Context, info *nix.PathInfo, b cache.Basis, elsewhere ...nix.StorePath) (*nix.PathInfo, error) {
	there, err := p.publish(ctx, info, b, elsewhere)
	if err != nil {
		return nil, fmt.Errorf("publish %v: %w", info.Path, err)
	}
	return there, nil
}

func (p *View) publish(ctx context.Context, info *nix.PathInfo, b cache.Basis, elsewhere []nix.StorePath) (*nix.PathInfo, error) {
	k, err := p.lookupOwned(ctx, info.NARHash)
	if err == nil {
		err = p.d.checkIntact(ctx, k.hash, k.recipe)
	}
	if err != nil {
		return nil, err
	}
	if k.size != info.NARSize {
		return nil, fmt.Errorf("%w: its NAR has %d bytes, not %d", cache.ErrNotFound, k.size, info.NARSize)
	}
	debug, err := p.d.debugInfo(ctx, k.hash, info.Path.Hash())
	if err != nil {
		return nil, err
	}
	there, _, err := p.d.index.Publish(ctx, p.id, &index.Path{Info: *info, NAR: k.id, Elsewhere: elsewhere, By: cache.PublishedBy(ctx)}, debug, indexBasis(b))
	if errors.Is(err, catalog.ErrGone) {
		return nil, fmt.Errorf("%w: %w", cache.ErrNotFound, err)
	}
	if err != nil {
		return nil, failure("write catalog", err)
	}
	p.there.Store(true)
	return &there.Info, nil
}

// Endorse keeps signatures of a path that another source has.
func (p *View) Endorse(ctx context.Context, info *nix.PathInfo, sigs []nix.Signature) error {
	return failure("keep signatures", p.d.index.Endorse(ctx, p.id, info.Path.Hash(), catalog.Sum(info.NARHash.Sum()), sigs))
}

// Endorsements returns the signatures and fields that were pushed for a path that another source
// has.
func (p *View) Endorsements(ctx context.Context, info *nix.PathInfo) ([]nix.Signature, []nix.Field, error) {
	sigs, fields, err := p.d.index.EndorsementsOf(ctx, p.id, info.Path.Hash(), catalog.Sum(info.NARHash.Sum()))
	return sigs, fields, failure("look up signatures", err)
}

// Basis returns what is compared when something is kept.
func (p *View) Basis(ctx context.Context, hash nix.PathHash) (cache.Basis, error) {
	b, err := p.d.index.Basis(ctx, p.id, hash)
	return cache.Basis{Paths: b.Paths, Deletions: b.Deletions, Dangling: b.Referred}, failure("look up references to "+hash.String(), err)
}

// indexBasis is a basis as the index has it.
func indexBasis(b cache.Basis) index.Basis {
	return index.Basis{Paths: b.Paths, Deletions: b.Deletions, Referred: b.Dangling, Visited: b.Visited, Partial: b.Partial}
}

// References returns what published paths refer to.
func (p *View) References(ctx context.Context, hashes []nix.PathHash) iter.Seq2[cache.Referrer, error] {
	return func(yield func(cache.Referrer, error) bool) {
		for r, err := range p.d.index.ReferencesOf(ctx, p.id, hashes) {
			if !yield(cache.Referrer(r), failure("look up references", err)) {
				return
			}
		}
	}
}

// DanglingReferences iterates over what published paths refer to and is not published itself.
func (p *View) DanglingReferences(ctx context.Context) iter.Seq2[cache.Reference, error] {
	return func(yield func(cache.Reference, error) bool) {
		for r, err := range p.d.index.DanglingReferences(ctx, p.id) {
			if err != nil {
				yield(cache.Reference{}, failure("list references", err))
				return
			}
			if !yield(cache.Reference(r), nil) {
				return
			}
		}
	}
}

// WithheldPaths iterates over the published paths whose NARs are damaged.
func (p *View) WithheldPaths(ctx context.Context) iter.Seq2[nix.StorePath, error] {
	return func(yield func(nix.StorePath, error) bool) {
		for path, err := range p.d.index.WithheldPaths(ctx, p.id) {
			if err != nil {
				yield(nix.StorePath{}, failure("list withheld paths", err))
				return
			}
			if !yield(path.Info.Path, nil) {
				return
			}
		}
	}
}

// debugDir is where files with debug information are, named by their build IDs: xx/yyy….debug.
const debugDir = "lib/debug/.build-id/"

// maxDebug bounds the files with debug information that can be found of one path. Each takes some
// 300 bytes of memory and a row in the catalog. A NAR may have a million of them, and all pushes
// wait for their transaction. A kernel with all its modules has some thousands.
const maxDebug = 16 << 10

// debugInfo returns the debug information in a NAR, maxDebug files at most.
func (d *Depot) debugInfo(ctx context.Context, hash catalog.Sum, path nix.PathHash) (found []index.DebugInfo, err error) {
	// A listing may be large, and many paths be published at once.
	d.coders.work(func() {
		var text []byte
		if text, err = d.index.Listing(ctx, hash); err != nil {
			err = failure("read listing", err)
			return
		}
		for h, wrong := range d.coders.entries(text) {
			if wrong != nil {
				err = wrong
				return
			}
			if id, ok := buildID(h); ok {
				found = append(found, index.DebugInfo{BuildID: id, Path: path, Member: h.Path})
				if len(found) == maxDebug {
					return
				}
			}
		}
	})
	return found, err
}

// buildID returns the build ID of a file with debug information.
func buildID(h *nar.Header) (string, bool) {
	name, ok := strings.CutPrefix(h.Path, debugDir)
	if !ok || h.Type != nar.TypeRegular || len(name) != 2+1+38+len(".debug") || name[2] != '/' || !strings.HasSuffix(name, ".debug") {
		return "", false
	}
	id := name[:2] + name[3:41]
	return id, isBuildID(id)
}

// isBuildID reports whether s is 40 lower-case hexadecimal digits.
func isBuildID(s string) bool { return len(s) == 40 && strings.Trim(s, "0123456789abcdef") == "" }

// DebugInfo returns the path and the file that have the debug information of a build ID.
func (p *View) DebugInfo(ctx context.Context, buildID string) (nix.PathHash, string, error) {
	if !isBuildID(buildID) {
		return nix.PathHash{}, "", fmt.Errorf("find build ID %q: %w", buildID, cache.ErrNotFound)
	}
	found, err := p.d.index.DebugInfo(ctx, p.id, buildID)
	if err != nil {
		return nix.PathHash{}, "", failure("find build ID "+buildID, err)
	}
	return found.Path, found.Member, nil
}
