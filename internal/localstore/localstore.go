// Package localstore is the source of this machine's Nix store.
//
// Nix's database is read directly and read-only, by SQLite, while Nix writes it; the NAR of a path is
// made from its files while it is sent. Nix's own programs and libraries are not needed:
//
//	store, err := localstore.Open(ctx, localstore.Options{Logger: logger})
//	…
//	defer store.Close()
//	info, err := store.PathInfo(ctx, hash)
//	nar, err := store.OpenNAR(ctx, info) // keeps the path from being collected until Close
//	…
//	err = nar.WriteRange(ctx, w, 0, nar.Size())
//
// What is asked of the database goes through an in-memory filter first, which knows most absent paths
// without SQLite ([filter]); whether anything has changed is read from the header of SQLite's WAL index
// ([database.version]). Where this process may not do something itself — record a root
// with the garbage collector, read an unusual database — the Nix daemon does it over its socket ([daemon]).
//
// docs/adr/0002-reading-the-store-database.md has the reasons.
package localstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"firn/internal/cache"
	"firn/internal/memo"
	"firn/nix"
)

// ErrNoStore says that there is no Nix store where one was looked for.
var ErrNoStore = errors.New("there is no Nix store")

// Options says where the store is. The zero Options is the store of this machine in its usual place.
type Options struct {
	// Root is the directory that the store lies in, as `nix --store ROOT` lays it out:
	// ROOT/nix/store and ROOT/nix/var/nix, with /nix/store the store directory of its paths.
	// Empty: "/".
	Root string

	// StoreDir is the store directory of its paths, which says where the files are only when there is no Root:
	// below one, Nix keeps them in Root/nix/store whatever the store directory.
	// Empty: /nix/store.
	StoreDir nix.StoreDir

	// StateDir is Nix's state directory, with the database in StateDir/db. Empty: Root/nix/var/nix.
	StateDir string

	// LogDir is Nix's log directory, with the build logs in LogDir/drvs. Empty: Root/nix/var/log/nix.
	LogDir string

	// DaemonSocket is the socket of the Nix daemon. Empty: StateDir/daemon-socket/socket.
	// It is no error if no daemon listens there.
	DaemonSocket string

	// Roots is a directory of this process, such as STATE/gcroots, for links to paths that are to
	// be kept from being collected as garbage, see [Store.Keep]. It is an absolute path, and made
	// when it is needed. Empty: nothing can be kept.
	Roots string

	// LayoutMemory bounds the bytes that the plans of NARs kept for the next send take. Zero: 16 MiB.
	LayoutMemory int64

	// Logger gets what an operator should know. Nil: nothing is logged.
	Logger *slog.Logger
}

// withDefaults fills in what was left empty.
func (o Options) withDefaults() Options {
	if o.Root == "" {
		o.Root = "/"
	}
	if o.StoreDir == "" {
		o.StoreDir = nix.DefaultStoreDir
	}
	if o.StateDir == "" {
		o.StateDir = filepath.Join(o.Root, "nix/var/nix")
	}
	if o.LogDir == "" {
		o.LogDir = filepath.Join(o.Root, "nix/var/log/nix")
	}
	if o.DaemonSocket == "" {
		o.DaemonSocket = filepath.Join(o.StateDir, "daemon-socket/socket")
	}
	if o.LayoutMemory == 0 {
		o.LayoutMemory = 16 << 20
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Store is the Nix store of this machine as a source. It is safe for concurrent use.
//
// A process opens a store once: SQLite's locks on a file belong to the process, and end
// when any descriptor of that file is closed, so closing one Store would take the locks of another.
type Store struct {
	storeDir nix.StoreDir
	realDir  string // where the files of storeDir are
	logDir   string
	dbPath   string
	log      *slog.Logger

	daemon   *daemon
	roots    *protector
	keeper   *keeper
	layouts  *layouts
	verdicts *verdicts
	verify   *verifier
	stats    counters
	bzip2    chan struct{} // holds something for each compressed log that is open

	// mu is held for reading while the database is used, and for writing while it is opened and closed.
	mu     sync.RWMutex
	db     *database // nil: could not be opened; failure says why
	closed bool
	failed failure

	// confirmed are absent paths of which the daemon has said so.
	confirmed *memo.Memo[nix.PathHash, struct{}]
}

var (
	_ cache.Source      = (*Store)(nil)
	_ memo.Changes      = (*Store)(nil)
	_ cache.Lister      = (*Store)(nil)
	_ cache.Logger      = (*Store)(nil)
	_ cache.Realiser    = (*Store)(nil)
	_ cache.Checker     = (*Store)(nil)
	_ cache.Keeper      = (*Store)(nil)
	_ cache.BatchSource = (*Store)(nil)
	_ cache.Adder       = (*Store)(nil)
)

// Open opens the store. ErrNoStore if there is none; the context bounds the opening.
func Open(ctx context.Context, opts Options) (*Store, error) {
	realDir := filepath.Join(opts.Root, "nix/store")
	if opts.Root == "" {
		realDir = string(cmp.Or(opts.StoreDir, nix.DefaultStoreDir))
	}
	opts = opts.withDefaults()
	s := &Store{
		storeDir: opts.StoreDir,
		realDir:  realDir,
		logDir:   opts.LogDir,
		dbPath:   filepath.Join(opts.StateDir, "db/db.sqlite"),
		log:      opts.Logger,
		daemon:   newDaemon(opts.DaemonSocket, opts.StoreDir),
		layouts:  newLayouts(opts.LayoutMemory),
		bzip2:    make(chan struct{}, maxBzip2),

		confirmed: memo.New[nix.PathHash, struct{}](maxConfirmed),
	}
	s.verdicts = newVerdicts()
	s.roots = newProtector(opts.StateDir, s.daemon, opts.Logger)
	s.keeper = newKeeper(opts, s.daemon)
	if err := s.findStore(); err != nil {
		return nil, fmt.Errorf("open store %s: %w", s.realDir, err)
	}
	if err := s.openFirst(ctx); err != nil {
		s.daemon.close()
		return nil, fmt.Errorf("open store %s: %w", s.realDir, err)
	}
	s.roots.sweep()
	s.verify = startVerifier(s.verifyPath)
	return s, nil
}

// findStore tells a store that is not there from one that cannot be read.
func (s *Store) findStore() error {
	for _, path := range []string{s.realDir, s.dbPath} {
		_, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("%w: %s does not exist", ErrNoStore, path)
		case err != nil:
			return explainDenied(err, path, mayRead)
		}
	}
	return nil
}

// openFirst opens the database, or finds that the daemon can answer in its place.
func (s *Store) openFirst(ctx context.Context) error {
	_, err := read(ctx, s, func(*database, uint64) (struct{}, error) { return struct{}{}, nil })
	if errors.Is(err, errAskDaemon) { // which has just answered
		s.log.Info("the Nix daemon is asked instead of its database", "error", err)
		return nil
	}
	return err
}

// Close ends all background work and closes the database. NARs that are still open lose their protection.
func (s *Store) Close() error {
	s.verify.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	var err error
	if s.db != nil {
		err = s.db.close()
		s.db = nil
	}
	s.roots.close()
	s.daemon.close()
	return err
}

// Disconnect closes the connections to the Nix daemon that lie unused. The daemon takes every question on a connection for one of the user that connected:
// a process that has become another user calls this before anything else is asked of the store.
func (s *Store) Disconnect() { s.daemon.close() }

// name is that of this source.
const name = "local store"

// Name returns "local store".
func (s *Store) Name() string { return name }

// StoreDir returns the store directory of the paths, which with another root is not where the files are.
func (s *Store) StoreDir() nix.StoreDir { return s.storeDir }

// realPath is where the files of path are.
func (s *Store) realPath(path nix.StorePath) string { return s.realDir + "/" + path.Base() }

// PathInfo returns what the database says of the path with the given hash.
// What it says less than a cache needs of, or what was withheld, is ErrNotFound.
func (s *Store) PathInfo(ctx context.Context, hash nix.PathHash) (*nix.PathInfo, error) {
	info, err := s.lookUp(ctx, hash)
	if err != nil {
		var malformed *rowError
		if errors.As(err, &malformed) && s.verdicts.setMalformed(hash) {
			s.log.Warn("a path is not served: what the database says of it is malformed", "path", malformed.path, "error", malformed.cause)
		}
		return nil, err
	}
	if s.verdicts.withholds(info, s.realPath(info.Path)) {
		return nil, missError{hash}
	}
	return info, nil
}

// References looks many paths up in one query. Paths that the daemon has to be asked about are looked
// up one by one.
func (s *Store) References(ctx context.Context, hashes []nix.PathHash) iter.Seq2[cache.Referrer, error] {
	return func(yield func(cache.Referrer, error) bool) {
		left := hashes
		infos, err := read(ctx, s, func(d *database, version uint64) ([]*nix.PathInfo, error) {
			if d.writable || d.rest != nil { // else the daemon confirms what is absent
				left = nil
			}
			return d.pathInfos(ctx, slices.DeleteFunc(slices.Clone(hashes), func(hash nix.PathHash) bool { return d.filter.excludes(version, hash) }))
		})
		if err != nil && !errors.Is(err, errAskDaemon) {
			yield(cache.Referrer{}, fmt.Errorf("look up %d path hashes: %w", len(hashes), err))
			return
		}
		found := make(map[nix.PathHash]bool, len(infos))
		for _, info := range infos {
			// The first one of a hash is what PathInfo returns.
			if hash := info.Path.Hash(); !found[hash] {
				found[hash] = true
				if !s.verdicts.withholds(info, s.realPath(info.Path)) && !yield(cache.Referrer{Path: info.Path, References: info.References}, nil) {
					return
				}
			}
		}
		for _, hash := range left {
			if found[hash] {
				continue
			}
			info, err := s.PathInfo(ctx, hash)
			if errors.Is(err, cache.ErrNotFound) {
				continue
			}
			var r cache.Referrer
			if err == nil {
				r.Path, r.References = info.Path, info.References
			}
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}

// lookUp finds a path wherever it can be asked for: in the filter, the database, or with the daemon.
func (s *Store) lookUp(ctx context.Context, hash nix.PathHash) (*nix.PathInfo, error) {
	var version uint64
	var confirm bool
	info, err := read(ctx, s, func(d *database, now uint64) (info *nix.PathInfo, err error) {
		if version = now; d.filter.excludes(version, hash) {
			err = missError{hash}
		} else {
			info, err = d.pathInfo(ctx, hash)
		}
		confirm = errors.Is(err, cache.ErrNotFound) && !d.writable && d.rest == nil
		return info, err
	})
	switch {
	case confirm:
		return s.confirmMiss(ctx, version, hash, err)
	case errors.Is(err, errAskDaemon):
		return s.askDaemon(ctx, hash)
	}
	if err != nil && !errors.Is(err, cache.ErrNotFound) {
		err = fmt.Errorf("look up path hash %v: %w", hash, err)
	}
	return info, err
}

// missError is the answer to the most frequent question, made without formatting anything.
type missError struct{ hash nix.PathHash }

func (e missError) Error() string { return fmt.Sprintf("look up path hash %v: not found", e.hash) }
func (e missError) Unwrap() error { return cache.ErrNotFound }

// Version changes with every commit to the database, and with every path that is withheld.
func (s *Store) Version(context.Context) memo.Version {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.db == nil {
		return memo.Version{}
	}
	version, ok := s.db.version()
	return memo.Exactly(version+s.verdicts.changes.Load(), ok)
}

// Check reads from the database, or asks the daemon where that stands in for it.
func (s *Store) Check(ctx context.Context) error {
	_, err := read(ctx, s, func(d *database, _ uint64) (struct{}, error) { return struct{}{}, d.check(ctx) })
	if errors.Is(err, errAskDaemon) {
		err = s.daemon.ping(ctx)
	}
	if err != nil {
		return fmt.Errorf("check store: %w: %w", cache.ErrUnavailable, err)
	}
	return nil
}

type counters struct{ verified, mismatches atomic.Int64 }

// Verified returns how many NARs were right, and how many paths are or were withheld, since the store was opened.
func (s *Store) Verified() (right, wrong int64) {
	return s.stats.verified.Load(), s.stats.mismatches.Load()
}
