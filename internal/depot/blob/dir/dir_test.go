package dir

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"firn/internal/depot/blob"
	"firn/internal/depot/blob/blobtest"
)

func TestStore(t *testing.T) {
	blobtest.Test(t, func(t testing.TB) blob.Store {
		s, err := Open(t.TempDir(), Options{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

func TestMemory(t *testing.T) {
	blobtest.Test(t, func(testing.TB) blob.Store { return blobtest.NewMemory() })
}

// Whatever step fails, nothing is there after Abort, and without it nothing that Sweep does not find.
func TestFaults(t *testing.T) {
	for _, abort := range []bool{true, false} {
		for failing := 0; ; failing++ {
			path := t.TempDir()
			steps, failed := 0, ""
			broken := errors.New("broken")
			s, err := Open(path, Options{Fault: func(step string) error {
				steps++
				if steps-1 == failing {
					failed = step
					return broken
				}
				return nil
			}})
			if err != nil {
				t.Fatal(err)
			}
			err = write(t, s, abort)
			if failed == "" {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
			if !errors.Is(err, broken) {
				t.Errorf("%s fails: error %v", failed, err)
			}
			if err := s.Sweep(t.Context(), time.Now().Add(time.Hour)); err != nil {
				t.Error(err)
			}
			files, err := filepath.Glob(filepath.Join(path, "*", "*"))
			if err != nil {
				t.Fatal(err)
			}
			writing, err := os.ReadDir(filepath.Join(path, writingName))
			if err != nil {
				t.Fatal(err)
			}
			// Where the last sync fails it is there whole, for those who do not abort.
			if len(writing) > 0 || len(files) > 0 && (abort || failed != "sync directory") {
				t.Errorf("%s fails, abort %v: left %v, %v", failed, abort, files, writing)
			}
		}
	}
}

func write(t *testing.T, s *Store, abort bool) error {
	w, err := s.Create(t.Context(), "blob")
	if err != nil {
		return err
	}
	if abort {
		defer w.Abort()
	}
	for range 2 {
		if _, err := w.Write([]byte("some bytes")); err != nil {
			return err
		}
	}
	return w.Commit(t.Context())
}
