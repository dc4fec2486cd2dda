package catalogtest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"firn/internal/catalog"
)

// NoteUses notes when credentials were used.
func (m *Memory) NoteUses(_ context.Context, uses []catalog.Use) error {
	defer m.lock()()
	later := func(to *time.Time, at time.Time) {
		if at = at.Truncate(time.Second).UTC(); at.After(*to) {
			*to = at
		}
	}
	for _, u := range uses {
		for _, k := range m.sshKeys {
			if u.SSHKey != nil && bytes.Equal(k.Key, u.SSHKey) {
				later(&k.Used, u.At)
			}
		}
		for _, t := range m.tokens {
			if u.SSHKey == nil && t.Hash == u.Token {
				later(&t.Used, u.At)
			}
		}
	}
	m.changed()
	return nil
}

// AddSSHKey adds a key.
func (m *Memory) AddSSHKey(_ context.Context, k *catalog.SSHKey) error {
	defer m.lock()()
	for _, other := range m.sshKeys {
		if other.Name == k.Name || bytes.Equal(other.Key, k.Key) {
			return fmt.Errorf("add SSH key %s: %w", k.Name, catalog.ErrConflict)
		}
	}
	m.sshKeys[k.Name] = new(*k)
	m.changed()
	return nil
}

// SSHKeys returns all keys.
func (m *Memory) SSHKeys(context.Context) ([]*catalog.SSHKey, error) {
	defer m.lock()()
	var all []*catalog.SSHKey
	for _, name := range slices.Sorted(maps.Keys(m.sshKeys)) {
		all = append(all, new(*m.sshKeys[name]))
	}
	return all, nil
}

// SSHKey returns the record of a key.
func (m *Memory) SSHKey(_ context.Context, key []byte) (*catalog.SSHKey, error) {
	defer m.lock()()
	for _, k := range m.sshKeys {
		if bytes.Equal(k.Key, key) {
			return new(*k), nil
		}
	}
	return nil, fmt.Errorf("look up SSH key: %w", catalog.ErrNotFound)
}

// RevokeSSHKey removes a key.
func (m *Memory) RevokeSSHKey(_ context.Context, name string) error {
	defer m.lock()()
	if m.sshKeys[name] == nil {
		return fmt.Errorf("revoke SSH key %s: %w", name, catalog.ErrNotFound)
	}
	delete(m.sshKeys, name)
	m.changed()
	return nil
}
