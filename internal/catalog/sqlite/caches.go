package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"firn/internal/catalog"
	"firn/nix"
)

// AddCache adds a cache.
func (c *Catalog) AddCache(ctx context.Context, r *catalog.Cache) error {
	var id int64
	err := c.write(ctx, func(x *change) error {
		if ok, err := x.get("SELECT id FROM caches WHERE name = ?", []any{r.Name}, new(int64)); ok || err != nil {
			return conflict(ok, err, "a cache named %s", r.Name)
		}
		if _, err := x.get(`
			INSERT INTO caches (name, store_dir, sources, priority, private, allow_missing, keys, created)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING id`, append(cacheColumns(r), r.Created.Unix()), &id); err != nil {
			return err
		}
		return setHosts(x, id, r.Hosts)
	})
	if err != nil {
		return fmt.Errorf("add cache %s: %w", r.Name, err)
	}
	r.ID = catalog.CacheID(id)
	return nil
}

func cacheColumns(r *catalog.Cache) []any {
	keys := make([]string, len(r.Keys))
	for i, k := range r.Keys {
		keys[i] = k.Reveal()
	}
	return []any{r.Name, string(r.StoreDir), strings.Join(r.Sources, " "), r.Priority, r.Private, r.AllowMissingReferences, strings.Join(keys, " ")}
}

func setHosts(x *change, id int64, hosts []string) error {
	if err := x.exec("DELETE FROM cache_hosts WHERE cache = ?", id); err != nil {
		return err
	}
	for _, host := range hosts {
		n, err := x.count("INSERT INTO cache_hosts VALUES (?, ?) ON CONFLICT DO NOTHING", host, id)
		if err != nil || n == 0 {
			return conflict(n == 0, err, "the host name %s of another cache", host)
		}
	}
	return nil
}

// conflict is ErrConflict, or the error that there is.
func conflict(there bool, err error, format string, args ...any) error {
	if err != nil || !there {
		return err
	}
	return fmt.Errorf("%w: %s", catalog.ErrConflict, fmt.Sprintf(format, args...))
}

// AllCaches returns all caches.
func (c *Catalog) AllCaches(ctx context.Context) ([]*catalog.Cache, error) {
	var all []*catalog.Cache
	err := c.rows(ctx, func(scan func(...any) error) error {
		r, err := scanCache(scan)
		all = append(all, r)
		return err
	}, cacheRecords+" ORDER BY name")
	if err != nil {
		return nil, fmt.Errorf("read caches: %w", err)
	}
	return all, nil
}

// cacheRecords are the records of all caches, with the columns that scanCache scans.
const cacheRecords = `
	SELECT id, name, store_dir, sources, priority, private, allow_missing, keys, created,
		(SELECT group_concat(host, ' ' ORDER BY host) FROM cache_hosts WHERE cache = caches.id)
	FROM caches WHERE name IS NOT NULL`

func scanCache(scan func(...any) error) (*catalog.Cache, error) {
	var sources, keys, storeDir string
	var hosts sql.NullString
	var created int64
	r := &catalog.Cache{}
	if err := scan(&r.ID, &r.Name, &storeDir, &sources, &r.Priority, &r.Private, &r.AllowMissingReferences, &keys, &created, &hosts); err != nil {
		return nil, err
	}
	r.StoreDir, r.Created = nix.StoreDir(storeDir), time.Unix(created, 0).UTC()
	r.Sources, r.Hosts = strings.Fields(sources), strings.Fields(hosts.String)
	for _, text := range strings.Fields(keys) {
		key, err := nix.ParseSecretKey(text)
		if err != nil {
			return nil, fmt.Errorf("key of cache %s: %w", r.Name, err)
		}
		r.Keys = append(r.Keys, key)
	}
	return r, nil
}

// SetCache replaces a record.
func (c *Catalog) SetCache(ctx context.Context, old, r *catalog.Cache) error {
	err := c.write(ctx, func(x *change) error {
		if err := x.rows(func(scan func(...any) error) error {
			now, err := scanCache(scan)
			if err == nil && !now.Equal(old) {
				err = catalog.ErrChanged
			}
			return err
		}, cacheRecords+" AND id = ?", int64(r.ID)); err != nil {
			return err
		}
		var other int64
		if ok, err := x.get("SELECT id FROM caches WHERE name = ?", []any{r.Name}, &other); err != nil || ok && other != int64(r.ID) {
			return conflict(ok, err, "a cache named %s", r.Name)
		}
		n, err := x.count(`
			UPDATE caches SET name = ?, store_dir = ?, sources = ?, priority = ?, private = ?, allow_missing = ?, keys = ?
			WHERE id = ? AND name IS NOT NULL`, append(cacheColumns(r), int64(r.ID))...)
		if err != nil {
			return err
		}
		if n == 0 {
			return catalog.ErrNotFound
		}
		return setHosts(x, int64(r.ID), r.Hosts)
	})
	if err != nil {
		return fmt.Errorf("set cache %s: %w", r.Name, err)
	}
	return nil
}

// removeBatch is how much of what is deleted goes in one transaction: others wait for it, for some ten milliseconds where there are a million paths.
const removeBatch = 100

// DeleteCache removes a cache and all that it has.
func (c *Catalog) DeleteCache(ctx context.Context, id catalog.CacheID) error {
	err := c.write(ctx, func(x *change) error {
		if err := x.exec("DELETE FROM cache_hosts WHERE cache = ?", int64(id)); err != nil {
			return err
		}
		return found(x.count("UPDATE caches SET name = NULL, keys = '' WHERE id = ? AND name IS NOT NULL", int64(id)))
	})
	if err != nil {
		return fmt.Errorf("delete cache: %w", err)
	}
	// The cache is gone. Should it fail from here on, a sweep removes the rest.
	for more := true; more; {
		began := time.Now()
		err := c.write(ctx, func(x *change) (err error) {
			more, err = removeFrom(x, int64(id), removeBatch)
			return err
		})
		if err != nil || more && giveWay(ctx, time.Since(began)) != nil {
			break
		}
	}
	return nil
}

// removeFrom removes some of what a deleted cache has, and at last its record.
func removeFrom(x *change, cache int64, limit int) (more bool, err error) {
	for _, text := range []string{
		"DELETE FROM paths WHERE cache = ?1 AND hash IN (SELECT hash FROM paths WHERE cache = ?1 LIMIT ?2)",
		"DELETE FROM uploads WHERE cache = ?1 AND name IN (SELECT name FROM uploads WHERE cache = ?1 LIMIT ?2)",
		"DELETE FROM files WHERE cache = ?1 AND key IN (SELECT key FROM files WHERE cache = ?1 LIMIT ?2)",
		"DELETE FROM signatures WHERE cache = ?1 AND hash IN (SELECT hash FROM signatures WHERE cache = ?1 LIMIT ?2)",
	} {
		n, err := x.count(text, cache, limit)
		if err != nil || n == int64(limit) {
			return true, err
		}
		limit -= int(n)
	}
	return false, x.exec("DELETE FROM caches WHERE id = ?", cache)
}

// found is ErrNotFound if no row was changed.
func found(n int64, err error) error {
	if err == nil && n == 0 {
		return catalog.ErrNotFound
	}
	return err
}

// AddToken adds a token.
func (c *Catalog) AddToken(ctx context.Context, t *catalog.Token) error {
	grants, err := json.Marshal(t.Grants)
	if err != nil {
		return fmt.Errorf("add token %s: %w", t.Name, err)
	}
	expires := sql.NullInt64{Int64: t.Expires.Unix(), Valid: !t.Expires.IsZero()}
	err = c.write(ctx, func(x *change) error {
		n, err := x.count("INSERT INTO tokens (name, hash, created, expires, grants) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", t.Name, t.Hash[:], t.Created.Unix(), expires, string(grants))
		return conflict(n == 0, err, "a token of this name")
	})
	if err != nil {
		return fmt.Errorf("add token %s: %w", t.Name, err)
	}
	return nil
}

const tokenColumns = "SELECT name, hash, created, expires, used, grants FROM tokens"

func scanToken(scan func(...any) error) (*catalog.Token, error) {
	t := &catalog.Token{}
	var hash []byte
	var grants string
	var created int64
	var expires, used sql.NullInt64
	if err := scan(&t.Name, &hash, &created, &expires, &used, &grants); err != nil {
		return nil, err
	}
	t.Created = time.Unix(created, 0).UTC()
	if expires.Valid {
		t.Expires = time.Unix(expires.Int64, 0).UTC()
	}
	if used.Valid {
		t.Used = time.Unix(used.Int64, 0).UTC()
	}
	copy(t.Hash[:], hash)
	return t, json.Unmarshal([]byte(grants), &t.Grants)
}

// AllTokens returns all tokens.
func (c *Catalog) AllTokens(ctx context.Context) ([]*catalog.Token, error) {
	var all []*catalog.Token
	err := c.rows(ctx, func(scan func(...any) error) error {
		t, err := scanToken(scan)
		all = append(all, t)
		return err
	}, tokenColumns+" ORDER BY name")
	if err != nil {
		return nil, fmt.Errorf("read tokens: %w", err)
	}
	return all, nil
}

// TokenByHash returns the token of a secret.
func (c *Catalog) TokenByHash(ctx context.Context, hash catalog.Sum) (*catalog.Token, error) {
	r := c.queryRow(ctx, tokenColumns+" WHERE hash = ?", hash[:])
	t, err := scanToken(func(to ...any) error { return r.scanAll(catalog.ErrNotFound, to...) })
	if err != nil {
		return nil, fmt.Errorf("look up token: %w", err)
	}
	return t, nil
}

// RevokeToken removes a token.
func (c *Catalog) RevokeToken(ctx context.Context, name string) error {
	err := c.write(ctx, func(x *change) error { return found(x.count("DELETE FROM tokens WHERE name = ?", name)) })
	if err != nil {
		return fmt.Errorf("revoke token %s: %w", name, err)
	}
	return nil
}

// NoteUses notes when credentials were used.
func (c *Catalog) NoteUses(ctx context.Context, uses []catalog.Use) error {
	err := c.write(ctx, func(x *change) error {
		for _, u := range uses {
			var err error
			if u.SSHKey != nil {
				err = x.exec("UPDATE ssh_keys SET used = ?1 WHERE key = ?2 AND coalesce(used, 0) < ?1", u.At.Unix(), u.SSHKey)
			} else {
				err = x.exec("UPDATE tokens SET used = ?1 WHERE hash = ?2 AND coalesce(used, 0) < ?1", u.At.Unix(), u.Token[:])
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("note the last use of credentials: %w", err)
	}
	return nil
}

// hasCache is ErrGone if there is no such cache.
func hasCache(x *change, cache catalog.CacheID) error {
	ok, err := x.get("SELECT id FROM caches WHERE id = ? AND name IS NOT NULL", []any{int64(cache)}, new(int64))
	if err == nil && !ok {
		return fmt.Errorf("%w: the cache", catalog.ErrGone)
	}
	return err
}

const (
	// page is how many things an iteration reads at once.
	page = 200
	// pageReferences is with how many references the paths of a page are enough: one path may have
	// 200,000.
	pageReferences = 20_000
)

// errPageFull ends a page early.
var errPageFull = errors.New("this page is full")

// pages iterates over what next returns, page by page. after is the key of the last item.
func pages[T, K any](next func(after K, first bool) ([]T, error), keyOf func(T) K) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var after K
		for first := true; ; first = false {
			items, err := next(after, first)
			full := errors.Is(err, errPageFull)
			if err != nil && !full {
				var none T
				yield(none, err)
				return
			}
			for _, item := range items {
				if !yield(item, nil) {
					return
				}
				after = keyOf(item)
			}
			if len(items) < page && !full {
				return
			}
		}
	}
}
