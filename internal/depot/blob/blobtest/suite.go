package blobtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"firn/internal/depot/blob"
)

// Test checks what the port promises of a store. open opens an empty one.
func Test(t *testing.T, open func(testing.TB) blob.Store) {
	data := make([]byte, 300_000)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range data {
		data[i] = byte(random.Uint32())
	}
	t.Run("round trip", func(t *testing.T) {
		s := open(t)
		put(t, s, "a1-b.pack", data)
		b, err := s.Open(t.Context(), "a1-b.pack")
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		if b.Size() != int64(len(data)) {
			t.Errorf("size %d, want %d", b.Size(), len(data))
		}
		got := make([]byte, len(data))
		if _, err := b.ReadAt(got, 0); err != nil && err != io.EOF || !bytes.Equal(got, data) {
			t.Errorf("other bytes, error %v", err)
		}
		for _, r := range [][2]int64{{0, 0}, {0, 1}, {1, 299_999}, {299_999, 1}, {300_000, 0}, {70_000, 100_000}} {
			for _, readsFrom := range []bool{true, false} {
				var to bytes.Buffer
				var w io.Writer = &to
				if !readsFrom {
					w = struct{ io.Writer }{&to}
				}
				if err := b.WriteRange(t.Context(), w, r[0], r[1]); err != nil || !bytes.Equal(to.Bytes(), data[r[0]:r[0]+r[1]]) {
					t.Errorf("range %v: other bytes, error %v", r, err)
				}
			}
		}
		for _, r := range [][2]int64{{-1, 1}, {0, 300_001}, {300_000, 1}, {1, -1}} {
			if err := b.WriteRange(t.Context(), io.Discard, r[0], r[1]); err == nil {
				t.Errorf("range %v: no error", r)
			}
		}
	})
	t.Run("ranges at once", func(t *testing.T) {
		s := open(t)
		put(t, s, "x", data)
		b, err := s.Open(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		done := make(chan error)
		for i := range 8 {
			go func() {
				off := int64(i) * 30_000
				var to bytes.Buffer
				err := b.WriteRange(context.Background(), &to, off, 90_000)
				if err == nil && !bytes.Equal(to.Bytes(), data[off:off+90_000]) {
					err = errors.New("other bytes")
				}
				done <- err
			}()
		}
		for range 8 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("it is there", func(t *testing.T) {
		if err := open(t).Check(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("nothing before the commit", func(t *testing.T) {
		s := open(t)
		w, err := s.Create(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		wantMissing(t, s, "x")
		if names := list(t, s); len(names) > 0 {
			t.Errorf("listed %v", names)
		}
		w.Abort()
		wantMissing(t, s, "x")
		if err := s.Sweep(t.Context(), time.Now().Add(time.Hour)); err != nil {
			t.Error(err)
		}
		if names := list(t, s); len(names) > 0 {
			t.Errorf("listed %v", names)
		}
	})
	t.Run("abort after the commit", func(t *testing.T) {
		s := open(t)
		w, err := s.Create(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.Abort()
		b, err := s.Open(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		b.Close()
	})
	t.Run("a commit whose context has ended", func(t *testing.T) {
		s := open(t)
		w, err := s.Create(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := w.Commit(ctx); err == nil {
			t.Error("no error")
		}
		w.Abort()
		wantMissing(t, s, "x")
	})
	t.Run("list", func(t *testing.T) {
		s := open(t)
		want := map[string]int64{}
		for i := range 20 {
			name := fmt.Sprintf("%x-%d.pack", i*37, i)
			put(t, s, name, data[:i])
			want[name] = int64(i)
		}
		if got := list(t, s); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("listed %v, want %v", got, want)
		}
		stop := errors.New("stop")
		if err := s.List(t.Context(), func(blob.Info) error { return stop }); err != stop {
			t.Errorf("error %v, want that of the callback", err)
		}
	})
	t.Run("contexts that have ended", func(t *testing.T) {
		s := open(t)
		put(t, s, "x", data)
		b, err := s.Open(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("cause")
		cancel(cause)
		if _, err := s.Create(ctx, "y"); !errors.Is(err, cause) {
			t.Errorf("create: error %v", err)
		}
		if _, err := s.Open(ctx, "x"); !errors.Is(err, cause) {
			t.Errorf("open: error %v", err)
		}
		if err := s.List(ctx, func(blob.Info) error { return nil }); !errors.Is(err, cause) {
			t.Errorf("list: error %v", err)
		}
		if err := b.WriteRange(ctx, io.Discard, 0, 1000); !errors.Is(err, cause) {
			t.Errorf("write: error %v", err)
		}
	})
	t.Run("writers that fail", func(t *testing.T) {
		s := open(t)
		put(t, s, "x", data)
		b, err := s.Open(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		r, w := io.Pipe()
		r.CloseWithError(errors.New("gone"))
		if err := b.WriteRange(t.Context(), w, 0, 1000); err == nil || !strings.Contains(err.Error(), "gone") {
			t.Errorf("error %v, want that of the writer", err)
		}
		var to bytes.Buffer
		if err := b.WriteRange(t.Context(), &to, 5, 1000); err != nil || !bytes.Equal(to.Bytes(), data[5:1005]) {
			t.Errorf("after it: error %v", err)
		}
	})
	t.Run("reads over the end", func(t *testing.T) {
		s := open(t)
		put(t, s, "x", data)
		b, err := s.Open(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		got := make([]byte, 10)
		if n, err := b.ReadAt(got, 299_995); n != 5 || err != io.EOF || !bytes.Equal(got[:n], data[299_995:]) {
			t.Errorf("read %d bytes, error %v", n, err)
		}
	})
	t.Run("another try after an abort", func(t *testing.T) {
		s := open(t)
		w, err := s.Create(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data[:100]); err != nil {
			t.Fatal(err)
		}
		w.Abort()
		w.Abort()
		put(t, s, "x", data[:7])
		if got := list(t, s); len(got) != 1 || got["x"] != 7 {
			t.Errorf("listed %v", got)
		}
	})
	t.Run("delete", func(t *testing.T) {
		s := open(t)
		put(t, s, "x", data)
		b, err := s.Open(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		for range 2 {
			if err := s.Delete(t.Context(), "x"); err != nil {
				t.Error(err)
			}
		}
		wantMissing(t, s, "x")
		var to bytes.Buffer
		if err := b.WriteRange(t.Context(), &to, 0, int64(len(data))); err == nil && !bytes.Equal(to.Bytes(), data) {
			t.Error("other bytes after it was deleted")
		}
	})
	t.Run("names", func(t *testing.T) {
		s := open(t)
		for _, name := range []string{"", ".", "..", ".x", "a/b", "A", "a b", "ä", "a\x00", strings.Repeat("a", 129)} {
			if _, err := s.Create(t.Context(), name); err == nil {
				t.Errorf("create %q: no error", name)
			}
			if _, err := s.Open(t.Context(), name); err == nil || errors.Is(err, blob.ErrNotFound) {
				t.Errorf("open %q: error %v", name, err)
			}
			if err := s.Delete(t.Context(), name); err == nil {
				t.Errorf("delete %q: no error", name)
			}
		}
		put(t, s, strings.Repeat("a", 128), nil)
		put(t, s, "a", nil)
	})
}

func put(t *testing.T, s blob.Store, name string, data []byte) {
	t.Helper()
	w, err := s.Create(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for len(data) > 0 {
		n, err := w.Write(data[:min(len(data), 77_777)])
		if err != nil {
			t.Fatal(err)
		}
		data = data[n:]
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func wantMissing(t *testing.T, s blob.Store, name string) {
	t.Helper()
	if _, err := s.Open(t.Context(), name); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("open %s: error %v, want blob.ErrNotFound", name, err)
	}
}

func list(t *testing.T, s blob.Store) map[string]int64 {
	t.Helper()
	got := map[string]int64{}
	err := s.List(t.Context(), func(i blob.Info) error {
		if i.Modified.IsZero() {
			t.Errorf("%s was committed at no time", i.Name)
		}
		got[i.Name] = i.Size
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}
