package localstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
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

// memoryStore is a store in memory that has verified some NARs, and counts how often it is closed.
type memoryStore struct {
	*cachetest.Memory
	closed int
}

func (m *memoryStore) Verified() (right, wrong int64) { return 3, 1 }

func (m *memoryStore) AddNAR(context.Context, *nix.PathInfo, io.Reader) error {
	return errors.ErrUnsupported
}

func (m *memoryStore) AddSignatures(context.Context, nix.StorePath, []nix.Signature) error {
	return errors.ErrUnsupported
}

func (m *memoryStore) Close() error {
	m.closed++
	return nil
}

// Once the store is there, the source is that.
func TestAwaitedSource(t *testing.T) {
	cachetest.Run(t, func(t *testing.T) cachetest.Fixture {
		paths := []cachetest.Path{
			cachetest.NewPath(t, nix.DefaultStoreDir, "small", "snow"),
			cachetest.NewPath(t, nix.DefaultStoreDir, "large", strings.Repeat("snow", 50000)),
		}
		drv, err := nix.DefaultStoreDir.ParseBase(strings.Repeat("0", 32) + "-snow.drv")
		if err != nil {
			t.Fatal(err)
		}
		store := &memoryStore{Memory: cachetest.NewMemory(paths...)}
		store.AddLog(drv, []byte("it snows\n"))
		s := await(Options{}, nil, func(context.Context) (openable, error) { return store, nil })
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
	store := &memoryStore{Memory: cachetest.NewMemory(path)}
	why := fs.ErrNotExist
	var log bytes.Buffer
	s := await(Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}, why, func(context.Context) (openable, error) { return store, why })
	c, err := cache.New([]cache.Source{s}, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}

	present, err := c.Presence(t.Context())
	if s.tick(t.Context()) || err != nil || len(present.Sources) != 0 || !present.Missing {
		t.Errorf("it is there: %v, %v", present, err)
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
func wantNothing(t *testing.T, s *AwaitedStore, info *nix.PathInfo) {
	t.Helper()
	id := nix.RealisationID{DrvHash: nix.SHA256Sum(sha256.Sum256(nil)), Output: "out"}
	for what, ask := range map[string]func() error{
		"PathInfo":    func() error { _, err := s.PathInfo(t.Context(), info.Path.Hash()); return err },
		"Keep":        func() error { _, err := s.Keep(t.Context(), info.Path); return err },
		"OpenNAR":     func() error { _, err := s.OpenNAR(t.Context(), info); return err },
		"Listing":     func() error { return s.WriteListing(t.Context(), info, io.Discard) },
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
func TestAwaitStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memoryStore{Memory: cachetest.NewMemory()}
		const tries = 3
		opened := 0
		s := await(Options{}, nil, func(context.Context) (openable, error) {
			if opened++; opened < tries {
				return nil, fs.ErrNotExist
			}
			return store, nil
		})
		s.start()
		time.Sleep(10 * tries * awaitInterval) // on the clock of synctest
		synctest.Wait()
		if err := s.Close(); err != nil || opened != tries || store.closed != 1 {
			t.Errorf("opened %d times and closed %d times, %v", opened, store.closed, err)
		}
	})
}

// Closing ends the waiting, also while the store is being opened.
func TestCloseWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := await(Options{}, nil, func(ctx context.Context) (openable, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		s.start()
		synctest.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}
