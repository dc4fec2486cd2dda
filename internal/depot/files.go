package depot

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"firn/internal/cache"
	"firn/internal/depot/index"
	"firn/nix"
)

// maxSignatures is how many signatures a realisation or build trace can have, for nix to parse it.
const maxSignatures = 64

func realisationKey(id nix.RealisationID) string { return "realisations/" + id.String() + ".doi" }

func traceKey(drv nix.StorePath, output string) string {
	return "build-trace-v2/" + drv.Base() + "/" + output + ".doi"
}

// Realisation returns what was kept of an output.
func (p *View) Realisation(ctx context.Context, id nix.RealisationID) (*nix.Realisation, error) {
	text, err := p.d.index.File(ctx, p.id, realisationKey(id))
	if err != nil {
		return nil, failure(fmt.Sprintf("find realisation %v", id), err)
	}
	return nix.ParseRealisation(p.dir, text)
}

// BuildTrace returns what was kept of an output.
func (p *View) BuildTrace(ctx context.Context, drv nix.StorePath, output string) (*nix.BuildTrace, error) {
	text, err := p.d.index.File(ctx, p.id, traceKey(drv, output))
	if err != nil {
		return nil, failure(fmt.Sprintf("find build trace of %v!%s", drv, output), err)
	}
	return nix.ParseBuildTrace(drv, output, text)
}

// PutRealisation keeps a realisation, or adds its signatures to the one that says the same.
func (p *View) PutRealisation(ctx context.Context, r *nix.Realisation, b cache.Basis) error {
	err := p.update(ctx, realisationKey(r.ID), r.OutPath, b, func(text []byte) ([]byte, error) {
		if text == nil {
			return encodeJSON(r)
		}
		old, err := nix.ParseRealisation(p.dir, text)
		if err != nil || !bytes.Equal(old.AppendFingerprint(nil), r.AppendFingerprint(nil)) {
			return nil, err
		}
		merged := *old
		if merged.Signatures, err = merge(old.Signatures, r.Signatures); err != nil {
			return nil, err
		}
		return encodeJSON(&merged)
	})
	if err != nil {
		return fmt.Errorf("keep realisation %v: %w", r.ID, err)
	}
	return nil
}

// PutBuildTrace keeps a build trace, or adds its signatures to the one that says the same.
func (p *View) PutBuildTrace(ctx context.Context, t *nix.BuildTrace, b cache.Basis) error {
	err := p.update(ctx, traceKey(t.Drv, t.Output), t.OutPath, b, func(text []byte) ([]byte, error) {
		if text == nil {
			return encodeJSON(t)
		}
		old, err := nix.ParseBuildTrace(t.Drv, t.Output, text)
		if err != nil || old.OutPath != t.OutPath {
			return nil, err
		}
		merged := *old
		if merged.Signatures, err = merge(old.Signatures, t.Signatures); err != nil {
			return nil, err
		}
		return encodeJSON(&merged)
	})
	if err != nil {
		return fmt.Errorf("keep build trace of %v!%s: %w", t.Drv, t.Output, err)
	}
	return nil
}

// update changes what is kept under a key, which says that a path was built, to what change makes
// of it, as [index.Files] says.
func (p *View) update(ctx context.Context, key string, built nix.StorePath, b cache.Basis, change func(old []byte) ([]byte, error)) error {
	var refused error
	err := p.d.index.UpdateFile(ctx, p.id, &index.File{Key: key, Path: built}, indexBasis(b), func(old []byte) (text []byte, _ error) {
		text, refused = change(old)
		return text, refused
	})
	if refused != nil {
		return refused
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

// merge returns old signatures and new ones.
func merge(old, more []nix.Signature) ([]nix.Signature, error) {
	all := slices.Clone(old)
	for _, s := range more {
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	if len(all) > maxSignatures {
		return nil, cache.Refuse(cache.ErrInvalid, "signatures: with these, there would be more than %d", maxSignatures)
	}
	return all, nil
}
