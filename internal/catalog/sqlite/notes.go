package sqlite

import (
	"context"
	"crypto/rand"
	"fmt"
	"math"
	"time"

	"firn/internal/catalog"
)

// PutNote keeps a note.
func (c *Catalog) PutNote(ctx context.Context, n *catalog.Note) error {
	return c.putNote(ctx, n, false)
}

// AddNote keeps a note, if there is none.
func (c *Catalog) AddNote(ctx context.Context, n *catalog.Note) error { return c.putNote(ctx, n, true) }

func (c *Catalog) putNote(ctx context.Context, n *catalog.Note, add bool) error {
	err := c.write(ctx, func(x *change) error {
		if len(n.Key) > catalog.MaxNoteKey || len(n.Value) > catalog.MaxNote {
			return catalog.ErrTooLarge
		}
		if err := x.exec("DELETE FROM notes WHERE expires <= ?", c.now().Unix()); err != nil {
			return err
		}
		var there, all int64
		if _, err := x.get("SELECT (SELECT count(*) FROM notes WHERE key = ?), (SELECT count(*) FROM notes)", []any{n.Key}, &there, &all); err != nil {
			return err
		}
		switch {
		case add && there > 0:
			return conflict(true, nil, "a note")
		case there == 0 && all >= catalog.MaxNotes:
			return fmt.Errorf("%w: there are %d notes", catalog.ErrTooLarge, all)
		}
		expires := int64(math.MaxInt64)
		if !n.Expires.IsZero() {
			expires = n.Expires.Unix()
		}
		value := n.Value
		if value == nil {
			value = []byte{}
		}
		return x.exec("INSERT INTO notes VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value, expires = excluded.expires",
			n.Key, value, expires)
	})
	if err != nil {
		return fmt.Errorf("keep note %s: %w", n.Key, err)
	}
	return nil
}

// Note returns a note.
func (c *Catalog) Note(ctx context.Context, key string) (*catalog.Note, error) {
	n := &catalog.Note{Key: key}
	var expires int64
	r := c.queryRow(ctx, "SELECT value, expires FROM notes WHERE key = ? AND expires > ?", key, c.now().Unix())
	if err := r.scanAll(catalog.ErrNotFound, &n.Value, &expires); err != nil {
		return nil, fmt.Errorf("read note %s: %w", key, err)
	}
	if expires != math.MaxInt64 {
		n.Expires = time.Unix(expires, 0).UTC()
	}
	return n, nil
}

// DeleteNote removes a note.
func (c *Catalog) DeleteNote(ctx context.Context, key string) error {
	err := c.write(ctx, func(x *change) error { return x.exec("DELETE FROM notes WHERE key = ?", key) })
	if err != nil {
		return fmt.Errorf("delete note %s: %w", key, err)
	}
	return nil
}

// TakeLease takes a lease.
func (c *Catalog) TakeLease(ctx context.Context, name string, d time.Duration) (*catalog.Lease, error) {
	l := &catalog.Lease{Name: name, Holder: rand.Text()}
	err := c.write(ctx, func(x *change) error {
		if len(name) > catalog.MaxNoteKey {
			return catalog.ErrTooLarge
		}
		now := c.now()
		if err := x.exec("DELETE FROM leases WHERE expires <= ?", now.UnixMilli()); err != nil {
			return err
		}
		n, err := x.count("INSERT INTO leases SELECT ?1, ?2, ?3 WHERE (SELECT count(*) FROM leases) < ?4 ON CONFLICT DO NOTHING",
			l.Name, l.Holder, now.Add(d).UnixMilli(), catalog.MaxNotes)
		if err != nil || n > 0 {
			return err
		}
		held, err := x.get("SELECT 1 FROM leases WHERE name = ?", []any{name}, new(int64))
		if err == nil && !held {
			return fmt.Errorf("%w: there are %d leases", catalog.ErrTooLarge, catalog.MaxNotes)
		}
		return conflict(held, err, "another process has it")
	})
	if err != nil {
		return nil, fmt.Errorf("take lease %s: %w", name, err)
	}
	return l, nil
}

// ReleaseLease gives back a lease.
func (c *Catalog) ReleaseLease(ctx context.Context, l *catalog.Lease) error {
	err := c.write(ctx, func(x *change) error {
		return x.exec("DELETE FROM leases WHERE name = ? AND holder = ?", l.Name, l.Holder)
	})
	if err != nil {
		return fmt.Errorf("release lease %s: %w", l.Name, err)
	}
	return nil
}
