package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"firn/internal/catalog"
)

// AddSSHKey adds a key.
func (c *Catalog) AddSSHKey(ctx context.Context, k *catalog.SSHKey) error {
	users, err := json.Marshal(k.Users)
	grants, err2 := json.Marshal(k.Grants)
	if err := errors.Join(err, err2); err != nil {
		return fmt.Errorf("add SSH key %s: %w", k.Name, err)
	}
	expires := sql.NullInt64{Int64: k.Expires.Unix(), Valid: !k.Expires.IsZero()}
	err = c.write(ctx, func(x *change) error {
		n, err := x.count("INSERT INTO ssh_keys (name, key, authority, users, created, expires, grants) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
			k.Name, k.Key, k.Authority, string(users), k.Created.Unix(), expires, string(grants))
		return conflict(n == 0, err, "this key, or one of this name")
	})
	if err != nil {
		return fmt.Errorf("add SSH key %s: %w", k.Name, err)
	}
	return nil
}

const sshKeyColumns = "SELECT name, key, authority, users, created, expires, used, grants FROM ssh_keys"

func scanSSHKey(scan func(...any) error) (*catalog.SSHKey, error) {
	k := &catalog.SSHKey{}
	var users, grants string
	var created int64
	var expires, used sql.NullInt64
	if err := scan(&k.Name, &k.Key, &k.Authority, &users, &created, &expires, &used, &grants); err != nil {
		return nil, err
	}
	k.Created = time.Unix(created, 0).UTC()
	if expires.Valid {
		k.Expires = time.Unix(expires.Int64, 0).UTC()
	}
	if used.Valid {
		k.Used = time.Unix(used.Int64, 0).UTC()
	}
	return k, errors.Join(json.Unmarshal([]byte(users), &k.Users), json.Unmarshal([]byte(grants), &k.Grants))
}

// AllSSHKeys returns all keys.
func (c *Catalog) AllSSHKeys(ctx context.Context) ([]*catalog.SSHKey, error) {
	var all []*catalog.SSHKey
	err := c.rows(ctx, func(scan func(...any) error) error {
		k, err := scanSSHKey(scan)
		all = append(all, k)
		return err
	}, sshKeyColumns+" ORDER BY name")
	if err != nil {
		return nil, fmt.Errorf("read SSH keys: %w", err)
	}
	return all, nil
}

// SSHKey returns the record of a key.
func (c *Catalog) SSHKey(ctx context.Context, key []byte) (*catalog.SSHKey, error) {
	r := c.queryRow(ctx, sshKeyColumns+" WHERE key = ?", key)
	k, err := scanSSHKey(func(to ...any) error { return r.scanAll(catalog.ErrNotFound, to...) })
	if err != nil {
		return nil, fmt.Errorf("look up SSH key: %w", err)
	}
	return k, nil
}

// RevokeSSHKey removes a key.
func (c *Catalog) RevokeSSHKey(ctx context.Context, name string) error {
	err := c.write(ctx, func(x *change) error { return found(x.count("DELETE FROM ssh_keys WHERE name = ?", name)) })
	if err != nil {
		return fmt.Errorf("revoke SSH key %s: %w", name, err)
	}
	return nil
}
