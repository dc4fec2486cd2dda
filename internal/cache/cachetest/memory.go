package cachetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"

	"firn/internal/cache"
	"firn/internal/memo"
	"firn/nix"
	"firn/nix/nar"
)

// Path is a store path together with its NAR.
type Path struct {
	Info *nix.PathInfo
	NAR  []byte
}

// NewPath returns the path of a file with the given name and contents, as nix-store --add gives it:
// with a content address, but without signatures and references.
func NewPath(t testing.TB, dir nix.StoreDir, name, contents string) Path {
	t.Helper()
	archive := FileNAR(contents)
	hash := nix.SHA256Sum(sha256.Sum256(archive))
	ca, err := nix.NewContentAddress(nix.NARMethod, hash)
	if err != nil {
		t.Fatal(err)
	}
	path, err := ca.StorePath(dir, name, nil)
	if err != nil {
		t.Fatal(err)
	}
	return Path{&nix.PathInfo{Path: path, NARHash: hash, NARSize: int64(len(archive)), CA: ca}, archive}
}

// FileNAR returns the NAR of a file that is not executable.
func FileNAR(contents string) []byte {
	var archive []byte
	for _, word := range []string{"nix-archive-1", "(", "type", "regular", "contents", contents, ")"} {
		archive = binary.LittleEndian.AppendUint64(archive, uint64(len(word)))
		archive = append(archive, word...)
		archive = append(archive, make([]byte, -len(word)&7)...)
	}
	return archive
}

// Memory is a source, and a sink, that keeps everything in memory.
type Memory struct {
	endorsed     map[nix.PathHash]nix.PathInfo // NAR hash and signatures, of paths that others have
	mu           sync.Mutex
	dir          nix.StoreDir
	version      uint64
	paths        map[nix.PathHash]Path
	rows         map[nix.PathHash]int64 // the version with which a path was published
	removed      int64                  // paths
	dangling     map[nix.PathHash]bool  // what others refer to, or did, and what was removed
	logs         map[nix.StorePath][]byte
	realisations map[nix.RealisationID]*nix.Realisation
	traces       map[string]*nix.BuildTrace
	nars         map[nix.Hash][]byte // that were received
	uploads      map[string]cache.Received
	elsewhere    map[nix.StorePath][]nix.StorePath // with those that refer to it
	kept         map[nix.StorePath]bool
	cannotKeep   error // what Keep fails with
	failure      error
	asked        int
	open         int
}

var (
	_ memo.Changes   = (*Memory)(nil)
	_ cache.Lister   = (*Memory)(nil)
	_ cache.Logger   = (*Memory)(nil)
	_ cache.Realiser = (*Memory)(nil)
	_ cache.Checker  = (*Memory)(nil)
)

// NewMemory returns a source of the given paths, which lie in [nix.DefaultStoreDir].
func NewMemory(paths ...Path) *Memory {
	m := &Memory{
		dir:          nix.DefaultStoreDir,
		paths:        make(map[nix.PathHash]Path),
		rows:         make(map[nix.PathHash]int64),
		dangling:     make(map[nix.PathHash]bool),
		logs:         make(map[nix.StorePath][]byte),
		realisations: make(map[nix.RealisationID]*nix.Realisation),
		traces:       make(map[string]*nix.BuildTrace),
		nars:         make(map[nix.Hash][]byte),
		uploads:      make(map[string]cache.Received),
		elsewhere:    make(map[nix.StorePath][]nix.StorePath),
		kept:         make(map[nix.StorePath]bool),
	}
	m.Add(paths...)
	return m
}

// Add adds paths, in place of those with the same path hash.
func (m *Memory) Add(paths ...Path) {
	m.change(func() {
		for _, p := range paths {
			m.add(p)
		}
	})
}

// add adds a path. It is called with mu held, after version was advanced.
func (m *Memory) add(p Path) {
	m.paths[p.Info.Path.Hash()], m.rows[p.Info.Path.Hash()] = p, int64(m.version)
	for _, ref := range p.Info.References {
		if ref != p.Info.Path {
			m.dangling[ref.Hash()] = true
		}
	}
}

// Remove removes a path.
func (m *Memory) Remove(path nix.StorePath) {
	m.change(func() {
		delete(m.paths, path.Hash())
		m.removed++
		m.dangling[path.Hash()] = true
	})
}

// AddLog adds a build log.
func (m *Memory) AddLog(drv nix.StorePath, text []byte) {
	m.change(func() { m.logs[drv] = text })
}

// AddRealisation adds a realisation.
func (m *Memory) AddRealisation(r *nix.Realisation) {
	m.change(func() { m.realisations[r.ID] = r })
}

// AddBuildTrace adds a build trace.
func (m *Memory) AddBuildTrace(b *nix.BuildTrace) {
	m.change(func() { m.traces[b.Drv.Base()+"!"+b.Output] = b })
}

// Fail makes everything asked from now on fail with err, until it is nil.
func (m *Memory) Fail(err error) {
	m.change(func() { m.failure = err })
}

// Asked returns how often PathInfo has been asked.
func (m *Memory) Asked() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.asked
}

// Open returns how many NARs have been opened and not closed.
func (m *Memory) Open() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.open
}

func (m *Memory) change(what func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.version++
	what()
}

// Name implements [cache.Source].
func (m *Memory) Name() string { return "memory" }

// StoreDir implements [cache.Source].
func (m *Memory) StoreDir() nix.StoreDir { return m.dir }

// Version implements [memo.Changes].
func (m *Memory) Version(context.Context) memo.Version {
	m.mu.Lock()
	defer m.mu.Unlock()
	return memo.Exactly(m.version, m.failure == nil)
}

// PathInfo implements [cache.Source].
func (m *Memory) PathInfo(ctx context.Context, hash nix.PathHash) (*nix.PathInfo, error) {
	m.mu.Lock()
	m.asked++
	m.mu.Unlock()
	p, err := get(ctx, m, m.paths, hash)
	return p.Info, err
}

// OpenNAR implements [cache.Source].
func (m *Memory) OpenNAR(ctx context.Context, info *nix.PathInfo) (cache.NAR, error) {
	p, err := get(ctx, m, m.paths, info.Path.Hash())
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.open++
	return &memoryNAR{m, p}, nil
}

// WriteListing implements [cache.Lister].
func (m *Memory) WriteListing(ctx context.Context, info *nix.PathInfo, w io.Writer) error {
	p, err := get(ctx, m, m.paths, info.Path.Hash())
	if err != nil {
		return err
	}
	listing, err := list(p.NAR)
	if err != nil {
		return err
	}
	return nar.WriteListing(w, listing.All())
}

// OpenLog implements [cache.Logger].
func (m *Memory) OpenLog(ctx context.Context, drv nix.StorePath) (cache.Log, error) {
	text, err := get(ctx, m, m.logs, drv)
	if err != nil {
		return nil, err
	}
	return memoryLog{bytes.NewReader(text)}, nil
}

// Realisation implements [cache.Realiser].
func (m *Memory) Realisation(ctx context.Context, id nix.RealisationID) (*nix.Realisation, error) {
	return get(ctx, m, m.realisations, id)
}

// BuildTrace implements [cache.Realiser].
func (m *Memory) BuildTrace(ctx context.Context, drv nix.StorePath, output string) (*nix.BuildTrace, error) {
	return get(ctx, m, m.traces, drv.Base()+"!"+output)
}

// Check implements [cache.Checker].
func (m *Memory) Check(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.failure
}

// Verified implements [cache.Checker]: nothing is compared.
func (m *Memory) Verified() (right, wrong int64) { return 0, 0 }

// get returns what m, whose map from is, has under a key.
func get[K comparable, V any](ctx context.Context, m *Memory, from map[K]V, key K) (V, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := from[key]
	switch {
	case ctx.Err() != nil:
		return *new(V), ctx.Err()
	case m.failure != nil:
		return *new(V), m.failure
	case !ok:
		return v, fmt.Errorf("get %v: %w", key, cache.ErrNotFound)
	}
	return v, nil
}

type memoryNAR struct {
	m *Memory
	p Path
}

func (n *memoryNAR) Size() int64 { return int64(len(n.p.NAR)) }

func (n *memoryNAR) WriteRange(ctx context.Context, w io.Writer, off, length int64) error {
	if off < 0 || length < 0 || off > n.Size()-length {
		return fmt.Errorf("write NAR of %s: %w: no %d bytes at %d", n.p.Info.Path, cache.ErrInvalid, length, off)
	}
	// In pieces, as a NAR that is made while it is sent.
	for piece := range slices.Chunk(n.p.NAR[off:off+length], 64<<10) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := w.Write(piece); err != nil {
			return fmt.Errorf("write NAR of %s: %w", n.p.Info.Path, err)
		}
	}
	return nil
}

func (n *memoryNAR) Close() error {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	n.m.open--
	return nil
}

type memoryLog struct{ *bytes.Reader }

func (l memoryLog) Size() (int64, bool) { return l.Reader.Size(), true }
func (l memoryLog) Close() error        { return nil }
