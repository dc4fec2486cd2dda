// Package awaited is a source that is not there yet, such as the store of a machine on which Nix is still to be installed.
// It has nothing until what it waits for can be opened, and is that from then on.
//
//	open := func(ctx context.Context) (awaited.Store, error) { return localstore.Open(ctx, opts) }
//	source := awaited.New("local store", nix.DefaultStoreDir, open, awaited.Options{Logger: log})
//	…
//	defer source.Close()
package awaited

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"firn/internal/cache"
	"firn/nix"
	"firn/nix/nar"
)

// interval is the time between two tries: a person who has just installed Nix should not wonder
// whether it is noticed, and looking for a file that is not there costs a few microseconds.
const interval = 2 * time.Second

// A Store is what is waited for: a source that can do all that any can.
type Store interface {
	cache.Versioned
	cache.Lister
	cache.Logger
	cache.Realiser
	cache.Checker
	cache.Verifier
	cache.Keeper
	io.Closer
}

// Options of a Source.
type Options struct {
	// Why is the error with which opening failed before. Only another one is logged. Nil: there was none.
	Why error

	// Logger is told when the store is there, and of every new reason why it is not. Nil discards.
	Logger *slog.Logger
}

// Source is a store that is awaited. It is safe for concurrent use.
type Source struct {
	name string
	dir  nix.StoreDir
	open func(context.Context) (Store, error)
	why  string // of the last failure; used by tick alone
	log  *slog.Logger

	store atomic.Pointer[Store] // nil: not there yet
	stop  context.CancelFunc
	done  sync.WaitGroup // of the goroutine that waits
}

var _ Store = (*Source)(nil)

// New returns the source that open will open, with its name and store directory.
// open is called every few seconds until it succeeds. The caller closes the Source.
func New(name string, dir nix.StoreDir, open func(context.Context) (Store, error), opts Options) *Source {
	s := newSource(name, dir, open, opts)
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.done.Go(func() { s.wait(ctx) })
	return s
}

// newSource returns a source that does not wait by itself.
func newSource(name string, dir nix.StoreDir, open func(context.Context) (Store, error), opts Options) *Source {
	s := &Source{name: name, dir: dir, open: open, log: cmp.Or(opts.Logger, slog.New(slog.DiscardHandler)), stop: func() {}}
	if opts.Why != nil {
		s.why = opts.Why.Error()
	}
	return s
}

// wait tries to open the store until it is there or ctx ends.
func (s *Source) wait(ctx context.Context) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for !s.tick(ctx) {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// tick tries to open the store once, and reports whether it is there.
func (s *Source) tick(ctx context.Context) bool {
	store, err := s.open(ctx)
	if err == nil {
		s.store.Store(&store)
		s.log.Info("the store is there now, and served", "store", string(s.dir))
		return true
	}
	if why := err.Error(); why != s.why && ctx.Err() == nil {
		s.why = why
		s.log.Warn("the store cannot be served yet", "error", err)
	}
	return false
}

// Close ends the waiting, and closes the store if it is there.
func (s *Source) Close() error {
	s.stop()
	s.done.Wait()
	if store := s.store.Load(); store != nil {
		return (*store).Close()
	}
	return nil
}

// Name returns the name.
func (s *Source) Name() string { return s.name }

// IsThere reports whether the store is there.
func (s *Source) IsThere() bool { return s.store.Load() != nil }

// StoreDir returns the store directory.
func (s *Source) StoreDir() nix.StoreDir { return s.dir }

// Version vouches for nothing until the store is there.
func (s *Source) Version(ctx context.Context) (version uint64, ok bool) {
	if store := s.store.Load(); store != nil {
		return (*store).Version(ctx)
	}
	return 0, false
}

// Check passes until the store is there: having nothing is no failure.
func (s *Source) Check(ctx context.Context) error {
	if store := s.store.Load(); store != nil {
		return (*store).Check(ctx)
	}
	return nil
}

// Verified counts from when the store is there.
func (s *Source) Verified() (right, wrong int64) {
	if store := s.store.Load(); store != nil {
		return (*store).Verified()
	}
	return 0, 0
}

// PathInfo is that of the store.
func (s *Source) PathInfo(ctx context.Context, hash nix.PathHash) (*nix.PathInfo, error) {
	return ask(s, func(store Store) (*nix.PathInfo, error) { return store.PathInfo(ctx, hash) })
}

// Keep is that of the store.
func (s *Source) Keep(ctx context.Context, path nix.StorePath) (done func(), err error) {
	return ask(s, func(store Store) (func(), error) { return store.Keep(ctx, path) })
}

// KeepOnly is that of the store. Until that is there, nothing is done.
func (s *Source) KeepOnly(ctx context.Context, needed func(context.Context) ([]nix.StorePath, error)) error {
	if store := s.store.Load(); store != nil {
		return (*store).KeepOnly(ctx, needed)
	}
	return nil
}

// OpenNAR is that of the store.
func (s *Source) OpenNAR(ctx context.Context, info *nix.PathInfo) (cache.NAR, error) {
	return ask(s, func(store Store) (cache.NAR, error) { return store.OpenNAR(ctx, info) })
}

// Listing is that of the store.
func (s *Source) Listing(ctx context.Context, info *nix.PathInfo) (*nar.Listing, error) {
	return ask(s, func(store Store) (*nar.Listing, error) { return store.Listing(ctx, info) })
}

// OpenLog is that of the store.
func (s *Source) OpenLog(ctx context.Context, drv nix.StorePath) (cache.Log, error) {
	return ask(s, func(store Store) (cache.Log, error) { return store.OpenLog(ctx, drv) })
}

// Realisation is that of the store.
func (s *Source) Realisation(ctx context.Context, id nix.RealisationID) (*nix.Realisation, error) {
	return ask(s, func(store Store) (*nix.Realisation, error) { return store.Realisation(ctx, id) })
}

// BuildTrace is that of the store.
func (s *Source) BuildTrace(ctx context.Context, drv nix.StorePath, output string) (*nix.BuildTrace, error) {
	return ask(s, func(store Store) (*nix.BuildTrace, error) { return store.BuildTrace(ctx, drv, output) })
}

// ask asks the store, or finds nothing while it is not there.
func ask[T any](s *Source, question func(Store) (T, error)) (answer T, err error) {
	store := s.store.Load()
	if store == nil {
		return answer, fmt.Errorf("ask %s, which is not there yet: %w", s.name, cache.ErrNotFound)
	}
	return question(*store)
}
