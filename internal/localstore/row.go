package localstore

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"firn/internal/cache"
	"firn/nix"
)

// row is what the database or the daemon says of a store path, as text.
type row struct {
	path       string
	hash       string // sha256:<base 16>
	registered int64  // seconds since 1970
	deriver    string // full path, "" if unknown
	narSize    int64
	ultimate   bool
	signatures []string
	ca         string
	references []string // full paths
}

// rowError says that a path cannot be served because of what the database says of it.
type rowError struct {
	path  string
	cause error
}

func (e *rowError) Error() string {
	return fmt.Sprintf("read path info of %q: %v: not found", e.path, e.cause)
}
func (e *rowError) Unwrap() []error { return []error{cache.ErrNotFound, e.cause} }

// pathInfo parses the row; any error is a rowError.
// A deriver, signature or content address that is malformed, or not the path's own, is left out: a path is right
// without it, and handed on it would make a client refuse the whole narinfo, or the path.
func (r *row) pathInfo(dir nix.StoreDir) (*nix.PathInfo, error) {
	info, err := r.parse(dir)
	if err != nil {
		return nil, &rowError{r.path, err}
	}
	return info, nil
}

func (r *row) parse(dir nix.StoreDir) (*nix.PathInfo, error) {
	path, err := dir.ParsePath(r.path)
	if err != nil {
		return nil, err
	}
	hash, err := nix.ParseHash(r.hash)
	if err != nil {
		return nil, err
	}
	if hash.Algorithm() != nix.SHA256 {
		return nil, fmt.Errorf("NAR hash %v is not a SHA-256", hash)
	}
	if r.narSize <= 0 {
		return nil, errors.New("the NAR size is not known")
	}
	info := &nix.PathInfo{
		Path:             path,
		NARHash:          hash,
		NARSize:          r.narSize,
		RegistrationTime: time.Unix(r.registered, 0),
		Ultimate:         r.ultimate,
	}
	if len(r.references) > 0 {
		info.References = make([]nix.StorePath, 0, len(r.references))
	}
	for _, text := range r.references {
		ref, err := dir.ParsePath(text)
		if err != nil {
			return nil, fmt.Errorf("reference: %w", err)
		}
		info.References = append(info.References, ref)
	}
	info.References = nix.SortPaths(info.References)
	if r.deriver != "" {
		info.Deriver, _ = dir.ParsePath(r.deriver)
	}
	if r.ca != "" {
		info.CA, _ = nix.ParseContentAddress(r.ca)
		if info.CheckContentAddress() != nil {
			info.CA = nix.ContentAddress{}
		}
	}
	info.Signatures = parseSignatures(r.signatures)
	return info, nil
}

// parseSignatures leaves out what is malformed, and what is there twice.
func parseSignatures(texts []string) []nix.Signature {
	var sigs []nix.Signature
	for _, text := range texts {
		if sig, err := nix.ParseSignature(text); err == nil && !slices.Contains(sigs, sig) {
			sigs = append(sigs, sig)
		}
	}
	return sigs
}
