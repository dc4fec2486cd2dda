package cache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"testing"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/nix"
)

// shared is a sink that others change too, and that counts what it is asked.
type shared struct {
	*cachetest.Memory
	mu      sync.Mutex
	asked   int // by PathInfo and References, each path counted
	batches int
	between func() // before something is kept, after it was checked
}

func (s *shared) PathInfo(ctx context.Context, hash nix.PathHash) (*nix.PathInfo, error) {
	s.mu.Lock()
	s.asked++
	s.mu.Unlock()
	return s.Memory.PathInfo(ctx, hash)
}

func (s *shared) References(ctx context.Context, hashes []nix.PathHash) iter.Seq2[cache.Referrer, error] {
	s.mu.Lock()
	s.asked += len(hashes)
	s.batches++
	s.mu.Unlock()
	return s.Memory.References(ctx, hashes)
}

func (s *shared) Publish(ctx context.Context, info *nix.PathInfo, b cache.Basis, elsewhere ...nix.StorePath) (*nix.PathInfo, error) {
	if s.between != nil {
		s.between()
	}
	return s.Memory.Publish(ctx, info, b, elsewhere...)
}

func (s *shared) PutRealisation(ctx context.Context, r *nix.Realisation, b cache.Basis) error {
	if s.between != nil {
		s.between()
	}
	return s.Memory.PutRealisation(ctx, r, b)
}

func (s *shared) count() (asked, batches int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked, batches, s.asked, s.batches = s.asked, s.batches, 0, 0
	return asked, batches
}

func newShared(t *testing.T, opts cache.Options, before ...cache.Source) (*pushed, *shared) {
	t.Helper()
	s := &shared{Memory: cachetest.NewMemory()}
	opts.Sink = cache.SinkOf(s)
	return &pushed{T: t, sink: s.Memory, key: newKey(t, "ours-1"), Cache: newCache(t, opts, append(before, s)...)}, s
}

// numbered is a path that is like no other.
func numbered(t testing.TB, n int) cachetest.Path {
	return cachetest.NewTree(t, nix.DefaultStoreDir, "tree", map[string]string{"n": fmt.Sprint(n)})
}

// publishDirectly is what another process does.
func publishDirectly(t *testing.T, s *shared, p cachetest.Path) {
	t.Helper()
	if _, err := s.Receive(t.Context(), cache.Upload{URL: cachetest.URL(p.NAR, ""), NAR: bytes.NewReader(p.NAR)}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Memory.Publish(t.Context(), p.Info, cachetest.Unchecked()); err != nil {
		t.Fatal(err)
	}
}

// What another process changes between the checks and the publish is seen.
func TestPublishChanged(t *testing.T) {
	a, b, d := numbered(t, 0), numbered(t, 1), numbered(t, 2)

	t.Run("a cycle", func(t *testing.T) {
		c, s := newShared(t, cache.Options{AllowMissingReferences: true})
		n := c.upload(refersTo(a, b))
		s.between = sync.OnceFunc(func() { publishDirectly(t, s, refersTo(b, a)) })
		c.wantRefused(n, cache.ErrInvalid, "cycle")
		wantMissing(t, c.Cache, n.Path.Hash())
	})
	t.Run("a cycle further on", func(t *testing.T) {
		c, s := newShared(t, cache.Options{AllowMissingReferences: true})
		publishDirectly(t, s, refersTo(d, a))
		n := c.upload(refersTo(a, b)) // d leads to a already, so it looks, and b is not there
		s.between = sync.OnceFunc(func() { publishDirectly(t, s, refersTo(b, d)) })
		c.wantRefused(n, cache.ErrInvalid, "cycle")
	})
	t.Run("no cycle", func(t *testing.T) {
		c, s := newShared(t, cache.Options{AllowMissingReferences: true})
		publishDirectly(t, s, refersTo(d, a))
		n := c.upload(refersTo(a, b))
		s.between = sync.OnceFunc(func() { publishDirectly(t, s, b) })
		c.publish(n)
	})
	t.Run("a deletion", func(t *testing.T) {
		c, s := newShared(t, cache.Options{})
		publishDirectly(t, s, b)
		n := c.upload(refersTo(a, b))
		s.between = sync.OnceFunc(func() { s.Remove(b.Info.Path) })
		c.wantRefused(n, cache.ErrInvalid, "push that first")
		publishDirectly(t, s, b)
		c.publish(n)
	})
	t.Run("a deletion of what another source has", func(t *testing.T) {
		c, s := newShared(t, cache.Options{}, cachetest.NewMemory(b))
		publishDirectly(t, s, b)
		n := c.upload(refersTo(a, b))
		s.between = sync.OnceFunc(func() { s.Remove(b.Info.Path) })
		c.publish(n)
	})
	t.Run("a deletion where references may be missing", func(t *testing.T) {
		c, s := newShared(t, cache.Options{AllowMissingReferences: true})
		publishDirectly(t, s, b)
		n := c.upload(refersTo(a, b))
		tries := 0
		s.between = func() { tries++; s.Remove(b.Info.Path) }
		c.publish(n)
		if tries != 1 {
			t.Errorf("it was tried %d times", tries)
		}
	})
	t.Run("a deletion of what gets a signature", func(t *testing.T) {
		c, s := newShared(t, cache.Options{})
		n := c.upload(a)
		c.publish(n)
		n.Signatures = []nix.Signature{newKey(t, "theirs-1").Sign(n.AppendFingerprint(nil))}
		s.between = sync.OnceFunc(func() { s.Remove(a.Info.Path) })
		if _, err := put(t, c.Cache, n); !errors.Is(err, cache.ErrUnavailable) {
			t.Errorf("Publish: %v, want ErrUnavailable", err)
		}
		wantMissing(t, c.Cache, n.Path.Hash())
		c.publish(n)
	})
	t.Run("a deletion of what was built", func(t *testing.T) {
		c, s := newShared(t, cache.Options{})
		c.publish(c.upload(a))
		r := &nix.Realisation{ID: nix.RealisationID{DrvHash: nix.SHA256Sum([32]byte{}), Output: "out"}, OutPath: a.Info.Path}
		s.between = sync.OnceFunc(func() { s.Remove(a.Info.Path) })
		if err := c.PutRealisation(t.Context(), r); !errors.Is(err, cache.ErrInvalid) {
			t.Errorf("PutRealisation: %v, want ErrInvalid", err)
		}
		if _, err := c.Realisation(t.Context(), r.ID); !errors.Is(err, cache.ErrNotFound) {
			t.Errorf("Realisation: %v, want ErrNotFound", err)
		}
	})
	t.Run("without end", func(t *testing.T) {
		c, s := newShared(t, cache.Options{AllowMissingReferences: true})
		publishDirectly(t, s, refersTo(d, a))
		n := c.upload(refersTo(a, b))
		tries := 0
		s.between = func() {
			tries++
			s.Remove(b.Info.Path)
			publishDirectly(t, s, b)
		}
		if _, err := put(t, c.Cache, n); !errors.Is(err, cache.ErrUnavailable) {
			t.Errorf("Publish: %v, want ErrUnavailable", err)
		}
		if tries < 10 || tries > 1000 {
			t.Errorf("it was tried %d times", tries)
		}
		s.between = nil
		c.publish(n)
	})
}

// Paths with many missing references do not make others look for these, and are not looked for
// often.
func TestLookups(t *testing.T) {
	const many, large = 27_000, 9 // as many as a narinfo of 1 MiB holds
	c, s := newShared(t, cache.Options{AllowMissingReferences: true})
	var all []cachetest.Path
	for i := range large {
		p := numbered(t, i)
		info := *p.Info
		for j := range many {
			var hash nix.PathHash
			hash[0], hash[1], hash[2], hash[3] = byte(j), byte(j>>8), byte(i), 1
			path, err := nix.DefaultStoreDir.ParseBase(hash.String() + "-x")
			if err != nil {
				t.Fatal(err)
			}
			info.References = append(info.References, path)
		}
		info.References = nix.SortPaths(info.References)
		all = append(all, cachetest.Path{Info: &info, NAR: p.NAR})
		c.publish(c.upload(all[i]))
	}
	if asked, _ := s.count(); asked > 10*large {
		t.Errorf("to publish %d paths with missing references, %d paths were looked up", large, asked)
	}

	// Nothing refers to this one, so it closes no cycle.
	p := numbered(t, 100)
	c.publish(c.upload(refersTo(p, all...)))
	if asked, _ := s.count(); asked > 10 {
		t.Errorf("to publish a path that refers to them, %d paths were looked up", asked)
	}

	// This one is referred to already.
	last := numbered(t, 101)
	c.publish(c.upload(refersTo(numbered(t, 102), last)))
	s.count()
	c.wantRefused(c.upload(refersTo(last, all...)), cache.ErrTooLarge, "lead")
	if asked, batches := s.count(); asked > 1<<16 || batches > 1<<16/256+10 {
		t.Errorf("to refuse a path that leads to too many, %d paths were looked up in %d questions", asked, batches)
	}

	// What is missing to many is looked up once. What many say of it is read, so that is bounded
	// too.
	shared := all[0].Info.References
	var same []cachetest.Path
	for i := range 160 {
		p := numbered(t, 200+i)
		info := *p.Info
		info.References = shared
		same = append(same, cachetest.Path{Info: &info, NAR: p.NAR})
		publishDirectly(t, s, same[i])
	}
	c.publish(c.upload(refersTo(numbered(t, 103), numbered(t, 104))))
	s.count()
	c.wantRefused(c.upload(refersTo(numbered(t, 104), same...)), cache.ErrTooLarge, "lead")
	if asked, _ := s.count(); asked > 2*len(same) {
		t.Errorf("to refuse a path that leads to too many references, %d paths were looked up", asked)
	}
	c.publish(c.upload(refersTo(numbered(t, 104), same[:100]...)))
	s.count()

	c.publish(c.upload(refersTo(last, all[0], all[1])))
	if asked, batches := s.count(); asked < 2*many || asked > 2*many+100 || batches > 2*many/256+10 {
		t.Errorf("to publish a path that leads to %d, %d paths were looked up in %d questions", 2*many, asked, batches)
	}
}

// References that have to be there are looked up many at once.
func TestLookupsOfReferences(t *testing.T) {
	c, s := newShared(t, cache.Options{})
	var refs []cachetest.Path
	for i := range 1000 {
		refs = append(refs, numbered(t, i))
		publishDirectly(t, s, refs[i])
	}
	n := c.upload(refersTo(numbered(t, 1000), refs...))
	s.count()
	c.publish(n)
	if asked, batches := s.count(); asked > 1010 || batches != 4 {
		t.Errorf("%d paths were looked up in %d questions", asked, batches)
	}
}

// References that another source has are looked up many at once, too.
func TestLookupsElsewhere(t *testing.T) {
	var refs []cachetest.Path
	for i := range 3000 {
		refs = append(refs, numbered(t, i))
	}
	store := &shared{Memory: cachetest.NewMemory(refs...)}
	c, s := newShared(t, cache.Options{}, store)
	n := c.upload(refersTo(numbered(t, 3000), refs...))
	s.count()
	store.count()
	c.publish(n)
	for name, source := range map[string]*shared{"sink": s, "other source": store} {
		if asked, batches := source.count(); asked > 3010 || batches > 12 {
			t.Errorf("the %s was asked for %d paths in %d questions", name, asked, batches)
		}
	}
}

// Publishes do not wait for one whose look-ups take long.
func TestPublishBesideSlowSearch(t *testing.T) {
	a, b, d := numbered(t, 0), numbered(t, 1), numbered(t, 2)
	c, s := newShared(t, cache.Options{AllowMissingReferences: true})
	publishDirectly(t, s, refersTo(d, a))
	n, other, third := c.upload(refersTo(a, b)), c.upload(refersTo(numbered(t, 3), numbered(t, 4))), c.upload(refersTo(numbered(t, 4), numbered(t, 5)))
	searched, goOn := make(chan struct{}), make(chan struct{})
	s.between = sync.OnceFunc(func() { close(searched); <-goOn })
	published := make(chan error)
	go func() {
		_, err := put(t, c.Cache, n)
		published <- err
	}()
	<-searched
	s.between = nil
	c.publish(other)
	c.publish(third) // which looks for a cycle
	close(goOn)
	if err := <-published; err != nil {
		t.Error(err)
	}
}
