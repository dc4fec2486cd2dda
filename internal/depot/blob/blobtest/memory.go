// Package blobtest has what every store of blobs must pass, and one in memory.
package blobtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"sync"
	"time"

	"firn/internal/depot/blob"
)

// Memory keeps blobs in memory.
type Memory struct {
	mu    sync.Mutex
	blobs map[string]kept
}

type kept struct {
	data     []byte
	modified time.Time
}

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{blobs: map[string]kept{}} }

var _ blob.Store = (*Memory)(nil)

func (m *Memory) Create(ctx context.Context, name string) (blob.Writer, error) {
	if err := check(ctx, name); err != nil {
		return nil, err
	}
	return &memoryWriter{memory: m, name: name}, nil
}

func (*Memory) Check(context.Context) error { return nil }

func check(ctx context.Context, name string) error {
	if err := blob.CheckName(name); err != nil {
		return err
	}
	return context.Cause(ctx)
}

type memoryWriter struct {
	bytes.Buffer
	memory    *Memory
	name      string
	committed bool
}

func (w *memoryWriter) Commit(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	w.memory.mu.Lock()
	defer w.memory.mu.Unlock()
	w.memory.blobs[w.name] = kept{bytes.Clone(w.Bytes()), time.Now()}
	w.committed = true
	return nil
}

func (w *memoryWriter) Abort() {
	if !w.committed {
		w.Reset()
	}
}

func (m *Memory) Open(ctx context.Context, name string) (blob.Blob, error) {
	if err := check(ctx, name); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	k, ok := m.blobs[name]
	if !ok {
		return nil, fmt.Errorf("open %s: %w", name, blob.ErrNotFound)
	}
	return memoryBlob{bytes.NewReader(k.data)}, nil
}

type memoryBlob struct{ *bytes.Reader }

func (memoryBlob) Close() error { return nil }

func (b memoryBlob) WriteRange(ctx context.Context, w io.Writer, off, n int64) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if off < 0 || n < 0 || off > b.Size()-n {
		return fmt.Errorf("read blob: %d bytes from %d on are not within its %d bytes", n, off, b.Size())
	}
	_, err := io.Copy(w, io.NewSectionReader(b, off, n))
	return err
}

func (m *Memory) Delete(ctx context.Context, name string) error {
	if err := check(ctx, name); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.blobs, name)
	return nil
}

func (m *Memory) List(ctx context.Context, each func(blob.Info) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	m.mu.Lock()
	all := maps.Clone(m.blobs)
	m.mu.Unlock()
	for name, k := range all {
		if err := each(blob.Info{Name: name, Size: int64(len(k.data)), Modified: k.modified}); err != nil {
			return err
		}
	}
	return nil
}

func (m *Memory) Sweep(context.Context, time.Time) error { return nil }

// Change calls change with the bytes of a blob, which it may change: damage, for tests.
func (m *Memory) Change(name string, change func([]byte)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(m.blobs[name].data)
}
