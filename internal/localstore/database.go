package localstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"firn/internal/cache"
	"firn/internal/memo"
	"firn/internal/sqlitex"
	"firn/nix"
)

const (
	// busyTimeout is how long SQLite waits for a lock. Readers of a WAL database wait for no writer,
	// only while the WAL index is rebuilt after a crash, or for someone who locked the whole database.
	busyTimeout = 250 * time.Millisecond

	// maxConns bounds the connections to the database: a look-up takes tens of microseconds of
	// processor time, so more than a few only add memory. One is left for filling the filter.
	maxConns = 5

	// pageCache is what SQLite keeps of the database, in KiB a connection: the inner pages of its
	// indices. The operating system has the rest in memory.
	pageCache = 1024

	// openPause is how long a failure to open the database stands before it is tried again,
	// so that waiting for a locked database does not hold up one request after the other.
	openPause = time.Second
)

// maxConfirmed bounds the absent paths that are remembered as such, at some 100 bytes each.
const maxConfirmed = 1 << 16

// errAskDaemon says that this process cannot read the database right, but the daemon can.
var errAskDaemon = errors.New("the database cannot be read directly")

// The one statement of a look-up, so that path and references are of one snapshot, which ends with it.
// The index on path gives both the first path from a prefix on, and its end.
const infoQuery = `
	select path, hash, registrationTime, deriver, narSize, ultimate, sigs, ca,
		(select group_concat(target.path, char(10))
			from Refs join ValidPaths as target on target.id = reference
			where referrer = found.id)
	from ValidPaths as found
	where path >= ?1 and path < ?2
	order by path
	limit 1`

// infosQuery is infoQuery for many prefixes at once, as a JSON array.
const infosQuery = `
	select found.path, hash, registrationTime, deriver, narSize, ultimate, sigs, ca,
		(select group_concat(target.path, char(10))
			from Refs join ValidPaths as target on target.id = reference
			where referrer = found.id)
	from json_each(?1) as wanted
		cross join ValidPaths as found on found.path >= wanted.value || '-' and found.path < wanted.value || '.'`

// database is one opening of db.sqlite. When the file is replaced, it is closed and another one made.
type database struct {
	path     string
	storeDir nix.StoreDir
	sql      *sql.DB
	info     *sql.Stmt
	slots    chan struct{} // holds a token for each connection in use but the filter's
	writable bool          // this process can write the WAL index, so it reads as any Nix does

	// rest is its state where this process reads it without locks; nil where it has them.
	rest   *rest
	number uint64 // then, its version

	// The files that the version is read from. They are closed after SQLite's own:
	// closing one ends all locks of this process on it.
	file, shm  *os.File
	header     *sqlitex.Header
	identified atomic.Int64 // when they were last seen to be the ones at their paths, ns since opened
	opened     time.Time
	replaced   atomic.Bool

	filter filter
	stop   context.CancelFunc
	done   sync.WaitGroup // of the goroutine that fills the filter
}

// openDatabase opens the database at path, or says with errAskDaemon that the daemon can answer in
// its place.
func openDatabase(ctx context.Context, path string, storeDir nix.StoreDir, d *daemon) (*database, error) {
	mode, err := journalMode(path)
	if err != nil {
		return nil, err
	}
	why := errNotWAL
	if mode == modeWAL {
		db, err := openWith(ctx, path, storeDir, openWAL)
		if !errors.Is(err, errNoIndex) {
			return db, err
		}
		why = err
	}
	// A process that may not write beside the database can read it, as Nix does, only while another
	// one has it open. The daemon opens it for every connection; once we have it open too, it stays
	// so.
	derr := d.ping(ctx)
	if derr == nil {
		if mode == modeWAL {
			db, err := openWith(ctx, path, storeDir, openWAL)
			if !errors.Is(err, errNoIndex) {
				return db, err
			}
		}
		return nil, fmt.Errorf("%w: %w", errAskDaemon, why)
	}
	db, err := openWith(ctx, path, storeDir, openAtRest)
	if err != nil {
		return nil, fmt.Errorf("%w: %w; %w; %w%s", cache.ErrUnavailable, why, err, derr, remedy(err))
	}
	return db, nil
}

// remedy is what a person can do, beside what the error of the daemon says, about a database that
// cannot be read.
func remedy(err error) string {
	if errors.Is(err, errUnsaved) {
		return "; or run a command of Nix on this store once, such as nix-store --init, where it can be written"
	}
	return ""
}

// What bytes 18 and 19 of the header are (SQLite's file format, 1.3).
const (
	modeRollback = 1
	modeWAL      = 2
)

// journalMode tells whether the database is in WAL mode. Nix with use-sqlite-wal = false locks it
// in another way than SQLite by default (unix-dotfile): then SQLite must not read it by itself
// while Nix may write. It opens and closes the file, so it must run while this process has no
// connection to it.
func journalMode(path string) (byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, explainDenied(err, path, mayRead)
	}
	defer f.Close()
	var header [20]byte
	if _, err := f.ReadAt(header[:], 0); err != nil {
		return 0, fmt.Errorf("read %s: %w", path, err)
	}
	if string(header[:15]) != "SQLite format 3" {
		return 0, fmt.Errorf("%w: %s is not an SQLite database", ErrNoStore, path)
	}
	if header[18] == modeWAL && header[19] == modeWAL {
		return modeWAL, nil
	}
	return modeRollback, nil
}

// errNotWAL says that the database is locked in a way that is not SQLite's own.
var errNotWAL = errors.New("it is not in WAL mode (use-sqlite-wal = false)")

// errNoIndex says that the WAL index, db.sqlite-shm, is not there and this process cannot make it.
var errNoIndex = errors.New("no process has the database open, and this one cannot write beside it")

// openWith makes a database, and has open open it.
func openWith(ctx context.Context, path string, storeDir nix.StoreDir, open func(context.Context, *database) error) (*database, error) {
	d := &database{path: path, storeDir: storeDir, slots: make(chan struct{}, maxConns-1), opened: time.Now()}
	d.filter.wake = make(chan struct{}, 1)
	if err := open(ctx, d); err != nil {
		d.close()
		return nil, err
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	d.stop = stop
	d.done.Go(func() { d.filter.follow(background, d) })
	return d, nil
}

// openWAL opens a database in WAL mode, with SQLite's locks.
func openWAL(ctx context.Context, d *database) error {
	// Not immutable: that would ignore the WAL and all locks.
	if err := d.connect(ctx, "mode=ro"); err != nil {
		if _, serr := os.Stat(d.path + "-shm"); errors.Is(serr, fs.ErrNotExist) {
			return fmt.Errorf("%w: %w", errNoIndex, err)
		}
		return err
	}
	return d.openVersion()
}

// connect opens the database as query says, and reads from it.
func (d *database) connect(ctx context.Context, query string) error {
	for _, pragma := range []string{
		fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds()),
		fmt.Sprintf("cache_size(-%d)", pageCache),
		"query_only(1)",
	} {
		query += "&_pragma=" + pragma
	}
	dsn := url.URL{Scheme: "file", OmitHost: true, Path: d.path, RawQuery: query}
	var err error
	if d.sql, err = sql.Open("sqlite", dsn.String()); err != nil {
		return fmt.Errorf("open %s: %w", d.path, err)
	}
	// A connection that was used once holds a shared lock on the database, so that no process
	// removes the WAL and its index. It is kept for that, too.
	d.sql.SetMaxOpenConns(maxConns)
	d.sql.SetMaxIdleConns(maxConns)
	if err := d.check(ctx); err != nil {
		return err
	}
	if d.info, err = d.sql.PrepareContext(ctx, infoQuery); err != nil {
		return d.fail("read schema of", err)
	}
	return nil
}

// close ends background work, waits for look-ups, and closes all files.
func (d *database) close() error {
	if d.stop != nil {
		d.stop()
	}
	d.done.Wait()
	var err error
	if d.sql != nil {
		err = d.sql.Close()
	}
	if d.header != nil {
		d.header.Close()
	}
	for _, f := range []*os.File{d.shm, d.file} {
		if f != nil {
			f.Close()
		}
	}
	return err
}

// fail wraps an error of SQLite. Whatever it is, asking again later may help.
func (d *database) fail(verb string, err error) error {
	return fmt.Errorf("%s %s: %w: %w", verb, d.path, cache.ErrUnavailable, err)
}

// takeConn waits until the caller may use a connection, one at a time, which it does until returnConn.
func (d *database) takeConn(ctx context.Context) error {
	select {
	case d.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return d.fail("query", ctx.Err())
	}
}

func (d *database) returnConn() { <-d.slots }

// check reads from the database.
func (d *database) check(ctx context.Context) error {
	if err := d.takeConn(ctx); err != nil {
		return err
	}
	defer d.returnConn()
	var n int
	if err := d.sql.QueryRowContext(ctx, `select count(*) from (select 1 from ValidPaths limit 1)`).Scan(&n); err != nil {
		return d.fail("read", err)
	}
	return nil
}

// pathInfo looks a path up. cache.ErrNotFound if it is not valid, which includes a rowError.
func (d *database) pathInfo(ctx context.Context, hash nix.PathHash) (*nix.PathInfo, error) {
	if err := d.takeConn(ctx); err != nil {
		return nil, err
	}
	defer d.returnConn()
	// A query that can be cancelled costs a third more. This one takes microseconds, or busyTimeout.
	ctx = context.WithoutCancel(ctx)
	prefix := string(d.storeDir) + "/" + hash.String()
	rows, err := d.info.QueryContext(ctx, prefix+"-", prefix+".") // '.' is what follows '-'
	if err != nil {
		return nil, d.fail("query", err)
	}
	defer rows.Close()
	if !rows.Next() {
		if err := rows.Err(); err != nil {
			return nil, d.fail("query", err)
		}
		return nil, missError{hash}
	}
	return scanInfo(rows, d.storeDir, prefix)
}

// scanInfo parses a row of infoQuery or infosQuery, of a path that begins with prefix.
func scanInfo(rows *sql.Rows, dir nix.StoreDir, prefix string) (*nix.PathInfo, error) {
	var path, narHash, deriver, sigs, ca, references sql.NullString
	var registered, narSize, ultimate sql.NullInt64
	err := rows.Scan(&path, &narHash, &registered, &deriver, &narSize, &ultimate, &sigs, &ca, &references)
	if err != nil {
		return nil, &rowError{prefix, err}
	}
	r := row{
		path:       path.String,
		hash:       narHash.String,
		registered: registered.Int64,
		deriver:    deriver.String,
		narSize:    narSize.Int64,
		ultimate:   ultimate.Int64 != 0,
		signatures: strings.Fields(sigs.String),
		ca:         ca.String,
		references: splitLines(references.String),
	}
	return r.pathInfo(dir)
}

// pathInfos looks many paths up, in one statement. Those of which the database says something malformed
// are left out, as those that are not valid are.
func (d *database) pathInfos(ctx context.Context, hashes []nix.PathHash) ([]*nix.PathInfo, error) {
	if len(hashes) == 0 {
		return nil, nil
	}
	if err := d.takeConn(ctx); err != nil {
		return nil, err
	}
	defer d.returnConn()
	prefixes := make([]string, len(hashes))
	for i, hash := range hashes {
		prefixes[i] = string(d.storeDir) + "/" + hash.String()
	}
	list, err := json.Marshal(prefixes)
	if err != nil {
		return nil, err
	}
	rows, err := d.sql.QueryContext(ctx, infosQuery, string(list))
	if err != nil {
		return nil, d.fail("query", err)
	}
	defer rows.Close()
	var infos []*nix.PathInfo
	for rows.Next() {
		info, err := scanInfo(rows, d.storeDir, string(d.storeDir))
		if err == nil {
			infos = append(infos, info)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, d.fail("query", err)
	}
	return infos, nil
}

// hasTable reports whether the database has a table, which Nix may add at any time.
func (d *database) hasTable(ctx context.Context, name string) (bool, error) {
	var n int
	err := d.sql.QueryRowContext(ctx, `select count(*) from sqlite_schema where type = 'table' and name = ?`, name).Scan(&n)
	if err != nil {
		return false, d.fail("read schema of", err)
	}
	return n > 0, nil
}

// failure is why the database could not be opened, and when.
type failure struct {
	err error
	at  time.Time
}

// withDatabase has use do something with the database that is at its path now, which stays open until
// use returns, and tells its version at the moment. It opens the database where it has to be. Errors
// that are not of use are cache.ErrUnavailable, or errAskDaemon.
func (s *Store) withDatabase(ctx context.Context, use func(d *database, version uint64)) error {
	for {
		d, done := s.useDatabase(use)
		if done {
			return nil
		}
		if err := s.reopen(ctx, d); err != nil {
			return err
		}
	}
}

// useDatabase is withDatabase for one that is open. done is false, and use not called, if there is
// none, or the one that it returns was replaced.
func (s *Store) useDatabase(use func(d *database, version uint64)) (d *database, done bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.db == nil {
		return nil, false
	}
	version, ok := s.db.version()
	if ok {
		use(s.db, version)
	}
	return s.db, ok
}

// reopen replaces old, which may be nil, by the database that is at the path now.
func (s *Store) reopen(ctx context.Context, old *database) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return fmt.Errorf("open %s: %w: %w", s.dbPath, cache.ErrUnavailable, fs.ErrClosed)
	case s.db != old:
		return nil // another caller did it
	case old != nil:
		if old.rest == nil {
			s.log.Warn("the database was replaced", "database", s.dbPath)
		}
		old.close()
		s.db = nil
	case s.failed.err != nil && time.Since(s.failed.at) < openPause:
		return s.failed.err
	}
	d, err := openDatabase(ctx, s.dbPath, s.storeDir, s.daemon)
	if err != nil {
		if !errors.Is(err, errAskDaemon) && !errors.Is(err, cache.ErrUnavailable) {
			err = fmt.Errorf("%w: %w", cache.ErrUnavailable, err)
		}
		if ctx.Err() == nil {
			s.failed = failure{err, time.Now()}
		}
		return err
	}
	if d.rest != nil && old == nil {
		s.log.Info("the database is read without locks, and again after every change: this process cannot lock it", "database", s.dbPath)
	}
	s.db, s.failed = d, failure{}
	return nil
}

// askDaemon looks a path up with the daemon in place of the database.
func (s *Store) askDaemon(ctx context.Context, hash nix.PathHash) (*nix.PathInfo, error) {
	info, err := s.daemon.pathInfo(ctx, hash)
	switch {
	case errors.Is(err, cache.ErrNotFound):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("look up path hash %v: %w: %w", hash, cache.ErrUnavailable, err)
	case info == nil:
		return nil, missError{hash}
	}
	return info, nil
}

// confirmMiss asks the daemon, where one answers, for a path that the database seems not to have. A process that may
// not write the WAL index cannot mark what it reads, and SQLite does not promise it the newest snapshot.
// A daemon that is there and does not answer leaves it open: a client remembers a miss for an hour, and asks again at once otherwise.
func (s *Store) confirmMiss(ctx context.Context, version uint64, hash nix.PathHash, miss error) (*nix.PathInfo, error) {
	now := memo.Exactly(version, true)
	if _, at, ok := s.confirmed.Get(hash); ok && at.Miss(now) {
		return nil, miss
	}
	done, ok := s.daemon.try()
	if !ok {
		return nil, miss
	}
	info, err := s.daemon.pathInfo(ctx, hash)
	done()
	switch {
	case err == nil && info == nil:
		s.confirmed.Put(hash, struct{}{}, now, 1)
		return nil, miss
	case err == nil:
		return info, nil
	case ctx.Err() == nil && !isTimeout(err):
		return nil, miss
	}
	given, first := s.daemon.givenUp()
	if first {
		s.log.Warn("the Nix daemon does not answer; absent paths are not confirmed by it any more", "error", err)
	}
	if given {
		return nil, miss
	}
	return nil, fmt.Errorf("confirm that path hash %v is absent: %w: %w", hash, cache.ErrUnavailable, err)
}

// splitLines splits the references that the query joined: a store directory may have spaces in its name, but no line end.
func splitLines(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, "\n")
}
