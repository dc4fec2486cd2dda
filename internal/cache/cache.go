// Package cache is the hall between the doors and the sources.
//
// A [Cache] is what a client adds to its substituters: signing keys and sources in order.
//
//	c, err := cache.New([]cache.Source{store}, cache.Options{Keys: keys})
//	…
//	text, err := c.NARInfo(ctx, hash)              // rendered and signed
//	dump, info, err := c.OpenNAR(ctx, cache.Archive{Path: hash}) // knows its size, writes any range
//
// The first source that has a path answers for it.
// A source that could not tell does not hide the answer of a later one;
// but if none has the path and one could not tell, the answer is ErrUnavailable and not ErrNotFound,
// because a client remembers a miss for an hour.
//
// Narinfos are signed when they are served, and then remembered
// for as long as their sources say that nothing has changed (see [Versioned]).
package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sync/singleflight"

	"firn/nix"
	"firn/nix/nar"
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

	// Private lets nobody read but who may; see [Cache.Allow].
	Private bool

	// Sink keeps what is pushed. It is one of the sources. Nil: nothing can be pushed.
	Sink Sink

	// AllowMissingReferences publishes a path whose references are not in the cache.
	AllowMissingReferences bool

	// Keys sign every narinfo, beside the signatures that the path already has. No two have the same name.
	Keys []nix.SecretKey

	// Priority is told to clients; they ask caches with a lower one first.
	Priority int

	// Encoder gives compressed NARs; nil if there are none. They are had under their URLs in any case:
	// clients remember a narinfo, and so its URL, for a month.
	Encoder Encoder

	// Compress has narinfos point to what Encoder gives.
	Compress bool

	// Memory is how many bytes of narinfos are remembered, 32 MiB if zero.
	Memory int64

	// Logger is told of failures that the answer does not show. Nil discards.
	Logger *slog.Logger
}

// Cache answers what is asked of one binary cache. It is safe for concurrent use.
type Cache struct {
	name    string
	private bool
	sink    Sink // nil: nothing can be pushed
	partial bool // references may be missing

	sources   []Source
	versioned []Versioned // the same sources; nil unless all are Versioned
	keys      []nix.SecretKey
	info      nix.CacheInfo
	encoder   Encoder // nil: none
	compress  bool    // narinfos point to what encoder gives
	log       *slog.Logger

	found   *memory[*entry]
	missing *memory[uint64] // the version at which it was missing
	asking  singleflight.Group
}

// entry is a narinfo as it is served. It does not change.
type entry struct {
	version uint64 // of the sources, when this was last known to be right
	vouched bool   // the sources vouch for it as long as their version stays
	text    []byte
	info    *nix.NARInfo
	from    Source
	origin  *nix.PathInfo // what from answered
}

// New returns a cache of the given sources, asked in this order. There may be none.
// ErrInvalid if the sources differ in their store directory or two keys have the same name.
func New(sources []Source, opts Options) (*Cache, error) {
	c := &Cache{
		name:     cmp.Or(opts.Name, Main),
		private:  opts.Private,
		sink:     opts.Sink,
		partial:  opts.AllowMissingReferences,
		sources:  slices.Clone(sources),
		keys:     slices.Clone(opts.Keys),
		info:     nix.CacheInfo{StoreDir: nix.DefaultStoreDir, WantMassQuery: true, Priority: opts.Priority},
		encoder:  opts.Encoder,
		compress: opts.Compress,
		log:      cmp.Or(opts.Logger, slog.New(slog.DiscardHandler)),
		found:    newMemory[*entry](cmp.Or(opts.Memory, defaultMemory)),
		missing:  newMemory[uint64](missMemory),
	}
	if c.sink != nil && !slices.Contains(c.sources, Source(c.sink)) {
		return nil, fmt.Errorf("make cache: %w: its sink is none of its sources", ErrInvalid)
	}
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
		if v, ok := s.(Versioned); ok {
			c.versioned = append(c.versioned, v)
		}
	}
	if len(c.versioned) != len(c.sources) {
		c.versioned = nil
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

// Sources returns the names of the sources, in order, of those that are there.
func (c *Cache) Sources() []string {
	var names []string
	for _, s := range c.sources {
		if a, ok := s.(Awaited); !ok || a.IsThere() {
			names = append(names, s.Name())
		}
	}
	return names
}

// NARInfo returns the text of a narinfo, which the caller must not change.
// A miss is ErrNotFound itself, without words around it: misses are most of what a cache is asked.
func (c *Cache) NARInfo(ctx context.Context, hash nix.PathHash) ([]byte, error) {
	e, err := c.find(ctx, hash)
	if err != nil {
		return nil, err
	}
	return e.text, nil
}

// Lookup returns what NARInfo does, as a value, which the caller must not change.
func (c *Cache) Lookup(ctx context.Context, hash nix.PathHash) (*nix.NARInfo, error) {
	e, err := c.find(ctx, hash)
	if err != nil {
		return nil, err
	}
	return e.info, nil
}

// An Archive names the bytes of one NAR, as the URL of a narinfo does.
type Archive struct {
	Path        nix.PathHash
	NARHash     nix.Hash        // zero: whatever the path has now
	Compression nix.Compression // None, or else that of the encoder
}

func (a Archive) isCompressed() bool { return a.Compression != "" && a.Compression != nix.None }

// OpenNAR opens the NAR of a store path, and returns what is known of that.
// ErrNotFound if there is none with this NAR hash or in this compression.
// The context bounds the opening only. The caller closes the NAR; it may be [Unfinished].
func (c *Cache) OpenNAR(ctx context.Context, a Archive) (NAR, *nix.PathInfo, error) {
	e, err := c.findArchive(ctx, a)
	if err != nil {
		return nil, nil, err
	}
	open := func(ctx context.Context) (NAR, error) { return e.from.OpenNAR(ctx, e.origin) }
	var n NAR
	if a.isCompressed() {
		n, err = c.encoder.Encode(ctx, e.origin, open)
	} else {
		n, err = open(ctx)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open NAR of %s: %w", e.origin.Path, err)
	}
	return n, e.origin, nil
}

// StatNAR returns the size in bytes of what OpenNAR would open, without beginning to compress it:
// known is false where the size is not known before that is done.
func (c *Cache) StatNAR(ctx context.Context, a Archive) (info *nix.PathInfo, size int64, known bool, err error) {
	e, err := c.findArchive(ctx, a)
	if err != nil {
		return nil, 0, false, err
	}
	if !a.isCompressed() {
		return e.origin, e.origin.NARSize, true, nil
	}
	size, known = c.encoder.Encoded(e.origin)
	return e.origin, size, known, nil
}

func (c *Cache) findArchive(ctx context.Context, a Archive) (*entry, error) {
	e, err := c.find(ctx, a.Path)
	switch {
	case err != nil:
		return nil, err
	case !a.NARHash.IsZero() && a.NARHash != e.origin.NARHash:
		return nil, fmt.Errorf("open NAR of %s: %w: it has another NAR hash", e.origin.Path, ErrNotFound)
	case a.isCompressed() && (c.encoder == nil || a.Compression != c.encoder.Compression()):
		return nil, fmt.Errorf("open NAR of %s: %w: not compressed by %s here", e.origin.Path, ErrNotFound, a.Compression)
	}
	return e, nil
}

// EncoderVersion names what the bytes of a compressed NAR depend on besides the NAR; "" without an encoder.
func (c *Cache) EncoderVersion() string {
	if c.encoder == nil {
		return ""
	}
	return c.encoder.Version()
}

// Listing returns the listing of the NAR of a store path, with narOffset. The caller must not change it.
func (c *Cache) Listing(ctx context.Context, hash nix.PathHash) (*nar.Listing, error) {
	e, err := c.find(ctx, hash)
	if err != nil {
		return nil, err
	}
	from, ok := e.from.(Lister)
	if !ok {
		return nil, fmt.Errorf("list %s: %w: %s has no listings", e.info.Path, ErrNotFound, e.from.Name())
	}
	listing, err := from.Listing(ctx, e.origin)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", e.info.Path, err)
	}
	return listing, nil
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
	a, err := first(c, func(s Realiser) (*nix.Realisation, error) { return s.Realisation(ctx, id) })
	if err != nil {
		return nil, fmt.Errorf("look up realisation %s: %w", id, err)
	}
	signed := *a.value
	signed.Signatures = c.sign(signed.Signatures, signed.AppendFingerprint(nil))
	return &signed, nil
}

// BuildTrace returns what a derivation output was built to, signed.
func (c *Cache) BuildTrace(ctx context.Context, drv nix.StorePath, output string) (*nix.BuildTrace, error) {
	a, err := first(c, func(s Realiser) (*nix.BuildTrace, error) { return s.BuildTrace(ctx, drv, output) })
	if err != nil {
		return nil, fmt.Errorf("look up build trace of %s!%s: %w", drv, output, err)
	}
	signed := *a.value
	signed.Signatures = c.sign(signed.Signatures, signed.AppendFingerprint(nil))
	return &signed, nil
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

// Verified returns how many NARs were compared with their hashes and were right, and how many were wrong.
func (c *Cache) Verified() (right, wrong int64) {
	for _, s := range c.sources {
		if v, ok := s.(Verifier); ok {
			r, w := v.Verified()
			right, wrong = right+r, wrong+w
		}
	}
	return right, wrong
}

// find returns the narinfo of a path: remembered, where that is still right, or asked for.
func (c *Cache) find(ctx context.Context, hash nix.PathHash) (*entry, error) {
	version, vouched := c.version(ctx)
	if vouched {
		if e, ok := c.found.get(hash); ok && e.vouched && e.version == version {
			return c.measured(hash, e), nil
		}
		if v, ok := c.missing.get(hash); ok && v == version {
			return nil, ErrNotFound
		}
	}

	// Who asks meanwhile waits for the same answer, unless the sources have changed since it was asked for.
	// It must not fail because the first who asked went away, so that one's context does not end it.
	key := append(hash[:], byte(version), byte(version>>8), byte(version>>16), byte(version>>24),
		byte(version>>32), byte(version>>40), byte(version>>48), byte(version>>56))
	e, err, _ := c.asking.Do(string(key), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askLimit)
		defer cancel()
		return c.ask(ctx, hash, version, vouched)
	})
	if err != nil {
		return nil, err
	}
	return e.(*entry), nil
}

// ask asks the sources for a path, and remembers the answer:
// a narinfo always, so that it is signed once, a miss only if the sources vouch for it.
// version was read before they are asked, so an answer is never older than the version it is kept under.
func (c *Cache) ask(ctx context.Context, hash nix.PathHash, version uint64, vouched bool) (*entry, error) {
	a, err := first(c, func(s Source) (*nix.PathInfo, error) {
		info, err := s.PathInfo(ctx, hash)
		if err != nil {
			return nil, err
		}
		if err := c.sound(hash, info); err != nil {
			c.log.Error("left out what a source answered", "source", s.Name(), "error", err)
			return nil, ErrNotFound
		}
		return info, nil
	})
	switch {
	case err == ErrNotFound:
		if vouched {
			c.missing.put(hash, version, 1)
		}
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("look up %s: %w", hash, err)
	}

	e := &entry{version: version, vouched: vouched && !a.unsure, from: a.from, origin: a.value}
	if old, ok := c.found.get(hash); ok && old.from == e.from && equal(old.origin, e.origin) {
		e.info, e.text = old.info, old.text
		e = c.measured(hash, e)
	} else {
		e.info = c.render(e.origin)
		e.text = e.info.AppendText(nil)
	}
	c.found.put(hash, e, e.cost())
	return e, nil
}

// answer is what a source answered.
type answer[T any] struct {
	value  T
	from   Source
	unsure bool // a source before it could not tell
}

// first asks the sources that are an S, in order, until one has an answer.
// The error is ErrNotFound itself, or wraps ErrUnavailable when one of them could not tell.
func first[S Source, T any](c *Cache, ask func(S) (T, error)) (answer[T], error) {
	var unsure error
	for _, s := range c.sources {
		able, ok := s.(S)
		if !ok {
			continue
		}
		value, err := ask(able)
		switch {
		case err == nil && unsure != nil:
			c.log.Warn("answered by a later source", "source", s.Name(), "error", unsure)
			fallthrough
		case err == nil:
			return answer[T]{value, s, unsure != nil}, nil
		case !errors.Is(err, ErrNotFound):
			unsure = errors.Join(unsure, fmt.Errorf("ask %s: %w", s.Name(), err))
		}
	}
	if unsure != nil {
		return answer[T]{}, fmt.Errorf("%w: %w", ErrUnavailable, unsure)
	}
	return answer[T]{}, ErrNotFound
}

// version returns one number for the versions of all sources.
func (c *Cache) version(ctx context.Context) (version uint64, ok bool) {
	if len(c.versioned) != len(c.sources) {
		return 0, false
	}
	for _, s := range c.versioned {
		v, ok := s.Version(ctx)
		if !ok {
			return 0, false
		}
		// Versions that count up from anywhere near zero never meet after this;
		// any others do once in 2⁶⁴ changes.
		version = version*0x9e3779b97f4a7c15 + v
	}
	return version, true
}

// sound refuses an answer that a source must not give, lest it is signed.
func (c *Cache) sound(hash nix.PathHash, info *nix.PathInfo) error {
	switch {
	case info.Path.Hash() != hash || info.Path.Dir() != c.info.StoreDir:
		return fmt.Errorf("%w: %s was not asked for", ErrInvalid, info.Path)
	case info.NARHash.Algorithm() != nix.SHA256 || info.NARSize <= 0:
		return fmt.Errorf("%w: %s has no NAR hash or size", ErrInvalid, info.Path)
	}
	return nil
}

// render returns the narinfo of a path info.
func (c *Cache) render(origin *nix.PathInfo) *nix.NARInfo {
	info := &nix.NARInfo{
		PathInfo:    *origin,
		URL:         narURL(origin),
		Compression: nix.None,
		FileHash:    origin.NARHash,
		FileSize:    origin.NARSize,
	}
	if c.compress {
		// The hash of the file is not needed for anything: the NAR hash covers what counts.
		info.URL += ".zst"
		info.Compression = c.encoder.Compression()
		info.FileHash = nix.Hash{}
		info.FileSize, _ = c.encoder.Encoded(origin)
	}
	info.Signatures = c.sign(origin.Signatures, origin.AppendFingerprint(nil))
	return info
}

// measured returns e with the size of its compressed NAR, once that is known;
// clients add the sizes up to say how much they will download.
// An entry of which it is known already costs nothing here.
func (c *Cache) measured(hash nix.PathHash, e *entry) *entry {
	if e.info.FileSize > 0 {
		return e
	}
	size, ok := c.encoder.Encoded(e.origin)
	if !ok {
		return e
	}
	sized, info := *e, *e.info
	info.FileSize = size
	sized.info, sized.text = &info, info.AppendText(nil)
	c.found.put(hash, &sized, sized.cost())
	return &sized
}

// sign returns the given signatures and ours.
// What is given under the name of one of our own keys is left out: we know better.
func (c *Cache) sign(given []nix.Signature, fingerprint []byte) []nix.Signature {
	all := make([]nix.Signature, 0, len(given)+len(c.keys))
	for _, s := range given {
		ours := slices.ContainsFunc(c.keys, func(k nix.SecretKey) bool { return k.Name() == s.Name })
		if !ours && !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	for _, k := range c.keys {
		all = append(all, k.Sign(fingerprint))
	}
	return all
}

// narURL is where the NAR of a path is, relative to the cache:
// both hashes are in the name, so that it can be found, and never stands for other bytes.
func narURL(info *nix.PathInfo) string {
	url := append(make([]byte, 0, 96), "nar/"...)
	url = append(url, info.Path.Hash().String()...)
	url = append(url, '-')
	url = info.NARHash.AppendNix32(url)
	return string(append(url, ".nar"...))
}

// cost estimates the bytes that an entry takes in memory.
func (e *entry) cost() int64 {
	const (
		fixed   = 1 << 10 // the structs, the URL, the deriver, the place in the map
		perRef  = 128     // a StorePath and its text
		perSign = 128     // a Signature, twice
	)
	return fixed + int64(len(e.text)+perRef*len(e.info.References)+perSign*len(e.info.Signatures))
}

// equal reports whether two path infos say the same.
func equal(a, b *nix.PathInfo) bool {
	return a.Path == b.Path &&
		a.NARHash == b.NARHash &&
		a.NARSize == b.NARSize &&
		a.Deriver == b.Deriver &&
		a.CA == b.CA &&
		a.Ultimate == b.Ultimate &&
		a.RegistrationTime.Equal(b.RegistrationTime) &&
		slices.Equal(a.References, b.References) &&
		slices.Equal(a.Signatures, b.Signatures)
}
