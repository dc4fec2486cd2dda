package depot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/internal/catalog/sqlite/sqlitetest"
	"firn/internal/depot"
	"firn/internal/depot/blob"
	"firn/internal/depot/blob/blobtest"
)

// gatedBlobs is a store whose packs become durable when the gate is opened, or fail to.
type gatedBlobs struct {
	blob.Store
	gate    chan error
	commits atomic.Int32
}

func (g *gatedBlobs) Create(ctx context.Context, name string) (blob.Writer, error) {
	w, err := g.Store.Create(ctx, name)
	return gatedWriter{w, g}, err
}

type gatedWriter struct {
	blob.Writer
	g *gatedBlobs
}

func (w gatedWriter) Commit(ctx context.Context) error {
	w.g.commits.Add(1)
	if err := <-w.g.gate; err != nil {
		return err
	}
	return w.Writer.Commit(ctx)
}

// TestSharedPack: NARs that come while a pack is made durable are in the next one together, and
// none is acknowledged before that is durable. If it fails, they all do, and those that come later
// do not. A client that leaves takes no other one with it.
func TestSharedPack(tt *testing.T) {
	synctest.Test(tt, func(tt *testing.T) {
		const others = 10
		g := &gatedBlobs{Store: blobtest.NewMemory(), gate: make(chan error)}
		t := newTesterOn(tt, sqlitetest.Open(tt, nil), g, depot.Options{})
		var sent [][]byte
		for i := range 2 * (others + 1) {
			sent = append(sent, archive(t, file("", text(3_000, uint64(i)))))
		}
		for round, want := range []error{nil, cache.ErrUnavailable} {
			nars := sent[round*(others+1):][:others+1]
			errs := make([]error, len(nars))
			ctx, leave := context.WithCancel(t.Context())
			var clients sync.WaitGroup
			var answered atomic.Int32
			before := g.commits.Load()
			send := func(ctx context.Context, i int) {
				clients.Go(func() {
					_, errs[i] = t.Receive(ctx, cache.Upload{URL: fmt.Sprintf("nar/%d-%d.nar", round, i), NAR: bytes.NewReader(nars[i])})
					answered.Add(1)
				})
			}
			send(t.Context(), 0)
			synctest.Wait()
			for i := range others - 1 {
				send(t.Context(), 1+i)
			}
			send(ctx, others)
			synctest.Wait()
			leave()
			synctest.Wait()
			if n := answered.Load(); n != 1 {
				t.Errorf("%d clients had an answer before a pack was durable, want the one that left", n)
			}
			g.gate <- nil
			synctest.Wait()
			if want == nil {
				g.gate <- nil
			} else {
				g.gate <- errors.New("no disk")
			}
			clients.Wait()
			if n := g.commits.Load() - before; n != 2 {
				t.Errorf("%d packs were made durable, want 2", n)
			}
			wantError(t, "the first", errs[0], nil)
			for _, err := range errs[1:others] {
				wantError(t, "one of the others", err, want)
			}
			wantError(t, "the one that left", errs[others], context.Canceled)
		}
		if names, _ := t.packs(); len(names) != 3 {
			t.Errorf("there are packs %v, want 3", names)
		}
		close(g.gate)
		for _, nar := range sent {
			t.push(nar) // again
			t.wantPlain(nar)
		}
		t.wantClean()
		t.close()
	})
}

// TestSharedWaste: what a shared pack has of NARs that were not added, as another client was faster,
// does not stay.
func TestSharedWaste(tt *testing.T) {
	synctest.Test(tt, func(tt *testing.T) {
		const copies = 10
		now := time.Now()
		g := &gatedBlobs{Store: blobtest.NewMemory(), gate: make(chan error)}
		t := newTesterOn(tt, sqlitetest.Open(tt, func() time.Time { return now }), g, depot.Options{Now: func() time.Time { return now }})
		first, nar := archive(t, file("", noise(1_000, 1))), archive(t, file("", noise(50_000, 2)))
		var clients sync.WaitGroup
		send := func(i int, nar []byte) {
			clients.Go(func() {
				_, err := t.Receive(t.Context(), cache.Upload{URL: fmt.Sprintf("nar/%d.nar", i), NAR: bytes.NewReader(nar)})
				wantError(t, "receive", err, nil)
			})
			synctest.Wait()
		}
		send(0, first)
		for i := range copies {
			send(1+i, nar)
		}
		close(g.gate)
		clients.Wait()
		for _, nar := range [][]byte{first, nar} {
			if _, err := t.Publish(t.Context(), infoOf(t, nar), cachetest.Unchecked()); err != nil {
				t.Fatal(err)
			}
		}
		for range 4 {
			now = now.Add(25 * time.Hour)
			if err := t.depot.Tick(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if names, size := t.packs(); size > 2*int64(len(nar)) {
			t.Errorf("packs %v of %d bytes are left, of NARs of %d", names, size, len(first)+len(nar))
		}
		t.wantNAR(infoOf(t, nar), nar)
		t.wantClean()
		t.close()
	})
}
