package catalogtest

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"firn/internal/catalog"
	"firn/internal/memo"
	"firn/nix"
)

// Bounds of the port.
const (
	mostAtOnce     = 256
	mostSignatures = 64
)

// Memory is a catalog that is gone with its process.
type Memory struct {
	now func() time.Time

	mu      sync.Mutex
	version uint64
	lastID  int64 // of caches, of NARs
	lastRow int64 // of paths
	caches  map[catalog.CacheID]*room
	tokens  map[string]*catalog.Token  // by name
	sshKeys map[string]*catalog.SSHKey // by name
	notes   map[string]*catalog.Note
	packs   map[string]*pack // by name
	chunks  map[catalog.Sum]catalog.Chunk
	uses    map[use]catalog.NARID
	nars    map[catalog.NARID]*kept
	narIDs  map[catalog.Sum]catalog.NARID
}

// A use is by which NAR a cache leads to a chunk.
type use struct {
	chunk catalog.Sum
	cache catalog.CacheID
}

// room is what one cache has.
type room struct {
	record  catalog.Cache
	paths   map[nix.PathHash]*catalog.Path
	rows    map[nix.PathHash]int64 // in what order they were published, of all caches
	uploads map[string]*made
	debug   map[string][]catalog.DebugInfo // by build ID
	files   map[string]*catalog.File
	awaited map[nix.PathHash]bool
	// dangling are references to what other sources have, by their path hashes, with those that
	// have them.
	dangling map[nix.PathHash]map[nix.PathHash]nix.StorePath
	endorsed map[nix.PathHash]endorsed

	deletions int64
}

type made struct {
	catalog.Upload
	at time.Time
}

type kept struct {
	catalog.NAR
	listing []byte
	at      time.Time
}

type pack struct {
	size     int64
	left     int64     // NARs that have left it since it was examined
	dead     int64     // bytes that were nobody's then
	examined bool      // once at least
	retired  bool      // frames were moved out of it
	loose    time.Time // since when it is known that no NAR refers to it; zero: some do
}

var _ catalog.Catalog = (*Memory)(nil)

// NewMemory returns an empty catalog in memory. The clock is time.Now if nil.
func NewMemory(now func() time.Time) *Memory {
	if now == nil {
		now = time.Now
	}
	return &Memory{
		now:     now,
		caches:  make(map[catalog.CacheID]*room),
		tokens:  make(map[string]*catalog.Token),
		sshKeys: make(map[string]*catalog.SSHKey),
		notes:   make(map[string]*catalog.Note),
		packs:   make(map[string]*pack),
		chunks:  make(map[catalog.Sum]catalog.Chunk),
		uses:    make(map[use]catalog.NARID),
		nars:    make(map[catalog.NARID]*kept),
		narIDs:  make(map[catalog.Sum]catalog.NARID),
	}
}

// lock returns what unlocks. Whoever changes something calls m.changed before.
func (m *Memory) lock() func() {
	m.mu.Lock()
	return m.mu.Unlock
}

func (m *Memory) changed() { m.version++ }

func (m *Memory) draw() int64 {
	m.lastID++
	return m.lastID
}

// Version counts changes.
func (m *Memory) Version(context.Context) memo.Version {
	defer m.lock()()
	return memo.Exactly(m.version, true)
}

// Check finds nothing wrong.
func (m *Memory) Check(ctx context.Context) error { return ctx.Err() }

// Close does nothing.
func (m *Memory) Close() error { return nil }

// AddCache adds a cache.
func (m *Memory) AddCache(_ context.Context, c *catalog.Cache) error {
	defer m.lock()()
	if err := m.free(c, 0); err != nil {
		return fmt.Errorf("add cache %s: %w", c.Name, err)
	}
	c.ID = catalog.CacheID(m.draw())
	m.caches[c.ID] = &room{
		record:   *c,
		paths:    make(map[nix.PathHash]*catalog.Path),
		rows:     make(map[nix.PathHash]int64),
		uploads:  make(map[string]*made),
		debug:    make(map[string][]catalog.DebugInfo),
		files:    make(map[string]*catalog.File),
		awaited:  make(map[nix.PathHash]bool),
		dangling: make(map[nix.PathHash]map[nix.PathHash]nix.StorePath),
		endorsed: make(map[nix.PathHash]endorsed),
	}
	m.changed()
	return nil
}

// free is ErrConflict if another cache than own has the name or a host of c.
func (m *Memory) free(c *catalog.Cache, own catalog.CacheID) error {
	for id, other := range m.caches {
		if id == own {
			continue
		}
		if other.record.Name == c.Name {
			return fmt.Errorf("%w: the name", catalog.ErrConflict)
		}
		for _, host := range c.Hosts {
			if slices.Contains(other.record.Hosts, host) {
				return fmt.Errorf("%w: the host %s", catalog.ErrConflict, host)
			}
		}
	}
	return nil
}

// Caches returns all caches.
func (m *Memory) Caches(context.Context) ([]*catalog.Cache, error) {
	defer m.lock()()
	var all []*catalog.Cache
	for _, r := range m.caches {
		record := r.record
		all = append(all, &record)
	}
	slices.SortFunc(all, func(a, b *catalog.Cache) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// SetCache replaces a record.
func (m *Memory) SetCache(_ context.Context, old, c *catalog.Cache) error {
	defer m.lock()()
	r := m.caches[c.ID]
	if r == nil {
		return fmt.Errorf("set cache %s: %w", c.Name, catalog.ErrNotFound)
	}
	if !r.record.Equal(old) {
		return fmt.Errorf("set cache %s: %w", c.Name, catalog.ErrChanged)
	}
	if err := m.free(c, c.ID); err != nil {
		return fmt.Errorf("set cache %s: %w", c.Name, err)
	}
	created := r.record.Created
	r.record = *c
	r.record.Created = created
	m.changed()
	return nil
}

// DeleteCache removes a cache and all that it has.
func (m *Memory) DeleteCache(_ context.Context, id catalog.CacheID) error {
	defer m.lock()()
	if m.caches[id] == nil {
		return fmt.Errorf("delete cache: %w", catalog.ErrNotFound)
	}
	delete(m.caches, id)
	m.changed()
	return nil
}

// AddToken adds a token.
func (m *Memory) AddToken(_ context.Context, t *catalog.Token) error {
	defer m.lock()()
	for _, other := range m.tokens {
		if other.Name == t.Name || other.Hash == t.Hash {
			return fmt.Errorf("add token %s: %w", t.Name, catalog.ErrConflict)
		}
	}
	m.tokens[t.Name] = new(*t)
	m.changed()
	return nil
}

// Tokens returns all tokens.
func (m *Memory) Tokens(context.Context) ([]*catalog.Token, error) {
	defer m.lock()()
	var all []*catalog.Token
	for _, name := range slices.Sorted(maps.Keys(m.tokens)) {
		all = append(all, new(*m.tokens[name]))
	}
	return all, nil
}

// TokenByHash returns the token of a secret.
func (m *Memory) TokenByHash(_ context.Context, hash catalog.Sum) (*catalog.Token, error) {
	defer m.lock()()
	for _, t := range m.tokens {
		if t.Hash == hash {
			return new(*t), nil
		}
	}
	return nil, fmt.Errorf("look up token: %w", catalog.ErrNotFound)
}

// RevokeToken removes a token.
func (m *Memory) RevokeToken(_ context.Context, name string) error {
	defer m.lock()()
	if m.tokens[name] == nil {
		return fmt.Errorf("revoke token %s: %w", name, catalog.ErrNotFound)
	}
	delete(m.tokens, name)
	m.changed()
	return nil
}

// PutFile adds a file.
func (m *Memory) PutFile(ctx context.Context, cache catalog.CacheID, f *catalog.File) error {
	return m.UpdateFile(ctx, cache, f, Unchecked(), func([]byte) ([]byte, error) { return append([]byte{}, f.Content...), nil })
}

// UpdateFile changes a file.
func (m *Memory) UpdateFile(_ context.Context, cache catalog.CacheID, f *catalog.File, b catalog.Basis, update func(old []byte) ([]byte, error)) error {
	defer m.lock()()
	r := m.caches[cache]
	if r == nil {
		return fmt.Errorf("put file %s: %w", f.Key, catalog.ErrGone)
	}
	var old []byte
	if there := r.files[f.Key]; there != nil {
		old = there.Content
	}
	content, err := update(old)
	if err != nil || content == nil {
		return err
	}
	if !f.Path.IsZero() && r.lacks(b, f.Path) {
		return fmt.Errorf("put file %s: %w", f.Key, catalog.ErrChanged)
	}
	r.files[f.Key] = &catalog.File{Key: f.Key, Content: content, Path: f.Path}
	m.changed()
	return nil
}

// File returns a file.
func (m *Memory) File(_ context.Context, cache catalog.CacheID, key string) ([]byte, error) {
	defer m.lock()()
	f, ok := m.room(cache).files[key]
	if !ok {
		return nil, fmt.Errorf("read file %s: %w", key, catalog.ErrNotFound)
	}
	return f.Content, nil
}

// AllFiles iterates over keys.
func (m *Memory) AllFiles(_ context.Context, cache catalog.CacheID, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		unlock := m.lock()
		keys := slices.Sorted(maps.Keys(m.room(cache).files))
		unlock()
		for _, key := range keys {
			if strings.HasPrefix(key, prefix) && !yield(key, nil) {
				return
			}
		}
	}
}

// room returns what a cache has: nothing if there is no such cache.
func (m *Memory) room(cache catalog.CacheID) *room {
	if r := m.caches[cache]; r != nil {
		return r
	}
	return &room{}
}
