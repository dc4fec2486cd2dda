package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/pressly/goose/v3"
	driver "modernc.org/sqlite"
	codes "modernc.org/sqlite/lib"

	"firn/internal/catalog"
)

//go:embed migrations
var migrations embed.FS

const (
	// migrateTries is how often a migration is tried, and migratePause how long it waits between.
	// It fails when another process makes the same tables at the same moment.
	migrateTries = 40
	migratePause = 25 * time.Millisecond
)

// errNotNow says that another process has to do something first.
var errNotNow = errors.New("it cannot be brought up to date now")

// migrate brings the file up to date, if the options allow it.
func migrate(ctx context.Context, db *sql.DB, opts Options) error {
	steps := opts.steps
	if steps == nil {
		var err error
		if steps, err = fs.Sub(migrations, "migrations"); err != nil {
			return err
		}
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, steps)
	if err != nil {
		return err
	}
	for tries := 1; ; tries++ {
		err := migrateOnce(ctx, p, opts)
		switch {
		case errors.Is(err, errNotNow):
			tries--
		case err == nil || tries == migrateTries || !raced(err):
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(migratePause):
		}
	}
}

func migrateOnce(ctx context.Context, p *goose.Provider, opts Options) error {
	sources := p.ListSources()
	newest := sources[len(sources)-1].Version
	has, err := p.GetDBVersion(ctx)
	if err != nil {
		return unavailable(err)
	}
	switch {
	case has > newest:
		return fmt.Errorf("it was written by a newer firn: it has version %d, and this firn knows up to %d", has, newest)
	case has == newest:
		return nil
	case has == 0:
		if err := opts.New(); err != nil {
			return err
		}
	default:
		switch ok, err := opts.Older(); {
		case err != nil:
			return err
		case !ok:
			return errNotNow
		}
	}
	_, err = p.Up(ctx)
	return unavailable(err)
}

// raced reports whether err may come from another process that migrates the same file.
func raced(err error) bool {
	e, ok := errors.AsType[*driver.Error](err)
	if !ok {
		return errors.Is(err, catalog.ErrUnavailable) // of goose, which does not pass on all causes
	}
	switch e.Code() & 0xff {
	case codes.SQLITE_ERROR, codes.SQLITE_BUSY, codes.SQLITE_LOCKED, codes.SQLITE_CONSTRAINT, codes.SQLITE_SCHEMA:
		return true // a table that is there already is a SQLITE_ERROR
	}
	return false
}
