package sqlitex

import (
	"database/sql"
	"os"
	"path/filepath"
	"sync"
	"testing"

	_ "modernc.org/sqlite"
)

func TestHeader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=journal_mode(wal)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	exec := func(statement string) {
		t.Helper()
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	exec("create table t (n)")
	f, err := os.Open(path + "-shm")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h, err := Map(f)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[uint64]bool{}
	check := func() {
		t.Helper()
		v, ok := h.Version()
		if !ok || seen[v] {
			t.Errorf("version %d, %t: it was there before", v, ok)
		}
		seen[v] = true
		if again, _ := h.Version(); again != v {
			t.Errorf("version %d, then %d, though nothing changed", v, again)
		}
	}
	check()
	for range 3 {
		exec("insert into t values (1)")
		check()
		exec("pragma wal_checkpoint(truncate)")
		exec("insert into t values (2)")
		check()
	}

	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for ok := true; ok; _, ok = h.Version() {
			}
		})
	}
	h.Close()
	readers.Wait()
}

func TestShort(t *testing.T) {
	path := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(path, make([]byte, size-1), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := Map(f); err == nil {
		t.Error("a file without a header was mapped")
	}
}

func BenchmarkVersion(b *testing.B) {
	path := filepath.Join(b.TempDir(), "index")
	if err := os.WriteFile(path, make([]byte, 32<<10), 0o600); err != nil {
		b.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	h, err := Map(f)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		h.Version()
	}
}
