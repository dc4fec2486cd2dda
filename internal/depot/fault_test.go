package depot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/internal/catalog"
	"firn/internal/depot"
	"firn/internal/depot/blob"
	"firn/internal/depot/blob/blobtest"
	"firn/internal/depot/index"
	"firn/nix"
	"firn/nix/nar"
)

var errInjected = errors.New("injected")

// faults make the n-th call fail, before it does anything, or after.
type faults struct {
	mu    sync.Mutex
	calls int
	at    int // 0: none
	after bool
}

// call does what f does, unless it is its turn to fail.
func (f *faults) call(do func() error) error {
	f.mu.Lock()
	f.calls++
	turn := f.calls == f.at
	f.mu.Unlock()
	if turn && !f.after {
		return errInjected
	}
	err := do()
	if turn && err == nil {
		err = errInjected
	}
	return err
}

type faultyCatalog struct {
	Catalog
	*faults
}

func (c faultyCatalog) FindChunks(ctx context.Context, cache catalog.CacheID, hashes []catalog.Sum) (got []index.Chunk, err error) {
	return got, c.call(func() error { got, err = c.Catalog.FindChunks(ctx, cache, hashes); return err })
}

func (c faultyCatalog) AddNAR(ctx context.Context, n *index.NewNAR) (id index.NARID, added bool, err error) {
	return id, added, c.call(func() error { id, added, err = c.Catalog.AddNAR(ctx, n); return err })
}

func (c faultyCatalog) AddUpload(ctx context.Context, u *index.Upload) error {
	return c.call(func() error { return c.Catalog.AddUpload(ctx, u) })
}

func (c faultyCatalog) NAR(ctx context.Context, hash catalog.Sum) (n *index.NAR, err error) {
	return n, c.call(func() error { n, err = c.Catalog.NAR(ctx, hash); return err })
}

func (c faultyCatalog) Publish(ctx context.Context, id catalog.CacheID, p *index.Path, debug []index.DebugInfo, b index.Basis) (there *index.Path, added bool, err error) {
	return there, added, c.call(func() error { there, added, err = c.Catalog.Publish(ctx, id, p, debug, b); return err })
}

func (c faultyCatalog) Leads(ctx context.Context, id catalog.CacheID, n index.NARID) (leads bool, err error) {
	return leads, c.call(func() error { leads, err = c.Catalog.Reaches(ctx, id, n); return err })
}

func (c faultyCatalog) Listing(ctx context.Context, hash catalog.Sum) (text []byte, err error) {
	return text, c.call(func() error { text, err = c.Catalog.Listing(ctx, hash); return err })
}

type faultyBlobs struct {
	blob.Store
	*faults
}

func (b faultyBlobs) Create(ctx context.Context, name string) (w blob.Writer, err error) {
	err = b.call(func() error { w, err = b.Store.Create(ctx, name); return err })
	if err != nil {
		return nil, err
	}
	return faultyWriter{w, b.faults}, nil
}

func (b faultyBlobs) Delete(ctx context.Context, name string) error {
	return b.call(func() error { return b.Store.Delete(ctx, name) })
}

type faultyWriter struct {
	blob.Writer
	*faults
}

func (w faultyWriter) Write(p []byte) (n int, err error) {
	return n, w.call(func() error { n, err = w.Writer.Write(p); return err })
}

func (w faultyWriter) Commit(ctx context.Context) error {
	return w.call(func() error { return w.Writer.Commit(ctx) })
}

// TestFaults has every call of the ports fail once, before and after it had its effect:
// nothing is ever damaged, and what was acknowledged is there.
func TestFaults(tt *testing.T) {
	shared := text(600_000, 1)
	nars := [][]byte{
		archive(tt, file("", text(2000, 2))),
		archive(tt, dir(""), file("a", shared), file("b", noise(2_400_000, 3))),
		archive(tt, dir(""), file("a", shared), file("c", []byte(reference(1, 1)))),
		archive(tt, file("", text(2000, 2))),
	}
	for _, after := range []bool{false, true} {
		for at := 1; ; at += faultStep {
			f := &faults{at: at, after: after}
			cat, blobs := newCatalog(tt), blobtest.NewMemory()
			t := newTesterOn(tt, faultyCatalog{cat, f}, faultyBlobs{blobs, f}, depot.Options{})
			var acknowledged [][]byte
			failed := 0
			for _, nar := range nars {
				if t.tryPush(nar, true) {
					acknowledged = append(acknowledged, nar)
				} else {
					failed++
				}
			}
			calls := f.calls
			f.at = 0
			for _, nar := range acknowledged {
				t.wantPlain(nar)
			}
			t.wantClean()
			for _, nar := range nars { // whatever failed succeeds when it is done again
				t.tryPush(nar, false)
				t.wantPlain(nar)
			}
			t.wantClean()
			if at > calls {
				if failed > 0 {
					t.Error("something failed though nothing was injected")
				}
				break
			}
		}
	}
}

// wantPlain checks that a NAR is served whole.
func (t *tester) wantPlain(nar []byte) {
	t.Helper()
	n, err := t.OpenNAR(t.Context(), infoOf(t, nar))
	if err != nil {
		t.Error(err)
		return
	}
	defer n.Close()
	var got bytes.Buffer
	if err := n.WriteRange(t.Context(), &got, 0, n.Size()); err != nil || !bytes.Equal(got.Bytes(), nar) {
		t.Errorf("got %d bytes, %v, want %d", got.Len(), err, len(nar))
	}
}

// tryPush pushes a NAR, which may fail with errInjected only, and returns whether that succeeded.
func (t *tester) tryPush(nar []byte, mayFail bool) bool {
	t.Helper()
	_, err := t.Receive(t.Context(), cache.Upload{URL: "nar/" + infoOf(t, nar).NARHash.Nix32() + ".nar", NAR: bytes.NewReader(nar)})
	if err == nil {
		_, err = t.Publish(t.Context(), infoOf(t, nar), cachetest.Unchecked())
	}
	if err != nil && !(mayFail && errors.Is(err, errInjected)) {
		t.Error(err)
	}
	return err == nil
}

// rotten is a store of blobs that give other bytes than were written, or none.
type rotten struct {
	blob.Store
	mu     sync.Mutex
	rot    map[string]int64 // offset of a byte that is another one
	hidden map[string]bool
}

func (r *rotten) Open(ctx context.Context, name string) (blob.Blob, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.hidden[name] {
		return nil, fmt.Errorf("open %s: %w", name, blob.ErrNotFound)
	}
	b, err := r.Store.Open(ctx, name)
	if off, ok := r.rot[name]; ok && err == nil {
		return rottenBlob{b, off}, nil
	}
	return b, err
}

type rottenBlob struct {
	blob.Blob
	off int64
}

func (b rottenBlob) ReadAt(p []byte, off int64) (int, error) {
	n, err := b.Blob.ReadAt(p, off)
	if b.off >= off && b.off < off+int64(n) {
		p[b.off-off] ^= 0x55
	}
	return n, err
}

// TestDamage: what is damaged on disk is found, withheld, not referred to any more, and healed by sending it again.
func TestDamage(t *testing.T) {
	contents := noise(2_000_000, 1)
	for _, how := range []string{"rot", "missing", "sent"} {
		t.Run(how, func(tt *testing.T) {
			blobs := &rotten{Store: blobtest.NewMemory(), rot: map[string]int64{}, hidden: map[string]bool{}}
			t := newTesterOn(tt, newCatalog(tt), blobs, depot.Options{})
			first := archive(t, file("", contents))
			info := t.push(first)
			whole := archive(t, file("", text(100_000, 2)))
			wholeInfo := t.push(whole)
			names, _ := t.packs()
			var big string
			for _, name := range names {
				b, err := blobs.Open(t.Context(), name)
				if err != nil {
					t.Fatal(err)
				}
				if b.Size() > 1_000_000 {
					big = name
				}
				b.Close()
			}
			if how == "missing" {
				blobs.hidden[big] = true
			} else {
				blobs.rot[big] = 1_000_000
			}
			if how == "sent" {
				n, err := t.OpenNAR(t.Context(), info)
				if err != nil {
					t.Fatal(err)
				}
				var got bytes.Buffer
				err = n.WriteRange(t.Context(), &got, 0, n.Size())
				n.Close()
				wantError(t, "WriteRange", err, nar.ErrMismatch)
				if int64(got.Len()) >= n.Size() {
					t.Error("all of a damaged NAR was written")
				}
				if _, wrong := t.Verified(); wrong != 1 {
					t.Errorf("%d NARs were wrong", wrong)
				}
			} else {
				for _, repair := range []bool{false, true} {
					var last int64
					report, err := t.depot.Verify(t.Context(), depot.VerifyOptions{Repair: repair, Progress: func(done, total int64) {
						if done < last || total != int64(len(first)+len(whole)) {
							t.Errorf("progress went from %d to %d of %d", last, done, total)
						}
						last = done
					}})
					if err != nil || report.NARs != 2 || len(report.Damaged) != 1 || report.Damaged[0].Path != info.Path || report.Damaged[0].Cache != "main" {
						t.Errorf("got %+v, %v", report, err)
					}
					if last != int64(len(first)+len(whole)) {
						t.Errorf("progress ended at %d", last)
					}
					if !repair {
						if _, err := t.PathInfo(t.Context(), info.Path.Hash()); err != nil {
							t.Errorf("withheld without being told to: %v", err)
						}
					}
				}
			}
			_, err := t.PathInfo(t.Context(), info.Path.Hash())
			wantError(t, "PathInfo", err, cache.ErrNotFound)
			_, _, err = t.OpenCompressed(t.Context(), info)
			wantError(t, "OpenCompressed", err, cache.ErrNotFound)
			_, err = t.Received(t.Context(), "nar/"+info.NARHash.Nix32()+".nar")
			wantError(t, "Received", err, cache.ErrNotFound)
			t.wantNAR(wholeInfo, whole)

			// Another NAR of the same contents is whole.
			second := archive(t, program("", contents))
			t.wantNAR(t.push(second), second)
			// And so is the first when it is sent again.
			if _, err := t.Receive(t.Context(), cache.Upload{NAR: bytes.NewReader(first)}); err != nil {
				t.Fatal(err)
			}
			t.wantNAR(info, first)
			report, err := t.depot.Verify(t.Context(), depot.VerifyOptions{Caches: []string{"main"}})
			if err != nil || len(report.Damaged) > 0 || report.NARs != 3 {
				t.Errorf("got %+v, %v", report, err)
			}
		})
	}
}

// TestHealed: what was withheld is served again once its bytes are back.
func TestHealed(tt *testing.T) {
	blobs := &rotten{Store: blobtest.NewMemory(), hidden: map[string]bool{}}
	t := newTesterOn(tt, newCatalog(tt), blobs, depot.Options{})
	nar := archive(t, file("", text(100_000, 2)))
	info := t.push(nar)
	names, _ := t.packs()
	verify := func(opts depot.VerifyOptions) depot.Report {
		t.Helper()
		report, err := t.depot.Verify(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		return report
	}
	blobs.hidden[names[0]] = true
	if r := verify(depot.VerifyOptions{Repair: true, Path: info.Path.Hash()}); len(r.Damaged) != 1 {
		t.Errorf("got %+v", r)
	}
	_, err := t.PathInfo(t.Context(), info.Path.Hash())
	wantError(t, "PathInfo", err, cache.ErrNotFound)
	blobs.hidden[names[0]] = false
	if r := verify(depot.VerifyOptions{Path: info.Path.Hash()}); len(r.Damaged) != 0 || r.Healed != 1 || r.NARs != 1 {
		t.Errorf("got %+v", r)
	}
	_, err = t.PathInfo(t.Context(), info.Path.Hash())
	wantError(t, "PathInfo", err, cache.ErrNotFound)
	if r := verify(depot.VerifyOptions{Repair: true}); len(r.Damaged) != 0 || r.Healed != 1 {
		t.Errorf("got %+v", r)
	}
	t.wantNAR(info, nar)
	if r := verify(depot.VerifyOptions{Path: nix.PathHash{1}}); r.NARs != 0 {
		t.Errorf("verified %+v of a path that is not there", r)
	}
	_, err = t.depot.Verify(t.Context(), depot.VerifyOptions{Caches: []string{"absent"}})
	wantError(t, "Verify", err, depot.ErrNoCache)
}

// forgetful is a catalog in which a chunk is forgotten after it was looked up.
type forgetful struct {
	Catalog
	forget bool
}

func (c *forgetful) FindChunks(ctx context.Context, id catalog.CacheID, hashes []catalog.Sum) ([]index.Chunk, error) {
	found, err := c.Catalog.FindChunks(ctx, id, hashes)
	if c.forget && err == nil && len(found) > 0 {
		c.forget = false
		err = c.Catalog.ForgetChunks(ctx, found[0].Pack, []int64{found[0].Offset})
	}
	return found, err
}

// TestForgottenMeanwhile: a NAR is not built on a chunk that a repair forgot while it came in.
func TestForgottenMeanwhile(tt *testing.T) {
	c := &forgetful{Catalog: newCatalog(tt)}
	t := newTesterOn(tt, c, blobtest.NewMemory(), depot.Options{})
	shared := text(3_000_000, 1)
	t.push(archive(tt, file("", shared)))
	second := archive(tt, dir(""), file("a", shared), file("b", text(2000, 2)))
	c.forget = true
	_, err := t.Receive(t.Context(), cache.Upload{NAR: bytes.NewReader(second)})
	wantError(t, "a NAR on a chunk that is forgotten", err, cache.ErrUnavailable)
	if names, _ := t.packs(); len(names) != 1 {
		t.Errorf("there are %d packs", len(names))
	}
	t.push(second)
	t.wantPlain(second)
	t.wantClean()
}
