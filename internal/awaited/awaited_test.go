package awaited

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/nix"
)

// memory is a store in memory that has verified some NARs, and counts how often it is closed.
type memory struct {
	*cachetest.Memory
	closed int
}

func (m *memory) Verified() (right, wrong int64) { return 3, 1 }

func (m *memory) Close() error {
	m.closed++
	return nil
}

// Once the store is there, the source is that.
func TestSource(t *testing.T) {
	cachetest.Run(t, func(t *testing.T) cachetest.Fixture {
		paths := []cachetest.Path{
			cachetest.NewPath(t, nix.DefaultStoreDir, "small", "snow"),
			cachetest.NewPath(t, nix.DefaultStoreDir, "large", strings.Repeat("snow", 50000)),
		}
		drv, err := nix.DefaultStoreDir.ParseBase(strings.Repeat("0", 32) + "-snow.drv")
		if err != nil {
			t.Fatal(err)
		}
		store := &memory{Memory: cachetest.NewMemory(paths...)}
		store.AddLog(drv, []byte("it snows\n"))
		s := newSource("memory", nix.DefaultStoreDir, func(context.Context) (Store, error) { return store, nil }, Options{})
		if !s.tick(t.Context()) {
			t.Fatal("the store is not there")
		}
		return cachetest.Fixture{
			Source: s,
			Paths:  paths,
			Logs:   map[nix.StorePath][]byte{drv: []byte("it snows\n")},
			Remove: func(_ *testing.T, path nix.StorePath) { store.Remove(path) },
		}
	})
}

// A cache of a source that is not there yet has nothing, remembers no miss, and has the paths as soon as they are there.
func TestAwaited(t *testing.T) {
	path := cachetest.NewPath(t, nix.DefaultStoreDir, "snow", "snow")
	store := &memory{Memory: cachetest.NewMemory(path)}
	why := fs.ErrNotExist
	var log bytes.Buffer
	s := newSource("local store", nix.DefaultStoreDir, func(context.Context) (Store, error) { return store, why },
		Options{Why: why, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	c, err := cache.New([]cache.Source{s}, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}

	if s.tick(t.Context()) || s.IsThere() || len(c.Sources()) != 0 {
		t.Error("it is there")
	}
	wantNothing(t, s, path.Info)
	if _, err := c.NARInfo(t.Context(), path.Info.Path.Hash()); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("a path before the store is there: %v", err)
	}
	if err := c.Check(t.Context()); err != nil {
		t.Errorf("check before the store is there: %v", err)
	}
	if right, wrong := c.Verified(); right+wrong != 0 {
		t.Errorf("%d were right and %d wrong before the store is there", right, wrong)
	}
	if log.Len() > 0 {
		t.Errorf("it logged what was known: %s", &log)
	}
	why = fs.ErrPermission
	s.tick(t.Context())
	s.tick(t.Context())
	if n := strings.Count(log.String(), "permission denied"); n != 1 {
		t.Errorf("a new reason was logged %d times:\n%s", n, &log)
	}

	why = nil
	if !s.tick(t.Context()) || s.Name() != "local store" || !strings.Contains(log.String(), "the store is there now") {
		t.Errorf("its name is %q, and it logged\n%s", s.Name(), &log)
	}
	if _, err := c.NARInfo(t.Context(), path.Info.Path.Hash()); err != nil {
		t.Errorf("a path after the store is there: %v", err)
	}
	if right, wrong := c.Verified(); right != 3 || wrong != 1 {
		t.Errorf("%d were right and %d wrong, want 3 and 1", right, wrong)
	}
	store.Fail(errors.New("broken"))
	if err := c.Check(t.Context()); err == nil {
		t.Error("check of a broken store passes")
	}
	if err := s.Close(); err != nil || store.closed != 1 {
		t.Errorf("the store was closed %d times, %v", store.closed, err)
	}
}

// wantNothing asks for one of everything.
func wantNothing(t *testing.T, s *Source, info *nix.PathInfo) {
	t.Helper()
	id := nix.RealisationID{DrvHash: nix.SHA256Sum(sha256.Sum256(nil)), Output: "out"}
	for what, ask := range map[string]func() error{
		"PathInfo":    func() error { _, err := s.PathInfo(t.Context(), info.Path.Hash()); return err },
		"Keep":        func() error { _, err := s.Keep(t.Context(), info.Path); return err },
		"OpenNAR":     func() error { _, err := s.OpenNAR(t.Context(), info); return err },
		"Listing":     func() error { _, err := s.Listing(t.Context(), info); return err },
		"OpenLog":     func() error { _, err := s.OpenLog(t.Context(), info.Path); return err },
		"Realisation": func() error { _, err := s.Realisation(t.Context(), id); return err },
		"BuildTrace":  func() error { _, err := s.BuildTrace(t.Context(), info.Path, "out"); return err },
	} {
		if err := ask(); !errors.Is(err, cache.ErrNotFound) {
			t.Errorf("%s before the store is there: %v, want ErrNotFound", what, err)
		}
	}
}

// It waits by itself, opens the store once, and closes it.
func TestNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memory{Memory: cachetest.NewMemory()}
		const tries = 3
		opened := 0
		s := New("local store", nix.DefaultStoreDir, func(context.Context) (Store, error) {
			if opened++; opened < tries {
				return nil, fs.ErrNotExist
			}
			return store, nil
		}, Options{})
		time.Sleep(10 * tries * interval) // on the clock of synctest
		synctest.Wait()
		if err := s.Close(); err != nil || opened != tries || store.closed != 1 {
			t.Errorf("opened %d times and closed %d times, %v", opened, store.closed, err)
		}
	})
}

// Closing ends the waiting, also while the store is being opened.
func TestCloseWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New("local store", nix.DefaultStoreDir, func(ctx context.Context) (Store, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}, Options{})
		synctest.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}
