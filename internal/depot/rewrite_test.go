package depot_test

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"firn/internal/cache"
	"firn/internal/depot"
	"firn/internal/depot/blob"
	"firn/internal/depot/blob/blobtest"
	"firn/internal/depot/index"
	"firn/nix"
)

// A thinned depot has a pack of which most is nobody's: of what a NAR needed that is gone.
type thinned struct {
	*tester
	now    time.Time
	shared []byte // what is needed of the pack
	kept   []byte // the NAR that needs it
	info   *nix.PathInfo
}

func newThinned(tb testing.TB, cat Catalog, blobs blob.Store) *thinned {
	tb.Helper()
	return newThinnedWith(tb, cat, blobs, depot.Options{})
}

func newThinnedWith(tb testing.TB, cat Catalog, blobs blob.Store, opts depot.Options) *thinned {
	tb.Helper()
	// What lies between references is cut as if there were nothing around it.
	s := &thinned{now: time.Now(), shared: slices.Concat([]byte(reference(3, 1)), text(600_000, 1), []byte(reference(3, 1)))}
	opts.Now = func() time.Time { return s.now }
	s.tester = newTesterOn(tb, cat, blobs, opts)
	gone := s.push(archive(s, dir(""), file("a", noise(2_000_000, 2)), file("b", s.shared), file("c", text(2_000_000, 3))))
	s.kept = archive(s, dir(""), file("x", s.shared), file("y", []byte(reference(1, 1)+reference(2, 1))), file("z", s.shared))
	s.info = s.push(s.kept)
	s.remove(gone)
	return s
}

// thin adds a pack that is thin, and returns the path that needs some of it.
func (s *thinned) thin(seed uint64) (info *nix.PathInfo, kept []byte) {
	s.Helper()
	shared := slices.Concat([]byte(reference(3, int(seed))), text(100_000, seed), []byte(reference(3, int(seed))))
	gone := s.push(archive(s, dir(""), file("a", noise(400_000, seed)), file("b", shared)))
	kept = archive(s, file("", shared))
	info = s.push(kept)
	s.remove(gone)
	return info, kept
}

// remove has a path, and what nothing else leads to, gone at once.
func (s *thinned) remove(gone *nix.PathInfo) {
	s.Helper()
	if err := deletePath(s.tester, gone.Path.Hash()); err != nil {
		s.Fatal(err)
	}
	for more := true; more; {
		var err error
		if _, more, err = s.catalog.Sweep(s.Context(), s.now.Add(time.Hour), 100); err != nil {
			s.Fatal(err)
		}
	}
}

// pass lets time pass, and ticks.
func (s *thinned) pass(d time.Duration) {
	s.Helper()
	s.now = s.now.Add(d)
	if err := s.depot.Tick(s.Context()); err != nil {
		s.Error(err)
	}
}

// wantSmall checks that only what is needed is left, once the grace is over.
func (s *thinned) wantSmall() {
	s.Helper()
	for range 4 {
		s.pass(25 * time.Hour)
	}
	if names, size := s.packs(); len(names) > 2 || size > 400_000 {
		s.Errorf("packs %v of %d bytes are left", names, size)
	}
	counts, err := s.catalog.Count(s.Context())
	if _, size := s.packs(); err != nil || counts.PackBytes != size || counts.Reclaimable != 0 {
		s.Errorf("the catalog counts %+v, %v", counts, err)
	}
}

// TestRewrite: of a pack with few live bytes only these stay. Who has it open reads on, clients can resume, and what is left can be shared.
func TestRewrite(tt *testing.T) {
	s := newThinned(tt, newCatalog(tt), blobtest.NewMemory())
	size, tag, err := s.StatCompressed(s.Context(), s.info)
	if err != nil {
		s.Fatal(err)
	}
	before, _, err := s.OpenCompressed(s.Context(), s.info)
	if err != nil {
		s.Fatal(err)
	}
	defer before.Close()
	var want bytes.Buffer
	if err := before.WriteRange(s.Context(), &want, 0, size); err != nil {
		s.Fatal(err)
	}
	s.pass(0)
	if names, _ := s.packs(); len(names) != 3 {
		s.Errorf("packs %v, want the two and a new one", names)
	}
	counts, err := s.catalog.Count(s.Context())
	if err != nil || counts.Reclaimable < 2_000_000 {
		s.Errorf("the catalog counts %+v, %v", counts, err)
	}
	s.wantNAR(s.info, s.kept)
	after, _, err := s.OpenCompressed(s.Context(), s.info)
	if err != nil {
		s.Fatal(err)
	}
	defer after.Close()
	for _, n := range []cache.NAR{before, after} {
		var got bytes.Buffer
		if err := n.WriteRange(s.Context(), &got, 0, size); err != nil || !bytes.Equal(got.Bytes(), want.Bytes()) {
			s.Errorf("got %d other bytes, %v", got.Len(), err)
		}
	}
	if n, again, err := s.StatCompressed(s.Context(), s.info); n != size || again != tag || err != nil {
		s.Errorf("the tag is %q of %d bytes, %v, was %q of %d", again, n, err, tag, size)
	}
	s.wantClean()
	before.Close()
	after.Close()
	s.wantSmall()
	_, small := s.packs()
	other := archive(s, file("", s.shared))
	s.wantNAR(s.push(other), other)
	if _, size := s.packs(); size > small+2000 {
		s.Errorf("what was moved is kept again, in %d bytes", size-small)
	}
	s.wantClean()
}

// TestRewriteDamage: what is damaged is moved nowhere where that can be told, and nothing new refers to it where it cannot.
func TestRewriteDamage(t *testing.T) {
	for _, test := range []struct {
		name   string
		moved  int // packs after that
		break_ func([]byte)
	}{
		{"frames that are none", 2, func(pack []byte) {
			for at := 0; at < len(pack); at += 100 {
				pack[at] ^= 0xff
			}
		}},
		{"other bytes of noise", 3, func(pack []byte) {
			pack[len(pack)/2] ^= 1
		}},
	} {
		t.Run(test.name, func(tt *testing.T) {
			memory := blobtest.NewMemory()
			s := newThinned(tt, newCatalog(tt), memory)
			names, _ := s.packs()
			for _, name := range names {
				memory.Change(name, test.break_)
			}
			s.pass(0)
			if names, _ := s.packs(); len(names) != test.moved {
				s.Errorf("there are packs %v, want %d", names, test.moved)
			}
			report, err := s.depot.Verify(s.Context(), depot.VerifyOptions{Repair: true})
			if err != nil || len(report.Damaged) != 1 {
				s.Errorf("verified %+v, %v", report, err)
			}
			s.pass(0) // of a withheld NAR nothing is moved
			s.push(s.kept)
			s.wantNAR(s.info, s.kept)
			s.wantClean()
			s.wantSmall()
		})
	}
}

// TestRewriteFaults has every call of the ports fail once, before and after it had its effect, while a pack is rewritten.
func TestRewriteFaults(tt *testing.T) {
	for _, after := range []bool{false, true} {
		for at := 1; ; at += faultStep {
			f := &faults{}
			s := newThinned(tt, faultyCatalog{newCatalog(tt), f}, faultyBlobs{blobtest.NewMemory(), f})
			f.calls, f.at, f.after = 0, at, after
			if err := s.depot.Tick(s.Context()); err != nil && !errors.Is(err, errInjected) {
				s.Error(err)
			}
			calls := f.calls
			f.at = 0
			s.wantPlain(s.kept)
			s.wantClean()
			s.wantSmall()
			s.wantPlain(s.kept)
			s.wantClean()
			s.close()
			if at > calls {
				break
			}
		}
	}
}

// TestRewriteRoom: packs that were rewritten and wait bound what else is rewritten, also for another process.
func TestRewriteRoom(tt *testing.T) {
	s := newThinnedWith(tt, newCatalog(tt), blobtest.NewMemory(), depot.Options{RewriteRoom: 1})
	s.thin(20)
	s.thin(21)
	before, _ := s.packs()
	s.pass(0)
	for range 2 {
		s.pass(time.Minute)
		if names, _ := s.packs(); len(names) != len(before)+1 {
			s.Errorf("%d packs were rewritten before the first was gone", len(names)-len(before))
		}
		again := depot.New(s.catalog, index.Of(s.catalog), s.blobs, depot.Options{RewriteRoom: 1, Now: func() time.Time { return s.now }})
		if err := again.Tick(s.Context()); err != nil {
			s.Error(err)
		}
		if err := again.Close(); err != nil {
			s.Error(err)
		}
	}
	for range 8 {
		s.pass(25 * time.Hour)
	}
	if thin, err := s.catalog.ThinPacks(s.Context(), 10); err != nil || len(thin) > 0 {
		s.Errorf("%v are thin still, %v", thin, err)
	}
	s.wantNAR(s.info, s.kept)
	s.wantClean()
}

// narrow is a store with little room.
type narrow struct {
	blob.Store
	free, all int64
}

func (n *narrow) Room(context.Context) (free, all int64, err error) { return n.free, n.all, nil }

// TestRewriteCramped: nothing is written anew where it would take the room that what is pushed needs; when there is room again, it is.
func TestRewriteCramped(tt *testing.T) {
	const mega = 1 << 20
	blobs := &narrow{Store: blobtest.NewMemory(), free: 6 * mega, all: 120 * mega}
	s := newThinned(tt, newCatalog(tt), blobs)
	s.thin(300)
	before, _ := s.packs()
	s.now = s.now.Add(time.Minute)
	err := s.depot.Tick(s.Context())
	if err == nil || strings.Count(err.Error(), "make room on its disk") != 1 {
		s.Errorf("without room: %v", err)
	}
	s.pass(time.Minute) // it is said no more
	if names, _ := s.packs(); len(names) != len(before) {
		s.Errorf("%d packs were written", len(names)-len(before))
	}
	blobs.free = 7 * mega
	s.pass(6 * time.Hour)
	if names, _ := s.packs(); len(names) != len(before)+2 {
		s.Errorf("with room again there are packs %v, before %v", names, before)
	}
	s.wantNAR(s.info, s.kept)
	s.wantClean()
}

// TestRewriteOthers: packs that cannot be read keep none from being rewritten, however many there are, and are tried again later.
func TestRewriteOthers(tt *testing.T) {
	blobs := &unreadable{Store: blobtest.NewMemory()}
	s := newThinned(tt, newCatalog(tt), blobs)
	for i := range 69 {
		s.thin(uint64(100 + i))
	}
	blobs.names, _ = s.packs()
	info, kept := s.thin(200) // the last
	before, _ := s.packs()
	for i, failed := range []bool{true, true, false} {
		s.now = s.now.Add(time.Minute)
		if err := s.depot.Tick(s.Context()); failed != errors.Is(err, errInjected) {
			s.Errorf("tick %d: %v", i, err)
		}
	}
	if names, _ := s.packs(); len(names) != len(before)+1 {
		s.Errorf("%d packs were rewritten, want the one that can be", len(names)-len(before))
	}
	s.wantPlain(kept)
	blobs.names = nil
	s.pass(time.Hour)
	s.pass(6 * time.Hour)
	s.pass(time.Minute)
	s.pass(time.Minute)
	if thin, err := s.catalog.ThinPacks(s.Context(), 10); err != nil || len(thin) > 0 {
		s.Errorf("%v are thin still, %v", thin, err)
	}
	s.wantNAR(info, kept)
	s.wantClean()
}

// unreadable is a store of which some blobs cannot be opened.
type unreadable struct {
	blob.Store
	names []string
}

func (u *unreadable) Open(ctx context.Context, name string) (blob.Blob, error) {
	if slices.Contains(u.names, name) {
		return nil, errInjected
	}
	return u.Store.Open(ctx, name)
}

// interrupted is a catalog that does something once before it adds a NAR, or moves frames.
type interrupted struct {
	Catalog
	adding, moving func()
}

func (c *interrupted) AddNAR(ctx context.Context, n *index.NewNAR) (index.NARID, bool, error) {
	if f := c.adding; f != nil {
		c.adding = nil
		f()
	}
	return c.Catalog.AddNAR(ctx, n)
}

func (c *interrupted) MoveFrames(ctx context.Context, m *index.Move) ([]index.NARID, error) {
	if f := c.moving; f != nil {
		c.moving = nil
		f()
	}
	return c.Catalog.MoveFrames(ctx, m)
}

// TestRewrittenMeanwhile: an upload that found chunks in a pack is kept, whether the pack is rewritten before or after it is.
func TestRewrittenMeanwhile(t *testing.T) {
	t.Run("before", func(tt *testing.T) {
		c := &interrupted{Catalog: newCatalog(tt)}
		s := newThinned(tt, c, blobtest.NewMemory())
		c.adding = func() { s.pass(0) }
		other := archive(s, dir(""), file("a", text(40_000, 9)), file("b", s.shared))
		s.wantNAR(s.push(other), other)
		s.wantNAR(s.info, s.kept)
		s.wantClean()
		for range 4 {
			s.pass(25 * time.Hour)
		}
		if names, size := s.packs(); len(names) != 3 || size > 450_000 {
			s.Errorf("packs %v of %d bytes are left", names, size)
		}
		s.wantNAR(s.info, s.kept)
		s.wantClean()
	})
	t.Run("before, with what nobody needed", func(tt *testing.T) {
		for _, test := range []struct {
			name string
			more int64 // bytes at most
			then func(s *thinned, dead []byte)
		}{
			{"and nobody else needs", 300_000, func(*thinned, []byte) {}},
			{"and somebody brought again", 1_100_000, func(s *thinned, dead []byte) {
				other := archive(s, dir(""), file("d", dead), file("e", text(50_000, 8)))
				s.wantNAR(s.push(other), other)
			}},
		} {
			c := &interrupted{Catalog: newCatalog(tt)}
			s := newThinned(tt, c, blobtest.NewMemory())
			dead := text(2_000_000, 3)
			c.adding = func() {
				s.pass(0)
				test.then(s, dead)
			}
			other := archive(s, dir(""), file("a", text(40_000, 9)), file("b", s.shared), file("c", dead))
			_, before := s.packs()
			info := s.push(other)
			s.wantNAR(info, other)
			s.wantNAR(s.info, s.kept)
			s.wantClean()
			if _, size := s.packs(); size > before+test.more {
				s.Errorf("%s: it was kept again, in %d bytes", test.name, size-before)
			}
			// What it needed of the old pack follows, and that one goes.
			for range 5 {
				s.pass(25 * time.Hour)
			}
			s.wantNAR(info, other)
			s.wantNAR(s.info, s.kept)
			s.wantClean()
			again := archive(s, dir(""), file("f", dead))
			_, before = s.packs()
			s.wantNAR(s.push(again), again)
			if _, size := s.packs(); size > before+200_000 {
				s.Errorf("%s: what was moved is kept again, in %d bytes", test.name, size-before)
			}
			if before > 1_300_000 {
				s.Errorf("%s: %d bytes are left", test.name, before)
			}
			s.close()
		}
	})
	t.Run("after", func(tt *testing.T) {
		c := &interrupted{Catalog: newCatalog(tt)}
		s := newThinned(tt, c, blobtest.NewMemory())
		// It needs what nobody did when the pack was copied: that stays where it is, until it is copied as well.
		other := archive(s, dir(""), file("b", s.shared), file("c", text(2_000_000, 3)))
		c.moving = func() { s.push(other) }
		s.pass(0)
		s.wantNAR(infoOf(s, other), other)
		s.wantNAR(s.info, s.kept)
		s.wantClean()
		for range 4 {
			s.pass(25 * time.Hour)
		}
		s.wantNAR(infoOf(s, other), other)
		s.wantNAR(s.info, s.kept)
		s.wantClean()
		counts, err := s.catalog.Count(s.Context())
		if _, size := s.packs(); err != nil || counts.PackBytes != size {
			s.Errorf("the catalog counts %+v, %v, of %d bytes", counts, err, size)
		}
	})
	t.Run("and not needed any more", func(tt *testing.T) {
		c := &interrupted{Catalog: newCatalog(tt)}
		s := newThinned(tt, c, blobtest.NewMemory())
		other := s.push(archive(s, file("", text(2_000_000, 3)))) // most of what is copied is for it
		c.moving = func() { s.remove(other) }
		s.pass(0)
		s.wantNAR(s.info, s.kept)
		s.wantSmall()
		s.wantNAR(s.info, s.kept)
		s.wantClean()
	})
	t.Run("by another node", func(tt *testing.T) {
		c := &interrupted{Catalog: newCatalog(tt)}
		blobs := blobtest.NewMemory()
		s := newThinned(tt, c, blobs)
		node := depot.New(c, index.Of(c), blobs, depot.Options{Now: func() time.Time { return s.now }})
		defer node.Close()
		c.moving = func() {
			if err := node.Tick(s.Context()); err != nil {
				s.Error(err)
			}
		}
		s.pass(0)
		s.wantNAR(s.info, s.kept)
		s.wantClean()
		s.wantSmall()
		s.wantNAR(s.info, s.kept)
	})
}

// TestRewriteConcurrent: packs are rewritten while others push what is in them, and read.
func TestRewriteConcurrent(tt *testing.T) {
	s := newThinned(tt, newCatalog(tt), blobtest.NewMemory())
	var work sync.WaitGroup
	for i := range 4 {
		work.Go(func() {
			for j := range 5 {
				other := archive(s, dir(""), file("b", s.shared), file("c", text(100_000, uint64(10+5*i+j))), file("d", text(2_000_000, 3)))
				s.tryPush(other, false)
				s.wantPlain(other)
				s.wantPlain(s.kept)
			}
		})
	}
	for range 3 {
		work.Go(func() {
			if err := s.depot.Tick(s.Context()); err != nil {
				s.Error(err)
			}
		})
	}
	work.Wait()
	s.wantClean()
	for range 4 {
		s.pass(25 * time.Hour)
	}
	s.wantPlain(s.kept)
	s.wantClean()
}

func (c faultyCatalog) ThinPacks(ctx context.Context, limit int) (got []index.ThinPack, err error) {
	return got, c.call(func() error { got, err = c.Catalog.ThinPacks(ctx, limit); return err })
}

func (c faultyCatalog) Rewritten(ctx context.Context) (size int64, err error) {
	return size, c.call(func() error { size, err = c.Catalog.Rewritten(ctx); return err })
}

func (c faultyCatalog) NARsIn(ctx context.Context, pack string) iter.Seq2[*index.NAR, error] {
	if err := c.call(func() error { return nil }); err != nil {
		return func(yield func(*index.NAR, error) bool) { yield(nil, err) }
	}
	return c.Catalog.NARsIn(ctx, pack)
}

func (c faultyCatalog) Examined(ctx context.Context, p index.ThinPack, dead int64) error {
	return c.call(func() error { return c.Catalog.Examined(ctx, p, dead) })
}

func (c faultyCatalog) MoveFrames(ctx context.Context, m *index.Move) (moved []index.NARID, err error) {
	return moved, c.call(func() error { moved, err = c.Catalog.MoveFrames(ctx, m); return err })
}

func (c faultyCatalog) Sweep(ctx context.Context, before time.Time, limit int) (packs []string, more bool, err error) {
	return packs, more, c.call(func() error { packs, more, err = c.Catalog.Sweep(ctx, before, limit); return err })
}
