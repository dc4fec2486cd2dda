package cache

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"firn/internal/memo"
	"firn/nix"
)

// entry is a narinfo as it is served. It does not change.
type entry struct {
	// depends is how many sources, from the first on, it depends on: it is right for as long as
	// these do not change.
	depends int
	text    []byte
	info    *nix.NARInfo
	from    Source
	origin  *nix.PathInfo // what from answered
	pushed  pushedToo     // what the sink has of the same path
	file    file          // what from keeps of it, if that is Compressed
}

// pushedToo is what clients pushed of a path that a source before the sink has. Most have none.
type pushedToo struct {
	signatures []nix.Signature
	extra      []nix.Field
}

// pushedTo returns what the sink has of what another source answered.
func (c *Cache) pushedTo(ctx context.Context, from Source, info *nix.PathInfo) (p pushedToo, err error) {
	if !c.Keeps() || c.isSink(from) {
		return p, nil
	}
	p.signatures, p.extra, err = c.sink.Endorsements(ctx, info)
	return p, err
}

// file is the compressed NAR that a [Compressed] source keeps. The zero file is none.
type file struct {
	size int64
	tag  string
}

// find returns the narinfo of a path: remembered, where that is still right, or asked for.
func (c *Cache) find(ctx context.Context, hash nix.PathHash) (*entry, error) {
	if e, at, ok := c.found.Get(hash); ok && at.Hit(c.version(ctx, e.depends)) {
		return c.measured(hash, e, at), nil
	}
	now := c.version(ctx, len(c.sources))
	if _, at, ok := c.missing.Get(hash); ok && at.Miss(now) {
		return nil, ErrNotFound
	}

	// Others who ask wait for the same answer, unless the sources have changed since it was asked for.
	// It must not fail because the first who asked went away, so that one's context does not end it.
	key := binary.LittleEndian.AppendUint64(hash[:], now.Number)
	e, err, _ := c.asking.Do(string(key), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askLimit)
		defer cancel()
		return c.ask(ctx, hash)
	})
	if err != nil {
		return nil, err
	}
	return e.(*entry), nil
}

// ask asks the sources for a path, and remembers the answer.
// A narinfo is remembered even if it cannot be told for how long it is right, so that it is signed once.
func (c *Cache) ask(ctx context.Context, hash nix.PathHash) (*entry, error) {
	// Before they are asked, so that an answer is never older than the version that it is kept under.
	before := make([]memo.Version, len(c.sources)+1)
	before[0] = c.version(ctx, 0)
	for i, s := range c.changes {
		before[i+1] = before[i].And(s.Version(ctx))
	}
	var kept file        // of the source that answers
	depends := 0         // of the sources that are asked, the most
	release := func() {} // the memory of its answer
	a, err := first(c, func(s Source) (info *nix.PathInfo, err error) {
		info, done, needs, err := c.pathInfo(ctx, s, hash)
		if depends = max(depends, needs); needs == unknown {
			clear(before)
		}
		if err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				done()
			}
		}()
		if able, ok := s.(Compressed); ok {
			kept.size, kept.tag, err = able.StatCompressed(ctx, info)
		} else {
			kept = file{}
		}
		if err == nil {
			release = done
		}
		return info, err
	})
	defer release()
	switch {
	case errors.Is(err, ErrNotFound):
		if at := before[len(c.sources)]; at.Freshness != memo.Unknown {
			c.missing.Put(hash, struct{}{}, at, 1)
		}
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("look up %s: %w", hash, err)
	}

	pushed, err := c.pushedTo(ctx, a.from, a.value)
	if err != nil {
		// The path can be served without.
		c.log.Warn("could not look up pushed signatures and fields of a path", "path", a.value.Path.String(), "error", err)
		a.unsure = true
	}
	at := before[depends]
	if a.unsure {
		at = memo.Version{}
	}
	e := &entry{depends: depends, from: a.from, origin: a.value, pushed: pushed, file: kept}
	if old, _, ok := c.found.Get(hash); ok && old.from == e.from && old.file == e.file && equal(old.origin, e.origin) &&
		slices.Equal(old.pushed.signatures, pushed.signatures) && slices.Equal(old.pushed.extra, pushed.extra) {
		e.info, e.text = old.info, old.text
		e = c.measured(hash, e, at)
	} else {
		e.info = c.render(e)
		e.text = e.info.AppendText(nil)
	}
	c.remember(hash, e, at)
	return e, nil
}

func (c *Cache) remember(hash nix.PathHash, e *entry, at memo.Version) {
	if cost := e.cost(); cost <= 4*LargeInfo {
		c.found.Put(hash, e, at, cost)
	}
}

// origin returns what the first source that has a path knows of it, without making a narinfo of it.
// It must be dropped when done is called.
func (c *Cache) origin(ctx context.Context, hash nix.PathHash) (info *nix.PathInfo, done func(), err error) {
	if e, at, ok := c.found.Get(hash); ok && at.Hit(c.version(ctx, e.depends)) {
		return e.origin, func() {}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	a, err := first(c, func(s Source) (info *nix.PathInfo, err error) {
		info, done, _, err = c.pathInfo(ctx, s, hash)
		return info, err
	})
	return a.value, done, err
}

// answer is what a source answered.
type answer[T any] struct {
	value  T
	from   Source
	unsure bool // a source before it could not tell
}

// first asks the sources that are an S, in order, until one has an answer.
// The error is ErrNotFound, or wraps ErrUnavailable when one of them could not tell.
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

// version returns one version for the first n sources. It is another one after a push in any case,
// so that who asks then does not get an answer that was asked for before.
func (c *Cache) version(ctx context.Context, n int) memo.Version {
	v := memo.Exactly(c.pushes.Load(), true)
	for _, s := range c.changes[:n] {
		v = v.And(s.Version(ctx))
	}
	return v
}

// unversioned is the version of a source that cannot tell whether it has changed.
type unversioned struct{}

func (unversioned) Version(context.Context) memo.Version { return memo.Version{} }

// unknown is the number of sources that an answer depends on which must not be remembered.
const unknown = -1

// pathInfo asks one source for a path. One that cannot be used, as something that it refers to is
// missing, is not there. depends is how many sources, from the first on, the answer depends on, or
// unknown. What is returned must be dropped when done is called.
func (c *Cache) pathInfo(ctx context.Context, s Source, hash nix.PathHash) (info *nix.PathInfo, done func(), depends int, err error) {
	depends = 1 + slices.Index(c.sources, s)
	if c.Keeps() { // which has signatures of what others have
		depends = max(depends, 1+slices.Index(c.sources, c.sink.Source))
	}
	info, done, err = c.heldInfo(ctx, s, hash)
	if err != nil || !c.isSink(s) {
		return info, done, depends, err
	}
	lacks, current, leans, err := c.lacking(ctx, info)
	switch {
	case !current:
		depends = unknown
	case leans:
		depends = len(c.sources)
	}
	if err == nil && !lacks.IsZero() {
		err = ErrNotFound
	}
	if err != nil {
		done()
		return nil, nil, depends, err
	}
	return info, done, depends, nil
}

// soundInfo asks one source for a path, whatever that refers to. It may be large: who asks drops it
// at once, or is alone.
func (c *Cache) soundInfo(ctx context.Context, s Source, hash nix.PathHash) (*nix.PathInfo, error) {
	info, err := s.PathInfo(ctx, hash)
	if err != nil {
		return nil, err
	}
	if err := c.sound(hash, info); err != nil {
		c.log.Error("left out what a source answered", "source", s.Name(), "error", err)
		return nil, ErrNotFound
	}
	return info, nil
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

// render returns the narinfo of an entry.
func (c *Cache) render(e *entry) *nix.NARInfo {
	origin := e.origin
	info := &nix.NARInfo{PathInfo: *origin}
	plain(info, origin)
	from, kept := e.from.(Compressed)
	if kept || c.compress {
		// The hash of the file is not needed for anything: the NAR hash covers what counts.
		info.FileHash = nix.Hash{}
	}
	switch {
	case kept:
		info.Compression = from.Compression()
		info.FileSize = e.file.size
		info.URL = narURL(origin, e.file.tag)
	case c.compress:
		info.Compression = c.encoder.Compression()
		info.URL = narURL(origin, c.encoder.Version())
		info.FileSize, _ = c.encoder.Encoded(origin)
	}
	info.URL += suffix(info.Compression)
	given := origin.Signatures
	if len(e.pushed.signatures) > 0 {
		given = slices.Concat(given, e.pushed.signatures)
	}
	info.Signatures = c.sign(given, origin.AppendFingerprint(nil))
	if info.Extra == nil {
		info.Extra = e.pushed.extra
	}
	return info
}

// plain has a narinfo lead to the NAR as it is.
func plain(info *nix.NARInfo, origin *nix.PathInfo) {
	info.URL = narURL(origin, "")
	info.Compression = nix.None
	info.FileHash, info.FileSize = origin.NARHash, origin.NARSize
}

// measured returns e with the size of its compressed NAR, once that is known;
// clients add the sizes up to say how much they will download.
// An entry of which it is known already costs nothing here.
func (c *Cache) measured(hash nix.PathHash, e *entry, at memo.Version) *entry {
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
	c.remember(hash, &sized, at)
	return &sized
}

// sign returns the given signatures and ours.
// What is given under the name of one of our own keys is left out: we know better. So is what would
// make more than are read, and what would harm clients, see [Cache.misleads].
func (c *Cache) sign(given []nix.Signature, fingerprint []byte) []nix.Signature {
	all := make([]nix.Signature, 0, len(given)+len(c.keys))
	for _, s := range given {
		if !c.isOurs(s.Name) && !c.misleads(s, given) && len(all)+len(c.keys) < maxSignatures && !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	for _, k := range c.keys {
		all = append(all, k.Sign(fingerprint))
	}
	return all
}

// isOurs reports whether one of our own keys has this name.
func (c *Cache) isOurs(name string) bool {
	return slices.ContainsFunc(c.keys, func(k nix.SecretKey) bool { return k.Name() == name })
}

// nixosKey is the name of the Ed25519 key that every Nix trusts where nothing else is configured.
const nixosKey = "cache.nixos.org-1"

// misleads reports whether s is of another algorithm than Ed25519, under a name that is known to be
// that of an Ed25519 key: that of NixOS, of this server, or of one that has signed the same. Every
// Nix that trusts the Ed25519 key would fail at it ("signature is not valid"), whatever else is
// signed. No honest signer gives one name to two keys: Nix finds keys by their names.
func (c *Cache) misleads(s nix.Signature, beside []nix.Signature) bool {
	return !s.IsEd25519() && (s.Name == nixosKey || c.isOurs(s.Name) || c.reserved(s.Name) ||
		slices.ContainsFunc(beside, func(other nix.Signature) bool { return other.Name == s.Name && other.IsEd25519() }))
}

// cost estimates the bytes that an entry takes in memory.
func (e *entry) cost() int64 {
	const (
		fixed   = 1 << 10 // the structs, the URL, the deriver, the place in the map
		perRef  = 128     // a StorePath and its text
		perSign = 128     // a Signature, twice
	)
	size := fixed + len(e.text) + perRef*len(e.info.References) + perSign*len(e.info.Signatures)
	for _, f := range e.info.Extra {
		size += len(f.Name) + len(f.Value)
	}
	for _, s := range e.origin.Signatures {
		if !s.IsEd25519() {
			size += nix.MaxSignatureLen
		}
	}
	return int64(size)
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
		slices.Equal(a.Extra, b.Extra) &&
		slices.Equal(a.Signatures, b.Signatures)
}

// WithOrigin has f look at what the first source that has a path knows of it, which f must not
// change, and not keep where it is large: as Lookup, for those who need neither the signatures of
// the cache nor a narinfo.
func (c *Cache) WithOrigin(ctx context.Context, hash nix.PathHash, f func(*nix.PathInfo) error) error {
	info, done, err := c.origin(ctx, hash)
	if errors.Is(err, ErrNotFound) {
		return err
	}
	if err != nil {
		return fmt.Errorf("look up %s: %w", hash, err)
	}
	defer done()
	return f(info)
}

// Has reports whether the cache has this very path. It is an error if that could not be told.
func (c *Cache) Has(ctx context.Context, path nix.StorePath) (bool, error) {
	has := false
	err := c.WithOrigin(ctx, path.Hash(), func(info *nix.PathInfo) error {
		has = info.Path == path
		return nil
	})
	if errors.Is(err, ErrNotFound) {
		err = nil
	}
	return has, err
}
