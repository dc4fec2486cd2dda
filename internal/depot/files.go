package depot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"firn/internal/cache"
	"firn/internal/depot/catalog"
	"firn/nix"
)

// maxSignatures is how many signatures a realisation or build trace can have, for nix to parse it.
const maxSignatures = 64

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
