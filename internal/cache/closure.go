package cache

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"firn/internal/memo"
	"firn/nix"
)

// A Reference is that of one path to another.
type Reference struct {
	From nix.StorePath // one of those that refer to To
	To   nix.StorePath
}

const (
	// quickEnough is how long a search for missing references may take to be made with every change
	// of a source: of some thousand references. After one that took longer, the next one waits
	// restFactor times as long as that, where something changes all the time: so these take a
	// twentieth of the time at most.
	quickEnough = 20 * time.Millisecond
	restFactor  = 20

	// maxWalked bounds the paths whose closures are remembered as whole or not while something is
	// missing, some 100 bytes each.
	maxWalked = 64 << 10

	// maxClosure bounds how many paths of one closure are looked at, of some 100 bytes each. The
	// largest closures known, of whole systems with all that they were built from, have some
	// 50,000.
	maxClosure = 1 << 18

	// maxLogged bounds the missing references that are logged at once. `firn verify` names all.
	maxLogged = 8
)

// closures knows what published paths refer to and no source has. A path that leads to such a
// reference is not announced: no client could fetch its closure.
type closures struct {
	checked bool          // else what is published counts as whole
	walking chan struct{} // holds something while a closure is walked

	mu      sync.Mutex
	known   bool
	sure    bool         // all sources could tell when they were last asked
	leans   bool         // published paths need something of the other sources
	sink    memo.Version // that of the sink before it was last asked
	others  memo.Version // and that of the other sources
	asked   time.Time
	took    time.Duration
	missing *missing // does not change
}

// missing is what published paths lack.
type missing struct {
	refs map[nix.PathHash]Reference // From is zero of a path that is withheld
	// walked remembers of a published path what it leads to that is missing; zero: nothing. That is
	// right for as long as no more is missing, the other for as long as what it says is missing is,
	// and no path was published again with other references.
	walked *memo.Memo[nix.PathHash, nix.StorePath]
}

// lacking returns what is missing of the closure of a path that the sink has published; zero:
// nothing. current says that nothing has changed since that was found out, and leans that it depends
// on the other sources too.
func (c *Cache) lacking(ctx context.Context, info *nix.PathInfo) (lacks nix.StorePath, current, leans bool, err error) {
	m, current, leans, err := c.missingNow(ctx, false)
	if err != nil || m == nil || len(m.refs) == 0 {
		return nix.StorePath{}, current, leans, err
	}
	lacks, err = c.walk(ctx, m, info)
	return lacks, current, leans, err
}

// missingNow returns what published paths lack. It is looked for again when a source has changed;
// unless it is urgent, not too often.
func (c *Cache) missingNow(ctx context.Context, urgent bool) (m *missing, current, leans bool, err error) {
	s := &c.closures
	if !s.checked {
		return nil, true, false, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// Before they are asked.
	sink, others := c.changes[slices.Index(c.sources, c.sink.Source)].Version(ctx), c.othersVersion(ctx)
	sameOthers := s.known && s.sure && s.others.Hit(others)
	switch {
	case (sameOthers || s.known && !s.leans) && s.sink.Hit(sink):
		return s.missing, true, s.leans, nil
	case s.known && !urgent && s.took > quickEnough && time.Since(s.asked) < restFactor*s.took:
		return s.missing, false, s.leans, nil
	}
	began := time.Now()
	next, leans, sure, err := c.findMissing(ctx, sameOthers && len(c.sources) > 1)
	if err != nil {
		return nil, false, false, fmt.Errorf("look for missing references: %w", err)
	}
	c.replaceMissing(next)
	s.known, s.sure, s.leans, s.sink, s.others = true, sure, leans, sink, others
	s.asked = time.Now()
	s.took = s.asked.Sub(began)
	current = sure && sink.Hit(sink) && (!leans || others.Hit(others))
	return s.missing, current, leans, nil
}

// findMissing asks the sources what is missing. With sameOthers, those besides the sink are as they
// were: what paths were published with since then was there. leans says that published paths need
// something of these, and sure that all could tell.
func (c *Cache) findMissing(ctx context.Context, sameOthers bool) (refs map[nix.PathHash]Reference, leans, sure bool, err error) {
	s := &c.closures
	refs, sure = map[nix.PathHash]Reference{}, true
	var batch []Reference
	flush := func() {
		found, err := c.elsewhere(ctx, batch)
		sure = sure && err == nil
		for _, r := range batch {
			hash := r.To.Hash()
			there := found[r.To]
			if err != nil && !there {
				_, missed := s.missing.refs[hash]
				there = !missed
			}
			if !there {
				refs[hash] = r
			}
		}
		batch = batch[:0]
	}
	add := func(r Reference) {
		if batch = append(batch, r); len(batch) == maxBatch {
			flush()
		}
	}
	if sameOthers {
		leans = true // what was published since then may
		for hash, r := range s.missing.refs {
			if !r.From.IsZero() { // else it may not be withheld any more
				refs[hash] = r
			}
		}
		err := c.sinkReferences(ctx, slices.Collect(maps.Keys(refs)), func(r Referrer) error {
			if !r.Withheld {
				delete(refs, r.Path.Hash())
			}
			return nil
		})
		if err != nil {
			return nil, false, false, err
		}
	} else {
		for r, err := range c.sink.DanglingReferences(ctx) {
			if err != nil {
				return nil, false, false, err
			}
			leans = true
			add(r)
		}
	}
	for path, err := range c.sink.WithheldPaths(ctx) {
		if err != nil {
			return nil, false, false, err
		}
		leans = true
		add(Reference{To: path})
	}
	flush()
	return refs, leans, sure, nil
}

// replaceMissing records what is missing now, and logs what has changed.
func (c *Cache) replaceMissing(refs map[nix.PathHash]Reference) {
	s := &c.closures
	next := &missing{refs: refs, walked: s.missing.walked}
	var gone, back int
	for hash, r := range refs {
		if _, was := s.missing.refs[hash]; was {
			continue
		}
		if gone++; gone > maxLogged {
			continue
		}
		attrs := []any{"cache", c.name, "missing", r.To.String()}
		if !r.From.IsZero() {
			attrs = append(attrs, "path", r.From.String())
		}
		c.log.Warn("pushed paths are not announced, as what they refer to is gone: push that, or bring it back to the store of this machine", attrs...)
	}
	for hash, r := range s.missing.refs {
		if _, is := refs[hash]; is {
			continue
		}
		if back++; back <= maxLogged {
			c.log.Info("what pushed paths refer to is there again", "cache", c.name, "path", r.To.String())
		}
	}
	if gone > maxLogged {
		c.log.Warn("more is gone that pushed paths refer to: firn verify names the paths", "cache", c.name, "missing", gone-maxLogged)
	}
	s.missing = next
	if gone > 0 || next.walked == nil {
		s.forget()
	}
}

// forget forgets which paths were walked, for all who walk from now on.
func (s *closures) forget() {
	s.missing = &missing{refs: s.missing.refs, walked: memo.New[nix.PathHash, nix.StorePath](maxWalked)}
}

// published notes that a path was published here, perhaps with other references than it had.
func (s *closures) published(path nix.StorePath) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.missing.refs) == 0 {
		return
	}
	if lacks, known := s.missing.verdict(path.Hash()); known && !lacks.IsZero() {
		s.forget()
	}
}

// walk looks for what is missing in the closure of a path.
func (c *Cache) walk(ctx context.Context, m *missing, info *nix.PathInfo) (lacks nix.StorePath, err error) {
	own := info.Path.Hash()
	if lacks, known := m.verdict(own); known {
		return lacks, nil
	}
	select { // one at a time: the next one may find all of it remembered
	case c.closures.walking <- struct{}{}:
		defer func() { <-c.closures.walking }()
	case <-ctx.Done():
		return lacks, fmt.Errorf("look for what %s refers to: %w: %w", info.Path, ErrUnavailable, context.Cause(ctx))
	}
	seen := map[nix.PathHash]bool{own: true}
	var next []nix.StorePath
	add := func(refs []nix.StorePath) {
		for _, ref := range refs {
			if hash := ref.Hash(); !seen[hash] && len(seen) < maxClosure {
				seen[hash] = true
				next = append(next, ref)
			}
		}
	}
	add(info.References)
	for len(next) > 0 {
		ref := next[len(next)-1]
		next = next[:len(next)-1]
		hash := ref.Hash()
		if r, ok := m.refs[hash]; ok {
			m.walked.Put(own, r.To, memo.Version{}, 1)
			return r.To, nil
		}
		lacks, known := m.verdict(hash)
		if !lacks.IsZero() {
			m.walked.Put(own, lacks, memo.Version{}, 1)
			return lacks, nil
		}
		if known {
			continue
		}
		if there, err := c.elsewhere(ctx, []Reference{{To: ref}}); err == nil && there[ref] {
			continue // with all that it refers to
		}
		there, err := c.soundInfo(ctx, c.sink.Source, hash)
		switch {
		case err == nil:
			add(there.References)
		case !errors.Is(err, ErrNotFound):
			return lacks, err
		}
	}
	for hash := range seen {
		m.walked.Put(hash, nix.StorePath{}, memo.Version{}, 1)
	}
	return nix.StorePath{}, nil
}

// verdict is what is remembered of a path.
func (m *missing) verdict(hash nix.PathHash) (lacks nix.StorePath, known bool) {
	lacks, _, known = m.walked.Get(hash)
	if known && !lacks.IsZero() {
		if _, still := m.refs[lacks.Hash()]; !still {
			return nix.StorePath{}, false
		}
	}
	return lacks, known
}

// elsewhere returns which of at most maxBatch paths the sources besides the sink have. With an error,
// others may be there too.
func (c *Cache) elsewhere(ctx context.Context, refs []Reference) (map[nix.StorePath]bool, error) {
	hashes := make([]nix.PathHash, len(refs))
	for i, r := range refs {
		hashes[i] = r.To.Hash()
	}
	found := make(map[nix.StorePath]bool)
	err := c.eachIn(ctx, c.sinkFirst[1:], hashes, func(_ Source, r Referrer) error {
		found[r.Path] = true
		return nil
	})
	return found, err
}

// othersVersion is one version for the sources besides the sink.
func (c *Cache) othersVersion(ctx context.Context) memo.Version {
	all := memo.Exactly(0, true)
	for i, s := range c.sources {
		if !c.isSink(s) {
			all = all.And(c.changes[i].Version(ctx))
		}
	}
	return all
}

// CheckReferences looks for what pushed paths refer to and no source has, so that it is logged also
// where no client asks for them.
func (c *Cache) CheckReferences(ctx context.Context) error {
	m, _, _, err := c.missingNow(ctx, true)
	if err == nil && m != nil && len(m.refs) > 0 {
		c.closures.mu.Lock()
		c.closures.forget() // other processes publish too
		c.closures.mu.Unlock()
		c.pushes.Add(1) // so that remembered misses are not believed
	}
	return err
}

// Incomplete iterates over the paths that are kept in the sink of this cache and are not announced,
// as something is missing that they refer to, however indirectly: that is To.
func (c *Cache) Incomplete(ctx context.Context) iter.Seq2[Reference, error] {
	return func(yield func(Reference, error) bool) {
		m, _, _, err := c.missingNow(ctx, true)
		if err != nil {
			yield(Reference{}, err)
			return
		}
		lister, ok := c.sink.Source.(Enumerator)
		if m == nil || len(m.refs) == 0 || !ok {
			return
		}
		for info, err := range lister.Paths(ctx) {
			var lacks nix.StorePath
			if err == nil {
				lacks, err = c.walk(ctx, m, info)
			}
			if err == nil && lacks.IsZero() {
				continue
			}
			if err == nil {
				// One that another source has too is announced.
				var there map[nix.StorePath]bool
				if there, err = c.elsewhere(ctx, []Reference{{To: info.Path}}); err == nil && there[info.Path] {
					continue
				}
			}
			r := Reference{To: lacks}
			if info != nil {
				r.From = info.Path
			}
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}

// OnlyElsewhere iterates over what pushed paths refer to and was not pushed itself: other sources
// have it, as far as it is there.
func (c *Cache) OnlyElsewhere(ctx context.Context) iter.Seq2[nix.StorePath, error] {
	return func(yield func(nix.StorePath, error) bool) {
		if !c.Keeps() {
			return
		}
		for r, err := range c.sink.DanglingReferences(ctx) {
			if !yield(r.To, err) || err != nil {
				return
			}
		}
	}
}
