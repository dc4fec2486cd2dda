package sqlite

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"strings"

	"firn/internal/catalog"
	"firn/internal/depot/index"
)

// PutFile adds a file.
func (c *Catalog) PutFile(ctx context.Context, cache catalog.CacheID, f *index.File) error {
	if err := c.write(ctx, func(x *change) error { return c.putFile(x, cache, f) }); err != nil {
		return fmt.Errorf("put file %s: %w", f.Key, err)
	}
	return nil
}

// UpdateFile changes a file.
func (c *Catalog) UpdateFile(ctx context.Context, cache catalog.CacheID, f *index.File, b index.Basis, update func(old []byte) ([]byte, error)) error {
	var refused error
	err := c.write(ctx, func(x *change) error {
		var old []byte
		there, err := x.get("SELECT content FROM files WHERE cache = ? AND key = ?", []any{int64(cache), f.Key}, &old)
		if err != nil {
			return err
		}
		if there {
			old = notNil(old)
		}
		var content []byte
		if content, refused = update(old); refused != nil {
			return refused
		}
		if content == nil || there && bytes.Equal(content, old) {
			return hasCache(x, cache)
		}
		if !f.Path.IsZero() {
			if err := missing(x, cache, b, f.Path); err != nil {
				return err
			}
		}
		return c.putFile(x, cache, &index.File{Key: f.Key, Path: f.Path, Content: content})
	})
	if refused != nil {
		return refused
	}
	if err != nil {
		return fmt.Errorf("update file %s: %w", f.Key, err)
	}
	return nil
}

func (c *Catalog) putFile(x *change, cache catalog.CacheID, f *index.File) error {
	if err := hasCache(x, cache); err != nil {
		return err
	}
	var path any
	if !f.Path.IsZero() {
		path = f.Path.Hash().String()
	}
	return x.exec("INSERT INTO files (cache, key, content, path) VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET content = excluded.content, path = excluded.path",
		int64(cache), f.Key, notNil(f.Content), path)
}

// File returns a file.
func (c *Catalog) File(ctx context.Context, cache catalog.CacheID, key string) ([]byte, error) {
	var content []byte
	err := c.queryRow(ctx, "SELECT content FROM files WHERE cache = ? AND key = ?", int64(cache), key).scan(&content, catalog.ErrNotFound)
	if err != nil {
		return nil, fmt.Errorf("read file %s: %w", key, err)
	}
	return content, nil
}

// AllFiles iterates over keys.
func (c *Catalog) AllFiles(ctx context.Context, cache catalog.CacheID, prefix string) iter.Seq2[string, error] {
	return pages(func(after string, first bool) (keys []string, err error) {
		from, compare := after, ">"
		if first {
			from, compare = prefix, ">="
		}
		err = c.rows(ctx, func(scan func(...any) error) error {
			var key string
			if err := scan(&key); err != nil {
				return err
			}
			if strings.HasPrefix(key, prefix) { // those that follow do not come back
				keys = append(keys, key)
			}
			return nil
		}, "SELECT key FROM files WHERE cache = ? AND key "+compare+" ? ORDER BY key LIMIT ?", int64(cache), from, page)
		return keys, err
	}, func(key string) string { return key })
}
