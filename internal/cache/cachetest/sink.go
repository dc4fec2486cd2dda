package cachetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"path"
	"slices"

	"firn/internal/cache"
	"firn/nix"
	"firn/nix/nar"
)

var (
	_ cache.Receiver      = (*Memory)(nil)
	_ cache.Publisher     = (*Memory)(nil)
	_ cache.Endorser      = (*Memory)(nil)
	_ cache.Recorder      = (*Memory)(nil)
	_ cache.DebugInformer = (*Memory)(nil)
)

// Receive implements [cache.Receiver].
func (m *Memory) Receive(ctx context.Context, u cache.Upload) (cache.Received, error) {
	archive, err := readNAR(ctx, u)
	if err != nil {
		return cache.Received{}, fmt.Errorf("receive %q: %w", u.URL, err)
	}
	hash := nix.SHA256Sum(sha256.Sum256(archive))
	r := cache.Received{NARHash: hash, NARSize: int64(len(archive)), FileHash: hash, FileSize: int64(len(archive)), Compression: u.Compression}
	if u.File != nil {
		if r.FileHash, r.FileSize, err = u.File(); err != nil {
			return cache.Received{}, fmt.Errorf("receive %q: %w", u.URL, err)
		}
	}
	if !u.NARHash.IsZero() && u.NARHash != hash || u.NARSize != 0 && u.NARSize != r.NARSize {
		return cache.Received{}, cache.Refuse(cache.ErrInvalid, "this NAR has %d bytes and the hash %s, not %d bytes and %s",
			r.NARSize, hash, u.NARSize, u.NARHash)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failure != nil {
		return cache.Received{}, m.failure
	}
	m.nars[hash] = archive
	if u.URL != "" {
		m.uploads[u.URL] = r
	}
	return r, nil
}

// readNAR reads a NAR to its end.
func readNAR(ctx context.Context, u cache.Upload) ([]byte, error) {
	var archive bytes.Buffer
	r := nar.NewReader(io.TeeReader(u.NAR, &archive))
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		_, err := r.Next()
		if errors.Is(err, io.EOF) {
			err = r.CheckEnd()
			if err == nil {
				return archive.Bytes(), nil
			}
		}
		if wrong, ok := errors.AsType[*nar.FormatError](err); ok {
			return nil, cache.Refuse(cache.ErrInvalid, "this is no NAR that Nix would take: %s", wrong)
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, cache.Refuse(cache.ErrInvalid, "this NAR ends too early: %s", err)
		}
		if err != nil {
			return nil, err
		}
	}
}

// Received implements [cache.Receiver].
func (m *Memory) Received(ctx context.Context, url string) (cache.Received, error) {
	r, err := get(ctx, m, m.uploads, url)
	if err != nil {
		return r, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.paths {
		r.Published = r.Published || p.Info.NARHash == r.NARHash
	}
	return r, nil
}

// Renew implements [cache.Receiver]. Nothing goes by itself.
func (m *Memory) Renew(ctx context.Context, url string) error {
	_, err := m.Received(ctx, url)
	return err
}

// OpenReceived implements [cache.Receiver].
func (m *Memory) OpenReceived(ctx context.Context, r cache.Received) (cache.NAR, error) {
	archive, err := get(ctx, m, m.nars, r.NARHash)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.open++
	return &memoryNAR{m, Path{new(nix.PathInfo), archive}}, nil
}

// Room implements [cache.Receiver]: it cannot be told.
func (m *Memory) Room(context.Context) (free, all int64, err error) { return 0, 0, nil }

// Publish implements [cache.Publisher].
func (m *Memory) Publish(ctx context.Context, info *nix.PathInfo, b cache.Basis, elsewhere ...nix.StorePath) (*nix.PathInfo, error) {
	archive, err := get(ctx, m, m.nars, info.NARHash)
	if err != nil {
		return nil, err
	}
	if int64(len(archive)) != info.NARSize {
		return nil, fmt.Errorf("publish %s: %w: no NAR of %d bytes", info.Path, cache.ErrNotFound, info.NARSize)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	there, ok := m.paths[info.Path.Hash()]
	if ok {
		if there.Info.NARHash != info.NARHash {
			return there.Info, nil
		}
		merged := *there.Info
		merged.Signatures = merge(merged.Signatures, info.Signatures)
		info = &merged
	} else if m.differs(info, b) {
		return nil, fmt.Errorf("publish %s: %w", info.Path, cache.ErrChanged)
	}
	m.version++
	if ok {
		m.paths[info.Path.Hash()] = Path{info, archive}
	} else {
		m.add(Path{info, archive})
	}
	for _, ref := range elsewhere {
		m.elsewhere[ref] = append(m.elsewhere[ref], info.Path)
	}
	return info, nil
}

// Endorse implements [cache.Endorser].
func (m *Memory) Endorse(_ context.Context, info *nix.PathInfo, sigs []nix.Signature) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failure != nil {
		return m.failure
	}
	if m.endorsed == nil {
		m.endorsed = map[nix.PathHash]nix.PathInfo{}
	}
	e := m.endorsed[info.Path.Hash()]
	if e.NARHash != info.NARHash {
		e = nix.PathInfo{NARHash: info.NARHash}
	}
	e.Signatures = merge(e.Signatures, sigs)
	m.endorsed[info.Path.Hash()] = e
	m.version++
	return nil
}

// Endorsements implements [cache.Endorser].
func (m *Memory) Endorsements(_ context.Context, info *nix.PathInfo) (sigs []nix.Signature, fields []nix.Field, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p, ok := m.paths[info.Path.Hash()]; ok && p.Info.NARHash == info.NARHash {
		sigs, fields = slices.Clone(p.Info.Signatures), p.Info.Extra
	}
	if e := m.endorsed[info.Path.Hash()]; e.NARHash == info.NARHash {
		sigs = append(sigs, e.Signatures...)
	}
	return sigs, fields, m.failure
}

// differs reports whether what a path was checked for has changed since. It is called with mu held.
func (m *Memory) differs(info *nix.PathInfo, b cache.Basis) bool {
	for hash := range b.Visited {
		if _, there := m.paths[hash]; there && m.rows[hash] > b.Paths {
			return true
		}
	}
	return b.Visited == nil && m.dangling[info.Path.Hash()] || slices.ContainsFunc(info.References, func(ref nix.StorePath) bool {
		return ref != info.Path && m.lacks(ref, b)
	})
}

// lacks reports whether a path is not there that may have been deleted since. It is called with mu
// held.
func (m *Memory) lacks(path nix.StorePath, b cache.Basis) bool {
	_, there := m.paths[path.Hash()]
	return !there && !b.Partial && b.Deletions != m.removed
}

// Basis implements [cache.Publisher].
func (m *Memory) Basis(ctx context.Context, hash nix.PathHash) (cache.Basis, error) {
	if err := ctx.Err(); err != nil {
		return cache.Basis{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return cache.Basis{Paths: int64(m.version), Deletions: m.removed, Dangling: m.dangling[hash]}, m.failure
}

// References implements [cache.Publisher].
func (m *Memory) References(ctx context.Context, hashes []nix.PathHash) iter.Seq2[cache.Referrer, error] {
	return func(yield func(cache.Referrer, error) bool) {
		for _, hash := range hashes {
			p, err := get(ctx, m, m.paths, hash)
			if errors.Is(err, cache.ErrNotFound) {
				continue
			}
			r := cache.Referrer{}
			if err == nil {
				r.Path, r.References = p.Info.Path, p.Info.References
			}
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}

// merge returns the signatures of both.
func merge(old, more []nix.Signature) []nix.Signature {
	all := slices.Clone(old)
	for _, s := range more {
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all
}

// PutLog implements [cache.Recorder].
func (m *Memory) PutLog(_ context.Context, drv nix.StorePath, log io.Reader) error {
	text, err := io.ReadAll(log)
	if err != nil {
		return err
	}
	m.AddLog(drv, text)
	return nil
}

// PutRealisation implements [cache.Recorder].
func (m *Memory) PutRealisation(_ context.Context, r *nix.Realisation, b cache.Basis) error {
	return m.put(r.OutPath, b, func() {
		if old, ok := m.realisations[r.ID]; ok {
			if !bytes.Equal(old.AppendFingerprint(nil), r.AppendFingerprint(nil)) {
				return
			}
			merged := *old
			merged.Signatures = merge(old.Signatures, r.Signatures)
			r = &merged
		}
		m.realisations[r.ID] = r
	})
}

// PutBuildTrace implements [cache.Recorder].
func (m *Memory) PutBuildTrace(_ context.Context, t *nix.BuildTrace, b cache.Basis) error {
	return m.put(t.OutPath, b, func() {
		key := t.Drv.Base() + "!" + t.Output
		if old, ok := m.traces[key]; ok {
			if old.OutPath != t.OutPath {
				return
			}
			merged := *old
			merged.Signatures = merge(old.Signatures, t.Signatures)
			t = &merged
		}
		m.traces[key] = t
	})
}

// put has do keep something that says that a path was built.
func (m *Memory) put(built nix.StorePath, b cache.Basis, do func()) (err error) {
	m.change(func() {
		if m.lacks(built, b) {
			err = cache.ErrChanged
			return
		}
		do()
	})
	return err
}

// DebugInfo implements [cache.DebugInformer], by looking through everything.
func (m *Memory) DebugInfo(_ context.Context, buildID string) (nix.PathHash, string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	member := path.Join("lib/debug/.build-id", buildID[:2], buildID[2:]+".debug")
	for hash, p := range m.paths {
		listing, err := list(p.NAR)
		if err != nil {
			return nix.PathHash{}, "", err
		}
		for _, e := range listing.Entries {
			if e.Path == member && e.Type == nar.TypeRegular {
				return hash, e.Path, nil
			}
		}
	}
	return nix.PathHash{}, "", fmt.Errorf("find build ID %s: %w", buildID, cache.ErrNotFound)
}
