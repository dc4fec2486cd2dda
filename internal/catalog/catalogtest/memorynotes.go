package catalogtest

import (
	"context"
	"fmt"

	"firn/internal/catalog"
)

// PutNote keeps a note.
func (m *Memory) PutNote(_ context.Context, n *catalog.Note) error { return m.putNote(n, false) }

// AddNote keeps a note, if there is none.
func (m *Memory) AddNote(_ context.Context, n *catalog.Note) error { return m.putNote(n, true) }

func (m *Memory) putNote(n *catalog.Note, add bool) error {
	defer m.lock()()
	there := m.note(n.Key) != nil
	switch {
	case len(n.Key) > catalog.MaxNoteKey, len(n.Value) > catalog.MaxNote, !there && len(m.notes) >= catalog.MaxNotes:
		return fmt.Errorf("keep note %s: %w", n.Key, catalog.ErrTooLarge)
	case add && there:
		return fmt.Errorf("keep note %s: %w", n.Key, catalog.ErrConflict)
	}
	m.notes[n.Key] = new(*n)
	m.changed()
	return nil
}

// note returns a note, nil if there is none, and forgets it if it has expired.
func (m *Memory) note(key string) *catalog.Note {
	n := m.notes[key]
	if n != nil && !n.Expires.IsZero() && !n.Expires.After(m.now()) {
		delete(m.notes, key)
		return nil
	}
	return n
}

// Note returns a note.
func (m *Memory) Note(_ context.Context, key string) (*catalog.Note, error) {
	defer m.lock()()
	if n := m.note(key); n != nil {
		return new(*n), nil
	}
	return nil, fmt.Errorf("read note %s: %w", key, catalog.ErrNotFound)
}

// DeleteNote removes a note.
func (m *Memory) DeleteNote(_ context.Context, key string) error {
	defer m.lock()()
	delete(m.notes, key)
	m.changed()
	return nil
}
