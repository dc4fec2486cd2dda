package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"

	driver "modernc.org/sqlite"
)

// copyPages is how many pages are copied between two looks at a context.
const copyPages = 1024

// Copy writes the catalog as it is at one moment into a new file at path, durably, and returns the
// sizes of the packs that it names. Other processes may write to the catalog at the same time. A
// catalog that is not sound is an error.
func (c *Catalog) Copy(ctx context.Context, path string) (packs map[string]int64, err error) {
	if packs, err = c.copy(ctx, path); err != nil {
		return nil, fmt.Errorf("copy catalog to %s: %w", path, err)
	}
	return packs, nil
}

func (c *Catalog) copy(ctx context.Context, path string) (map[string]int64, error) {
	if err := create(path); err != nil {
		return nil, err
	}
	conn, err := c.reads.Conn(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	defer conn.Close()
	// A transaction that has read something holds its state of the file until it ends, so no write
	// begins the copy again.
	tx, err := conn.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, unavailable(err)
	}
	defer tx.Rollback()
	var one int
	if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM (SELECT 1 FROM caches LIMIT 1)").Scan(&one); err != nil {
		return nil, unavailable(err)
	}
	err = conn.Raw(func(c any) error {
		// Nothing has to survive a crash before the copy is whole and synced.
		b, err := c.(interface {
			NewBackup(string) (*driver.Backup, error)
		}).NewBackup(dataSource(path, defaultWait, "_pragma=journal_mode(off)", "_pragma=synchronous(off)"))
		if err != nil {
			return err
		}
		for more := true; more && err == nil; {
			if err = context.Cause(ctx); err == nil {
				more, err = b.Step(copyPages)
			}
		}
		return errors.Join(err, b.Finish())
	})
	if err != nil {
		return nil, unavailable(err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return nil, err
	}
	return packsIn(ctx, path)
}

// packsIn checks a catalog that no process has open or writes to, and returns the sizes of its
// packs.
func packsIn(ctx context.Context, path string) (map[string]int64, error) {
	db, err := sql.Open("sqlite", dataSource(path, defaultWait, "mode=ro", "immutable=1"))
	if err != nil {
		return nil, err
	}
	defer db.Close()
	var verdict string
	if err := db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&verdict); err != nil {
		return nil, unavailable(err)
	}
	if verdict != "ok" {
		return nil, fmt.Errorf("it is damaged: %s", verdict)
	}
	rows, err := db.QueryContext(ctx, "SELECT name, size FROM packs")
	if err != nil {
		return nil, unavailable(err)
	}
	defer rows.Close()
	packs := make(map[string]int64)
	for rows.Next() {
		var name string
		var size int64
		if err := rows.Scan(&name, &size); err != nil {
			return nil, unavailable(err)
		}
		packs[name] = size
	}
	return packs, unavailable(rows.Err())
}

// Fold brings what is beside the catalog in the file at path into that file, so that the file is
// all of it. It fails while another process has it open.
func Fold(ctx context.Context, path string) error {
	err := fold(ctx, path)
	if err != nil {
		err = fmt.Errorf("close catalog %s: %w", path, err)
	}
	return err
}

func fold(ctx context.Context, path string) error {
	if _, err := os.Stat(path + "-wal"); err != nil {
		return nil
	}
	db, err := sql.Open("sqlite", dataSource(path, defaultWait, "_pragma=journal_mode(delete)"))
	if err != nil {
		return err
	}
	defer db.Close()
	return unavailable(db.PingContext(ctx))
}
