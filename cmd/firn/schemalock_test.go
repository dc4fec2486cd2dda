package main

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/pressly/goose/v3"
)

const migrationsDir = "../../internal/catalog/sqlite/migrations"

// catalogVersion opens the catalog of a state directory, makes it if there is none, and brings it up to the version before the newest one if older is set.
// It returns the version that it has then, the one before the newest, and the newest.
func catalogVersion(t *testing.T, state string, older bool) (has, before, newest int64) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(state, depotDir), depotMode); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", filepath.Join(state, depotDir, catalogName))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	p, err := goose.NewProvider(goose.DialectSQLite3, db, os.DirFS(migrationsDir))
	if err != nil {
		t.Fatal(err)
	}
	sources := p.ListSources()
	before, newest = sources[len(sources)-2].Version, sources[len(sources)-1].Version
	if older {
		if _, err := p.UpTo(t.Context(), before); err != nil {
			t.Fatal(err)
		}
	}
	if has, err = p.GetDBVersion(t.Context()); err != nil {
		t.Fatal(err)
	}
	return has, before, newest
}

// TestOlderCatalogInUse: under a server of an older firn a command changes nothing, and says what to do; a newer server waits until the older one has ended.
func TestOlderCatalogInUse(t *testing.T) {
	t.Parallel()
	state := filepath.Join(t.TempDir(), "state")
	catalogVersion(t, state, true)
	// The older server, of which only the lock counts here.
	dir, err := os.Open(filepath.Join(state, depotDir))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_SH); err != nil {
		t.Fatal(err)
	}

	t.Run("commands", func(t *testing.T) { // all at once, as each waits for a moment
		for _, args := range [][]string{{"token", "list"}, {"token", "create", "ci", "--push", "main"}, {"verify"}} {
			t.Run(strings.Join(args, " "), func(t *testing.T) {
				t.Parallel()
				a := &admin{T: t, state: state}
				said, code := a.fails(args...)
				if code != exitFailure || !strings.Contains(said, "restart that with this firn") || strings.Count(said, "\n") != 1 {
					t.Errorf("exit code %d, %s", code, said)
				}
			})
		}
	})
	if has, before, _ := catalogVersion(t, state, false); has != before {
		t.Errorf("the catalog has version %d, want %d", has, before)
	}

	log := filepath.Join(t.TempDir(), "log")
	started := make(chan *testServer)
	go func() {
		started <- startServer(t, environment(t), "--state", state, "--store", "off", "--listen", "127.0.0.1:0", "--log-file", log)
	}()
	waitFor(t, log, func(text string) bool { return strings.Contains(text, "waiting for the end of another server") })
	if err := dir.Close(); err != nil {
		t.Fatal(err)
	}
	<-started
	if has, _, newest := catalogVersion(t, state, false); has != newest {
		t.Errorf("the catalog has version %d, want %d", has, newest)
	}
	a := &admin{T: t, state: state}
	a.mustRun("token", "list")
}

// TestServerClaims: a server has the lock for as long as it runs, and others may run beside it.
func TestServerClaims(t *testing.T) {
	a := newAdmin(t)
	startServer(t, environment(t), "--state", a.state, "--store", "off", "--listen", "127.0.0.1:0")
	dir, err := os.Open(filepath.Join(a.state, depotDir))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Errorf("error %v, want %v", err, syscall.EWOULDBLOCK)
	}
}

// TestOlderCatalog: without a server a command brings the catalog up to date, and so do several at once.
func TestOlderCatalog(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	catalogVersion(t, state, true)
	a := &admin{T: t, state: state}
	done := make(chan error)
	const commands = 4
	for range commands {
		cmd := a.command("cache", "list")
		go func() { done <- cmd.Run() }()
	}
	server := make(chan *testServer)
	go func() {
		server <- startServer(t, environment(t), "--state", state, "--store", "off", "--listen", "127.0.0.1:0")
	}()
	for range commands {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	<-server
	if has, _, newest := catalogVersion(t, state, false); has != newest {
		t.Errorf("the catalog has version %d, want %d", has, newest)
	}
}
