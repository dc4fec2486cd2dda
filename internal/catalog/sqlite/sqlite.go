// Package sqlite keeps a catalog in one file of SQLite, which several processes of one machine may use at once.
//
// Reads wait for no other read or write. One goroutine does all writing of a process. It puts all
// queued writes into one transaction, so that many uploads share one sync of the disk.
package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	driver "modernc.org/sqlite" // "sqlite"
	codes "modernc.org/sqlite/lib"

	"firn/internal/catalog"
	"firn/internal/depot/index"
	"firn/internal/sqlitex"
)

const (
	// defaultWait is how long a writer waits for one of another process. Transactions take milliseconds.
	defaultWait = 10 * time.Second

	// maxReaders bounds the connections that read at once. A look-up takes tens of microseconds of processor time.
	maxReaders = 4

	// pageCache is what SQLite keeps of the file in memory, in KiB a connection; the operating system has the rest.
	pageCache = 2048
)

// Options of a Catalog.
type Options struct {
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Wait is how long a write waits for one of another process; 0 is 10 s.
	Wait time.Duration
	// New, if it is not nil, is asked before a catalog is made where there is none, or a file with nothing in it; its error ends Open. It may be asked twice.
	New func() error
	// Older, if it is not nil, is asked before a catalog of an older firn is brought up to date: only if it is ok. Otherwise it is asked again a moment later,
	// unless another process has done it by then. Its error ends Open. It may be asked again after it was ok.
	Older func() (ok bool, err error)

	steps fs.FS // migrations of a test
}

// Catalog keeps a catalog in a file.
type Catalog struct {
	now    func() time.Time
	reads  *sql.DB
	writes *writer
	shm    *walIndex
	header *sqlitex.Header // of shm

	mu       sync.Mutex
	prepared map[string]*sql.Stmt // for reading, by their text
	closed   bool
}

var (
	_ catalog.Database = (*Catalog)(nil)
	_ catalog.Caches   = (*Catalog)(nil)
	_ catalog.Tokens   = (*Catalog)(nil)
	_ catalog.SSHKeys  = (*Catalog)(nil)
	_ catalog.Uses     = (*Catalog)(nil)
	_ catalog.Notes    = (*Catalog)(nil)
	_ catalog.Leases   = (*Catalog)(nil)
	_                  = index.Of((*Catalog)(nil))
)

// Open opens the catalog in the file at path, which it makes, or brings up to date, where that is needed.
func Open(ctx context.Context, path string, opts Options) (*Catalog, error) {
	c, err := open(ctx, path, opts)
	if err != nil {
		return nil, fmt.Errorf("open catalog %s: %w", path, err)
	}
	return c, nil
}

func open(ctx context.Context, path string, opts Options) (_ *Catalog, err error) {
	if path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	if opts.New == nil {
		opts.New = func() error { return nil }
	}
	if opts.Older == nil {
		opts.Older = func() (bool, error) { return true, nil }
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := opts.New(); err != nil {
			return nil, err
		}
	}
	if err := create(path); err != nil {
		return nil, err
	}
	c := &Catalog{now: opts.Now, prepared: make(map[string]*sql.Stmt)}
	if c.now == nil {
		c.now = time.Now
	}
	wait := cmp.Or(opts.Wait, defaultWait)
	db, err := sql.Open("sqlite", dataSource(path, wait, "_txlock=immediate", "_pragma=journal_mode(wal)", "_pragma=synchronous(full)"))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	defer func() {
		if err != nil {
			err = errors.Join(err, db.Close())
		}
	}()
	if err := migrate(ctx, db, opts); err != nil {
		return nil, err
	}
	if c.reads, err = sql.Open("sqlite", dataSource(path, wait, "mode=ro", "_pragma=query_only(1)")); err != nil {
		return nil, err
	}
	c.reads.SetMaxOpenConns(maxReaders)
	c.reads.SetMaxIdleConns(maxReaders)
	if c.shm, err = openWALIndex(path + "-shm"); err != nil {
		return nil, errors.Join(err, c.reads.Close())
	}
	if c.header, err = sqlitex.Map(c.shm.File); err != nil {
		return nil, errors.Join(err, c.reads.Close(), c.shm.close())
	}
	if c.writes, err = newWriter(ctx, db, filepath.Dir(path), wait); err != nil {
		return nil, errors.Join(err, c.reads.Close(), c.shm.close())
	}
	return c, nil
}

// create makes an empty file if there is none. It will hold secret keys: no other user may read it,
// nor the files that SQLite makes beside it, which get its mode.
// One that is there is not opened: closing it would end the locks that this process has on it.
func create(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.Close()
}

func dataSource(path string, wait time.Duration, query ...string) string {
	query = append(query, fmt.Sprintf("_pragma=busy_timeout(%d)", wait.Milliseconds()),
		"_pragma=foreign_keys(1)", fmt.Sprintf("_pragma=cache_size(-%d)", pageCache))
	return (&url.URL{Scheme: "file", Path: path, RawQuery: strings.Join(query, "&")}).String()
}

// Close ends all use.
func (c *Catalog) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.mu.Unlock()
	c.header.Close()
	// The last connection to close moves the WAL into the file. Readers cannot do that, so they close first.
	// The WAL index is closed after that: closing a file ends all locks of this process on it.
	return errors.Join(c.reads.Close(), c.writes.close(), c.shm.close())
}

// Check asks the database something.
func (c *Catalog) Check(ctx context.Context) error {
	var one int
	return c.queryRow(ctx, "SELECT 1 FROM caches LIMIT 1").scan(&one, nil)
}

// statement returns a prepared statement for reading.
func (c *Catalog) statement(ctx context.Context, text string) (*sql.Stmt, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, fmt.Errorf("%w: it is closed", catalog.ErrUnavailable)
	}
	if s, ok := c.prepared[text]; ok {
		return s, nil
	}
	s, err := c.reads.PrepareContext(ctx, text)
	if err != nil {
		return nil, unavailable(err)
	}
	c.prepared[text] = s
	return s, nil
}

// row is what is found of one row.
type row struct {
	*sql.Row
	err error
}

func (c *Catalog) queryRow(ctx context.Context, text string, args ...any) row {
	s, err := c.statement(ctx, text)
	if err != nil {
		return row{err: err}
	}
	return row{Row: s.QueryRowContext(ctx, args...)}
}

// scan scans one column into to. No row is the error none, which may be nil.
func (r row) scan(to any, none error) error { return r.scanAll(none, to) }

func (r row) scanAll(none error, to ...any) error {
	if r.err != nil {
		return r.err
	}
	err := r.Row.Scan(to...)
	if errors.Is(err, sql.ErrNoRows) {
		return none
	}
	return unavailable(err)
}

// rows calls each with every row of a query.
func (c *Catalog) rows(ctx context.Context, each func(scan func(...any) error) error, text string, args ...any) error {
	s, err := c.statement(ctx, text)
	if err != nil {
		return err
	}
	rows, err := s.QueryContext(ctx, args...)
	if err != nil {
		return unavailable(err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := each(rows.Scan); err != nil {
			return unavailable(err)
		}
	}
	return unavailable(rows.Err())
}

// unavailable wraps what the database fails with, but for errors of the port.
func unavailable(err error) error {
	if err == nil {
		return nil
	}
	for _, known := range []error{catalog.ErrNotFound, catalog.ErrConflict, catalog.ErrGone, catalog.ErrChanged, catalog.ErrUnavailable} {
		if errors.Is(err, known) {
			return err
		}
	}
	if e, ok := errors.AsType[*driver.Error](err); ok {
		switch e.Code() & 0xff {
		case codes.SQLITE_FULL:
			return fmt.Errorf("%w: %w", catalog.ErrFull, err)
		case codes.SQLITE_CORRUPT, codes.SQLITE_NOTADB:
			return fmt.Errorf("%w: %w", catalog.ErrCorrupt, err)
		}
	}
	return fmt.Errorf("%w: %w", catalog.ErrUnavailable, err)
}

// seconds is a time as it is kept.
func (c *Catalog) seconds() int64 { return c.now().Unix() }

// marks are n question marks, for IN.
func marks(n int) string { return strings.TrimSuffix(strings.Repeat("?,", n), ",") }

// most is how many things may be asked for at once.
const most = index.MaxAsked

// atMost refuses more.
func atMost(n int) error {
	if n > most {
		return fmt.Errorf("ask catalog: %d at once, at most %d", n, most)
	}
	return nil
}

// padded is the number of question marks for n values: one of few, so that there are few statements.
func padded(n int) int {
	size := 1
	for size < n {
		size *= 4
	}
	return cmp.Or(size, 1)
}
