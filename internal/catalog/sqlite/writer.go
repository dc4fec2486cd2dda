package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	driver "modernc.org/sqlite"
	codes "modernc.org/sqlite/lib"

	"firn/internal/catalog"
)

const (
	// maxBatch bounds how many writes share a transaction: together they take some milliseconds.
	maxBatch = 64

	// maxPause bounds the pause between two tries for the lock that another process has. SQLite's own are up to 100 ms long.
	maxPause = 2 * time.Millisecond
	// maxUnbroken is how long one process writes before it leaves the lock to others for twice as long as they may pause:
	// between two of its transactions it is free for some ten microseconds, in which hardly anybody tries.
	maxUnbroken = 200 * time.Millisecond
)

// writer does all writing of a process.
type writer struct {
	db    *sql.DB
	conn  *sql.Conn
	dir   string        // of the file
	wait  time.Duration // for other processes
	queue chan *write
	ended chan struct{}

	mu     sync.RWMutex // held for reading while a write is queued
	closed bool

	prepared map[string]*sql.Stmt // of the goroutine
}

// write is a change that waits for its turn.
type write struct {
	ctx  context.Context
	do   func(*change) error
	done chan error
}

func newWriter(ctx context.Context, db *sql.DB, dir string, wait time.Duration) (*writer, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	// begin waits.
	if _, err := conn.ExecContext(ctx, "PRAGMA busy_timeout = 0"); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	w := &writer{db: db, conn: conn, dir: dir, wait: wait, queue: make(chan *write, maxBatch), ended: make(chan struct{}), prepared: make(map[string]*sql.Stmt)}
	go w.run()
	return w, nil
}

func (w *writer) close() error {
	w.mu.Lock()
	w.closed = true
	close(w.queue)
	w.mu.Unlock()
	<-w.ended
	var errs []error
	// Statements of a sql.Conn are not closed with it, and with one open SQLite keeps the file open, and the WAL beside it.
	for _, s := range w.prepared {
		errs = append(errs, s.Close())
	}
	return errors.Join(append(errs, w.conn.Close(), w.db.Close())...)
}

// write has do change the catalog, in a transaction that may be shared with others, and returns when that is durable.
// do may be called again; it changes nothing else. After an error of do nothing of it is kept.
func (c *Catalog) write(ctx context.Context, do func(*change) error) error {
	w := c.writes
	wr := &write{ctx: ctx, do: do, done: make(chan error, 1)}
	w.mu.RLock()
	if w.closed {
		w.mu.RUnlock()
		return fmt.Errorf("%w: it is closed", catalog.ErrUnavailable)
	}
	var err error
	select {
	case w.queue <- wr:
	case <-ctx.Done():
		err = ctx.Err()
	}
	w.mu.RUnlock()
	if err != nil {
		return err
	}
	// What is queued is done, whatever becomes of ctx, so it has to be waited for.
	return <-wr.done
}

// giveWay waits between two of many writes as long as the last one took: other processes try for the lock again and again,
// at moments of their own, and would not find it free.
func giveWay(ctx context.Context, took time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(took):
		return nil
	}
}

func (w *writer) run() {
	defer close(w.ended)
	var began, ended time.Time // of transactions without a break
	for first := range w.queue {
		batch := []*write{first}
	fill:
		for len(batch) < maxBatch {
			select {
			case next, ok := <-w.queue:
				if !ok {
					break fill
				}
				batch = append(batch, next)
			default:
				break fill
			}
		}
		if time.Since(ended) > 2*maxPause {
			began = time.Now()
		} else if time.Since(began) > maxUnbroken {
			time.Sleep(2 * maxPause)
			began = time.Now()
		}
		errs := make([]error, len(batch))
		if err := w.transact(batch, errs); err != nil {
			for i := range errs {
				errs[i] = w.failure(err)
			}
		}
		ended = time.Now()
		for i, wr := range batch {
			wr.done <- errs[i]
		}
	}
}

// transact makes one transaction of a batch. Its own error is that of all.
func (w *writer) transact(batch []*write, errs []error) error {
	ctx := context.Background()
	x := &change{w}
	if err := x.begin(); err != nil {
		return err
	}
	err := func() error {
		for i, wr := range batch {
			if errs[i] = wr.ctx.Err(); errs[i] != nil {
				continue
			}
			if err := x.exec("SAVEPOINT one"); err != nil {
				return err
			}
			if errs[i] = w.failure(wr.do(x)); errs[i] != nil {
				// Fails where the error has ended the whole transaction, such as a full disk does: then it is that of all.
				if err := x.exec("ROLLBACK TO one"); err != nil {
					if errors.Is(errs[i], catalog.ErrUnavailable) {
						return errs[i]
					}
					return fmt.Errorf("%w, after: %v", err, errs[i])
				}
			}
			if err := x.exec("RELEASE one"); err != nil {
				return err
			}
		}
		return x.exec("COMMIT")
	}()
	if err != nil {
		_, _ = w.conn.ExecContext(ctx, "ROLLBACK") // there may be nothing left to roll back
	}
	return err
}

// roomNeeded is how many bytes room writes: more than SQLite does at once.
const roomNeeded = 64 << 10

// failure is unavailable, but tells also of a quota that is used up. SQLite says of a full disk that it is full, and of a quota only that it could not write;
// which error the system gave, its driver does not tell. So the system is asked again.
func (w *writer) failure(err error) error {
	if e, ok := errors.AsType[*driver.Error](err); ok && slices.Contains(unwritten, e.Code()) {
		if full := w.room(); errors.Is(full, syscall.EDQUOT) || errors.Is(full, syscall.ENOSPC) {
			return fmt.Errorf("%w: %w: %w", catalog.ErrFull, full, err)
		}
	}
	return unavailable(err)
}

// unwritten are the codes of what could not be written, of the WAL and its index.
var unwritten = []int{codes.SQLITE_IOERR_WRITE, codes.SQLITE_IOERR_FSYNC, codes.SQLITE_IOERR_SHMSIZE}

// room finds out whether something can be written beside the catalog. It leaves nothing there.
func (w *writer) room() error {
	f, err := os.CreateTemp(w.dir, "room-")
	if err != nil {
		return err
	}
	err = os.Remove(f.Name())
	if err == nil {
		_, err = f.Write(make([]byte, roomNeeded))
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// change is the transaction that a write is in.
type change struct{ w *writer }

// begin begins a transaction, when no other process has one.
func (x *change) begin() error {
	for end := time.Now().Add(x.w.wait); ; {
		err := x.exec("BEGIN IMMEDIATE")
		e, ok := errors.AsType[*driver.Error](err)
		if !ok || e.Code()&0xff != codes.SQLITE_BUSY || time.Now().After(end) {
			return err
		}
		time.Sleep(rand.N(maxPause)) // at random, for the other may have a rhythm
	}
}

func (x *change) statement(text string) (*sql.Stmt, error) {
	if s, ok := x.w.prepared[text]; ok {
		return s, nil
	}
	s, err := x.w.conn.PrepareContext(context.Background(), text)
	if err == nil {
		x.w.prepared[text] = s
	}
	return s, err
}

func (x *change) exec(text string, args ...any) error {
	_, err := x.count(text, args...)
	return err
}

// count returns how many rows a statement changed.
func (x *change) count(text string, args ...any) (int64, error) {
	s, err := x.statement(text)
	if err != nil {
		return 0, err
	}
	result, err := s.ExecContext(context.Background(), args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// get scans the first row; ok is false if there is none.
func (x *change) get(text string, args []any, to ...any) (ok bool, err error) {
	s, err := x.statement(text)
	if err != nil {
		return false, err
	}
	err = s.QueryRowContext(context.Background(), args...).Scan(to...)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// rows calls each with every row of a query.
func (x *change) rows(each func(scan func(...any) error) error, text string, args ...any) error {
	s, err := x.statement(text)
	if err != nil {
		return err
	}
	rows, err := s.QueryContext(context.Background(), args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := each(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}

// ids are the values of the first column of a query.
func (x *change) ids(text string, args ...any) (ids []int64, err error) {
	err = x.rows(func(scan func(...any) error) error {
		var id int64
		err := scan(&id)
		ids = append(ids, id)
		return err
	}, text, args...)
	return ids, err
}
