// Package cache is the core between the front ends and the sources.
//
// A [Cache] is what a client adds to its substituters: signing keys and sources in order.
//
//	c, err := cache.New([]cache.Source{store}, cache.Options{Keys: keys})
//	…
//	text, err := c.NARInfo(ctx, hash)              // rendered and signed
//	n, info, err := c.OpenNAR(ctx, cache.Archive{Path: hash}) // knows its size, writes any range
//
// The first source that has a path answers for it.
// A source that could not tell does not hide the answer of a later one;
// but if none has the path and one could not tell, the answer is ErrUnavailable and not ErrNotFound,
// because a client remembers a miss for an hour.
//
// Narinfos are signed when they are served, and then remembered
// for as long as their sources say that nothing has changed (see [memo.Changes]).
package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"firn/internal/memo"
	"firn/nix"
)

const (
	// defaultMemory bounds, in bytes, the remembered narinfos where Options do not:
	// room for some 8,000 of them, a large system and its build inputs.
	defaultMemory = 32 << 20

	// missMemory is how many misses are remembered, some 100 bytes each.
	missMemory = 64 << 10

	// askLimit is how long the sources may take in all to look up one path.
	// A build should rather go on without this cache than wait longer.
	askLimit = 20 * time.Second
)

// Options of a Cache. The zero value is a cache that signs nothing itself.
type Options struct {
	// Name is that of the cache in a [Directory], [Main] if empty.
	Name string

	// Private: reading needs a right; see [Cache.Allow].
	Private bool

	// Sink keeps what is pushed. It is one of the sources. The zero Sink: nothing can be pushed.
	Sink Sink

	// AllowMissingReferences publishes a path whose references are not in the cache.
	AllowMissingReferences bool

	// SourcesLeftOut says that the cache has sources which are not among those given: what pushed
	// paths refer to is taken to be there.
	SourcesLeftOut bool

	// Keys sign every narinfo, beside the signatures that the path already has. No two have the same name.
	Keys []nix.SecretKey

	// Reserved reports whether a name is that of another key of this server, which some clients
	// trust too. Nil: none is.
	Reserved func(name string) bool

	// Priority is told to clients; they ask caches with a lower one first.
	Priority int

	// Encoder gives compressed NARs; nil if there are none. They are had under their URLs in any case:
	// clients remember a narinfo, and so its URL, for a month.
	Encoder Encoder

	// Compress has narinfos point to what Encoder gives.
	Compress bool

	// Memory is how many bytes of narinfos are remembered, 32 MiB if zero.
	Memory int64

	// Looks is shared with the other caches of the process. Nil: it is not.
	Looks *LookMemory

	// Logger is told of failures that the answer does not show. Nil discards.
	Logger *slog.Logger
}

// Cache answers what is asked of one binary cache. It is safe for concurrent use.
type Cache struct {
	name    string
	private bool
	sink    Sink // the zero Sink: nothing can be pushed
	partial bool // references may be missing

	sources []Source
	changes []memo.Changes // the same sources
	// sinkFirst are the same sources in another order, if there is a sink: a reference that the sink
	// has is not asked for elsewhere.
	sinkFirst []Source
	keys      []nix.SecretKey
	reserved  func(name string) bool // never nil
	info      nix.CacheInfo
	encoder   Encoder // nil: none
	compress  bool    // narinfos point to what encoder gives
	log       *slog.Logger

	closures closures
	taking   chan struct{} // holds something while paths of other sources are taken into the sink
	warned   atomic.Bool   // that nothing can be kept

	pushes  atomic.Uint64 // how often something was published here
	looks   *LookMemory
	found   *memo.Memo[nix.PathHash, *entry]
	missing *memo.Memo[nix.PathHash, struct{}]
	asking  singleflight.Group
}

// New returns a cache of the given sources, asked in this order. There may be none.
// ErrInvalid if the sources differ in their store directory or two keys have the same name.
func New(sources []Source, opts Options) (*Cache, error) {
	c := &Cache{
		name:     cmp.Or(opts.Name, Main),
		private:  opts.Private,
		sink:     opts.Sink,
		partial:  opts.AllowMissingReferences,
		taking:   make(chan struct{}, 1),
		closures: closures{walking: make(chan struct{}, 1), missing: &missing{}},
		sources:  slices.Clone(sources),
		keys:     slices.Clone(opts.Keys),
		reserved: opts.Reserved,
		info:     nix.CacheInfo{StoreDir: nix.DefaultStoreDir, WantMassQuery: true, Priority: opts.Priority},
		encoder:  opts.Encoder,
		compress: opts.Compress,
		log:      cmp.Or(opts.Logger, slog.New(slog.DiscardHandler)),
		looks:    opts.Looks,
		found:    memo.New[nix.PathHash, *entry](cmp.Or(opts.Memory, defaultMemory)),
		missing:  memo.New[nix.PathHash, struct{}](missMemory),
	}
	if c.looks == nil {
		c.looks = NewLookMemory()
	}
	if c.reserved == nil {
		c.reserved = func(string) bool { return false }
	}
	if c.Keeps() && !slices.Contains(c.sources, c.sink.Source) {
		return nil, fmt.Errorf("make cache: %w: its sink is none of its sources", ErrInvalid)
	}
	c.closures.checked = c.Keeps() && !c.partial && !opts.SourcesLeftOut
	if c.compress && c.encoder == nil {
		return nil, fmt.Errorf("make cache: %w: there is no encoder to compress with", ErrInvalid)
	}
	for i, s := range sources {
		if i == 0 {
			c.info.StoreDir = s.StoreDir()
		}
		if dir := s.StoreDir(); dir != c.info.StoreDir {
			return nil, fmt.Errorf("make cache: %w: %s keeps %s and %s keeps %s",
				ErrInvalid, sources[0].Name(), c.info.StoreDir, s.Name(), dir)
		}
		changes, ok := s.(memo.Changes)
		if !ok {
			changes = unversioned{}
		}
		c.changes = append(c.changes, changes)
	}
	if c.Keeps() {
		c.sinkFirst = append([]Source{c.sink.Source}, slices.DeleteFunc(slices.Clone(c.sources), c.isSink)...)
	}
	for i, k := range c.keys {
		if slices.ContainsFunc(c.keys[:i], func(other nix.SecretKey) bool { return other.Name() == k.Name() }) {
			return nil, fmt.Errorf("make cache: %w: two keys named %s", ErrInvalid, k.Name())
		}
	}
	return c, nil
}

// Name returns the name of the cache.
func (c *Cache) Name() string { return c.name }

// Private reports whether reading needs a right.
func (c *Cache) Private() bool { return c.private }

// Keeps reports whether it keeps what is pushed to it.
func (c *Cache) Keeps() bool { return c.sink.Source != nil }

// isSink reports whether a source is the one that keeps what is pushed.
func (c *Cache) isSink(s Source) bool { return s == c.sink.Source }

// Allow returns nil if p has all of these rights in the cache, else ErrDenied. Everybody may read a cache that is not private.
func (c *Cache) Allow(p Principal, r Rights) error {
	if r == Read && !c.private || p.May(r, c.name) {
		return nil
	}
	return fmt.Errorf("use cache %s: %w", c.name, ErrDenied)
}

// Info returns what nix-cache-info says.
func (c *Cache) Info() nix.CacheInfo { return c.info }

// PublicKeys returns the keys that clients need to trust, in the order of Options.
func (c *Cache) PublicKeys() []nix.PublicKey {
	public := make([]nix.PublicKey, len(c.keys))
	for i, k := range c.keys {
		public[i] = k.Public()
	}
	return public
}

// Presence says which sources of a cache are there.
type Presence struct {
	Sources []string // their names, in order
	Pushed  bool     // something was pushed to the cache
	Missing bool     // another source than the one that keeps what is pushed is not there yet
}

// Presence returns which sources are there. It is an error if that could not be told.
func (c *Cache) Presence(ctx context.Context) (p Presence, err error) {
	for _, s := range c.sources {
		there, err := isThere(ctx, s)
		switch {
		case err != nil:
			return Presence{}, err
		case there:
			p.Sources = append(p.Sources, s.Name())
			p.Pushed = p.Pushed || c.isSink(s)
		case !c.isSink(s):
			p.Missing = true
		}
	}
	return p, nil
}

// FirstAdder returns the first source that is there, if that takes paths; else nil.
func (c *Cache) FirstAdder(ctx context.Context) (Adder, error) {
	for _, s := range c.sources {
		if there, err := isThere(ctx, s); there || err != nil {
			adder, _ := s.(Adder)
			return adder, err
		}
	}
	return nil, nil
}

// HasSources reports whether any source is there.
func (c *Cache) HasSources(ctx context.Context) (bool, error) {
	for _, s := range c.sources {
		if there, err := isThere(ctx, s); there || err != nil {
			return there, err
		}
	}
	return false, nil
}

func isThere(ctx context.Context, s Source) (bool, error) {
	a, ok := s.(Absent)
	if !ok {
		return true, nil
	}
	there, err := a.IsThere(ctx)
	if err != nil {
		err = fmt.Errorf("look for %s: %w", s.Name(), err)
	}
	return there, err
}

// NARInfo returns the text of a narinfo, which the caller must not change.
func (c *Cache) NARInfo(ctx context.Context, hash nix.PathHash) ([]byte, error) {
	e, err := c.find(ctx, hash)
	if err != nil {
		return nil, err
	}
	return e.text, nil
}

// PlainNARInfo returns the text of a narinfo that leads to the NAR uncompressed, whatever NARInfo does,
// for clients that cannot read what that leads to.
func (c *Cache) PlainNARInfo(ctx context.Context, hash nix.PathHash) ([]byte, error) {
	e, err := c.find(ctx, hash)
	if err != nil {
		return nil, err
	}
	if e.info.Compression == nix.None {
		return e.text, nil
	}
	info := *e.info // the signatures do not cover what is changed
	plain(&info, e.origin)
	return info.AppendText(nil), nil
}

// Lookup returns what NARInfo does, as a value, which the caller must not change.
func (c *Cache) Lookup(ctx context.Context, hash nix.PathHash) (*nix.NARInfo, error) {
	e, err := c.find(ctx, hash)
	if err != nil {
		return nil, err
	}
	return e.info, nil
}

// WriteListing writes the JSON form of the listing of the NAR of a store path, with narOffset. It writes nothing when it fails with ErrNotFound.
func (c *Cache) WriteListing(ctx context.Context, hash nix.PathHash, w io.Writer) error {
	e, err := c.findNAR(ctx, hash)
	if err != nil {
		return err
	}
	from, ok := e.from.(Lister)
	if !ok {
		return fmt.Errorf("list %s: %w: %s has no listings", e.origin.Path, ErrNotFound, e.from.Name())
	}
	if err := from.WriteListing(ctx, e.origin, w); err != nil {
		return fmt.Errorf("list %s: %w", e.origin.Path, err)
	}
	return nil
}

// OpenLog opens the build log of a derivation, which the caller closes.
func (c *Cache) OpenLog(ctx context.Context, drv nix.StorePath) (Log, error) {
	a, err := first(c, func(s Logger) (Log, error) { return s.OpenLog(ctx, drv) })
	if err != nil {
		return nil, fmt.Errorf("open log of %s: %w", drv, err)
	}
	return a.value, nil
}

// Realisation returns what a derivation output was built to, signed.
func (c *Cache) Realisation(ctx context.Context, id nix.RealisationID) (*nix.Realisation, error) {
	a, err := first(c, func(s Realiser) (*nix.Realisation, error) {
		r, err := s.Realisation(ctx, id)
		if err == nil {
			err = c.checkBuilt(ctx, r.OutPath)
		}
		return r, err
	})
	if err != nil {
		return nil, fmt.Errorf("look up realisation %s: %w", id, err)
	}
	signed := *a.value
	signed.Signatures = c.sign(signed.Signatures, signed.AppendFingerprint(nil))
	return &signed, nil
}

// BuildTrace returns what a derivation output was built to, signed.
func (c *Cache) BuildTrace(ctx context.Context, drv nix.StorePath, output string) (*nix.BuildTrace, error) {
	a, err := first(c, func(s Realiser) (*nix.BuildTrace, error) {
		r, err := s.BuildTrace(ctx, drv, output)
		if err == nil {
			err = c.checkBuilt(ctx, r.OutPath)
		}
		return r, err
	})
	if err != nil {
		return nil, fmt.Errorf("look up build trace of %s!%s: %w", drv, output, err)
	}
	signed := *a.value
	signed.Signatures = c.sign(signed.Signatures, signed.AppendFingerprint(nil))
	return &signed, nil
}

// checkBuilt returns ErrNotFound where what a derivation was built to is gone.
func (c *Cache) checkBuilt(ctx context.Context, out nix.StorePath) error {
	if c.partial {
		return nil
	}
	has, err := c.Has(ctx, out)
	if err == nil && !has {
		err = ErrNotFound
	}
	return err
}

// DebugInfo is where the debug information of a build ID is.
type DebugInfo struct {
	Archive string // URL of the NAR, relative to the cache
	Member  string // path of the file in it
}

// DebugInfo returns where the debug information of a build ID is, given as 40 lower-case hexadecimal digits. ErrNotFound if unknown.
func (c *Cache) DebugInfo(ctx context.Context, buildID string) (*DebugInfo, error) {
	type place struct {
		path   nix.PathHash
		member string
	}
	a, err := first(c, func(s DebugInformer) (p place, err error) {
		p.path, p.member, err = s.DebugInfo(ctx, buildID)
		return p, err
	})
	if err != nil {
		return nil, fmt.Errorf("find build ID %s: %w", buildID, err)
	}
	info, err := c.Lookup(ctx, a.value.path)
	if err != nil {
		return nil, fmt.Errorf("find build ID %s: %w", buildID, err)
	}
	return &DebugInfo{info.URL, a.value.member}, nil
}

// Check asks all sources whether they can serve, and returns why not.
func (c *Cache) Check(ctx context.Context) error {
	var failed []error
	for _, s := range c.sources {
		if checker, ok := s.(Checker); ok {
			if err := checker.Check(ctx); err != nil {
				failed = append(failed, fmt.Errorf("check %s: %w", s.Name(), err))
			}
		}
	}
	return errors.Join(failed...)
}

// Room returns how many bytes there is room for, of what is pushed, and how many there could be in
// all; 0 in all if that cannot be told.
func (c *Cache) Room(ctx context.Context) (free, all int64, err error) {
	if !c.Keeps() {
		return 0, 0, nil
	}
	return c.sink.Room(ctx)
}

// Verified returns how many NARs were compared with their hashes and were right, and how many were wrong.
func (c *Cache) Verified() (right, wrong int64) {
	for _, s := range c.sources {
		if v, ok := s.(Checker); ok {
			r, w := v.Verified()
			right, wrong = right+r, wrong+w
		}
	}
	return right, wrong
}
