package localstore

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"firn/internal/cache"
	"firn/internal/memo"
	"firn/nix"
)

// awaitInterval is the time between two tries: a person who has just installed Nix should not wonder
// whether it is noticed, and looking for a file that is not there costs a few microseconds.
const awaitInterval = 2 * time.Second

// openable is what a [Store] can do.
type openable interface {
	memo.Changes
	cache.Lister
	cache.Logger
	cache.Realiser
	cache.Checker
	cache.Keeper
	cache.Adder
	cache.BatchSource
	io.Closer
}

// An AwaitedStore is a store that could not be opened yet, such as that of a machine on which Nix is
// still to be installed. It has nothing until the store can be opened, and is the store from then
// on. It is safe for concurrent use.
type AwaitedStore struct {
	dir  nix.StoreDir
	open func(context.Context) (openable, error)
	why  string // of the last failure; used by tick alone
	log  *slog.Logger

	store atomic.Pointer[openable] // nil: not there yet
	stop  context.CancelFunc
	done  sync.WaitGroup // of the goroutine that waits
}

var (
	_ openable     = (*AwaitedStore)(nil)
	_ cache.Absent = (*AwaitedStore)(nil)
)

// Await returns the store that opts describe, of which Open has failed with why, and tries again to
// open it every few seconds. Only another reason than why is logged. The caller closes the store.
func Await(opts Options, why error) *AwaitedStore {
	s := await(opts, why, func(ctx context.Context) (openable, error) { return Open(ctx, opts) })
	s.start()
	return s
}

// await returns a store that does not try to open itself.
func await(opts Options, why error, open func(context.Context) (openable, error)) *AwaitedStore {
	s := &AwaitedStore{
		dir:  cmp.Or(opts.StoreDir, nix.DefaultStoreDir),
		open: open,
		log:  cmp.Or(opts.Logger, slog.New(slog.DiscardHandler)),
		stop: func() {},
	}
	if why != nil {
		s.why = why.Error()
	}
	return s
}

// start begins to try to open the store, until it is there or Close is called.
func (s *AwaitedStore) start() {
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.done.Go(func() {
		ticker := time.NewTicker(awaitInterval)
		defer ticker.Stop()
		for !s.tick(ctx) {
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return
			}
		}
	})
}

// tick tries to open the store once, and reports whether it is there.
func (s *AwaitedStore) tick(ctx context.Context) bool {
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

// Close stops trying, and closes the store if it is there.
func (s *AwaitedStore) Close() error {
	s.stop()
	s.done.Wait()
	if store := s.store.Load(); store != nil {
		return (*store).Close()
	}
	return nil
}

// Name returns "local store".
func (s *AwaitedStore) Name() string { return name }

// IsThere reports whether the store is there.
func (s *AwaitedStore) IsThere(context.Context) (bool, error) { return s.store.Load() != nil, nil }

// StoreDir returns the store directory.
func (s *AwaitedStore) StoreDir() nix.StoreDir { return s.dir }

// Version is that of the store. It is another one until that is there.
func (s *AwaitedStore) Version(ctx context.Context) memo.Version {
	if store := s.store.Load(); store != nil {
		return memo.Exactly(1, true).And((*store).Version(ctx))
	}
	return memo.Exactly(0, true)
}

// Check passes until the store is there: having nothing is no failure.
func (s *AwaitedStore) Check(ctx context.Context) error {
	if store := s.store.Load(); store != nil {
		return (*store).Check(ctx)
	}
	return nil
}

// Verified counts from when the store is there.
func (s *AwaitedStore) Verified() (right, wrong int64) {
	if store := s.store.Load(); store != nil {
		return (*store).Verified()
	}
	return 0, 0
}

// PathInfo is that of the store.
func (s *AwaitedStore) PathInfo(ctx context.Context, hash nix.PathHash) (*nix.PathInfo, error) {
	return ask(s, func(store openable) (*nix.PathInfo, error) { return store.PathInfo(ctx, hash) })
}

// References is that of the store.
func (s *AwaitedStore) References(ctx context.Context, hashes []nix.PathHash) iter.Seq2[cache.Referrer, error] {
	if store := s.store.Load(); store != nil {
		return (*store).References(ctx, hashes)
	}
	return func(func(cache.Referrer, error) bool) {}
}

// Keep is that of the store.
func (s *AwaitedStore) Keep(ctx context.Context, path nix.StorePath) (done func(), err error) {
	return ask(s, func(store openable) (func(), error) { return store.Keep(ctx, path) })
}

// KeepOnly is that of the store. Until that is there, nothing is done.
func (s *AwaitedStore) KeepOnly(ctx context.Context, needed func(context.Context) ([]nix.StorePath, error)) error {
	if store := s.store.Load(); store != nil {
		return (*store).KeepOnly(ctx, needed)
	}
	return nil
}

// AddNAR is that of the store.
func (s *AwaitedStore) AddNAR(ctx context.Context, info *nix.PathInfo, r io.Reader) error {
	_, err := ask(s, func(store openable) (any, error) { return nil, store.AddNAR(ctx, info, r) })
	return err
}

// AddSignatures is that of the store.
func (s *AwaitedStore) AddSignatures(ctx context.Context, path nix.StorePath, sigs []nix.Signature) error {
	_, err := ask(s, func(store openable) (any, error) { return nil, store.AddSignatures(ctx, path, sigs) })
	return err
}

// OpenNAR is that of the store.
func (s *AwaitedStore) OpenNAR(ctx context.Context, info *nix.PathInfo) (cache.NAR, error) {
	return ask(s, func(store openable) (cache.NAR, error) { return store.OpenNAR(ctx, info) })
}

// WriteListing is that of the store.
func (s *AwaitedStore) WriteListing(ctx context.Context, info *nix.PathInfo, w io.Writer) error {
	_, err := ask(s, func(store openable) (any, error) { return nil, store.WriteListing(ctx, info, w) })
	return err
}

// OpenLog is that of the store.
func (s *AwaitedStore) OpenLog(ctx context.Context, drv nix.StorePath) (cache.Log, error) {
	return ask(s, func(store openable) (cache.Log, error) { return store.OpenLog(ctx, drv) })
}

// Realisation is that of the store.
func (s *AwaitedStore) Realisation(ctx context.Context, id nix.RealisationID) (*nix.Realisation, error) {
	return ask(s, func(store openable) (*nix.Realisation, error) { return store.Realisation(ctx, id) })
}

// BuildTrace is that of the store.
func (s *AwaitedStore) BuildTrace(ctx context.Context, drv nix.StorePath, output string) (*nix.BuildTrace, error) {
	return ask(s, func(store openable) (*nix.BuildTrace, error) { return store.BuildTrace(ctx, drv, output) })
}

// ask asks the store. It is cache.ErrNotFound while the store is not there.
func ask[T any](s *AwaitedStore, question func(openable) (T, error)) (answer T, err error) {
	store := s.store.Load()
	if store == nil {
		return answer, fmt.Errorf("ask %s, which is not there yet: %w", name, cache.ErrNotFound)
	}
	return question(*store)
}
