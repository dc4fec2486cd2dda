package sqlite

import (
	"context"
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
