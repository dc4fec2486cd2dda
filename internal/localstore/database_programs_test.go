//go:build programs

package localstore

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"firn/internal/cache"
	"firn/internal/memo"
	"firn/nix"
)

// edit changes the database of the store as only tests do.
func (n *nixStore) edit(statements ...string) {
	n.t.Helper()
	db := n.sqlite("")
	defer db.Close()
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			n.t.Fatalf("%s: %v", s, err)
		}
	}
}

// Whatever a row has in its columns, it is a path info or an error.
func TestMalformedRows(t *testing.T) {
	n := newNix(t)
	path := n.add("file", "hello\n")
	row := `update ValidPaths set `
	tests := []struct {
		set string
		ok  bool
	}{
		{`narSize = null`, false},
		{`narSize = 0`, false},
		{`narSize = -1`, false},
		{`narSize = 'many'`, false},
		{`narSize = 1e300`, false},
		{`hash = 'sha256:00'`, false},
		{`hash = 'sha1:` + strings.Repeat("0", 40) + `'`, false},
		{`hash = x'00ff'`, false},
		{`registrationTime = 'once'`, false},
		{`ultimate = 'yes'`, false},
		{`path = path || '/../x'`, false},
		{`path = path || char(10)`, false},
		{`ultimate = null`, true},
		{`ultimate = 1`, true},
		{`deriver = 'unknown-deriver'`, true},
		{`deriver = x'00'`, true},
		{`sigs = ''`, true},
		{`sigs = 'no-colon key:!!! :'`, true},
		{`ca = 'nonsense'`, true},
	}
	s := n.open()
	for _, test := range tests {
		n.edit(`create temp table keep as select * from ValidPaths`, row+test.set)
		info, err := s.PathInfo(t.Context(), path.Hash())
		switch {
		case test.ok && err != nil:
			t.Errorf("%s: %v", test.set, err)
		case test.ok && (!info.Deriver.IsZero() || len(info.Signatures) != 0):
			t.Errorf("%s: deriver %v, signatures %v", test.set, info.Deriver, info.Signatures)
		case !test.ok && !errors.Is(err, cache.ErrNotFound):
			t.Errorf("%s: %v, %v, want ErrNotFound", test.set, info, err)
		}
		n.edit(`delete from ValidPaths`)
		n.run("nix-store", "--add", filepath.Join(n.dir, "src/file"))
	}
	// A reference that is no store path.
	n.edit(`insert into ValidPaths (path, hash, registrationTime) values ('/nowhere', '', 0)`,
		`insert into Refs select a.id, b.id from ValidPaths a, ValidPaths b where a.path = '`+path.String()+`' and b.path = '/nowhere'`)
	if _, err := s.PathInfo(t.Context(), path.Hash()); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("with a malformed reference: %v, want ErrNotFound", err)
	}
}

func TestLockedAndGone(t *testing.T) {
	n := newNix(t)
	path := n.add("file", "hello\n")
	s := n.open()

	// As when Nix converts the database: a connection that lets nobody else in has to be there first.
	s.mu.Lock()
	s.db.close()
	s.db = nil
	s.mu.Unlock()
	db := n.sqlite("?_pragma=locking_mode(exclusive)")
	if _, err := db.Exec(`begin exclusive; update ValidPaths set ultimate = 1; commit`); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PathInfo(t.Context(), path.Hash()); !errors.Is(err, cache.ErrUnavailable) {
		t.Errorf("locked: %v, want ErrUnavailable", err)
	}
	if err := s.Check(t.Context()); !errors.Is(err, cache.ErrUnavailable) {
		t.Errorf("Check while it is locked: %v, want ErrUnavailable", err)
	}
	if s.Version(t.Context()).Freshness != memo.Unknown {
		t.Error("it vouches for a version while the database is locked")
	}
	db.Close()
	s.forgetFailure()
	if _, err := s.PathInfo(t.Context(), path.Hash()); err != nil {
		t.Errorf("no longer locked: %v", err)
	}

	away := n.dbPath() + ".away"
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Rename(n.dbPath()+suffix, away+suffix); err != nil {
			t.Fatal(err)
		}
	}
	s.db.forgetIdentity()
	if _, err := s.PathInfo(t.Context(), path.Hash()); !errors.Is(err, cache.ErrUnavailable) {
		t.Errorf("gone: %v, want ErrUnavailable", err)
	}
	if err := s.Check(t.Context()); !errors.Is(err, cache.ErrUnavailable) {
		t.Errorf("Check while it is gone: %v, want ErrUnavailable", err)
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Rename(away+suffix, n.dbPath()+suffix); err != nil {
			t.Fatal(err)
		}
	}
	s.forgetFailure()
	if _, err := s.PathInfo(t.Context(), path.Hash()); err != nil {
		t.Errorf("back again: %v", err)
	}
}

// forgetFailure is as if the pause after a failure were over.
func (s *Store) forgetFailure() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = failure{}
}

// forgetIdentity is as if the interval between looks at the files were over.
func (d *database) forgetIdentity() { d.identified.Store(-int64(2 * identityInterval)) }

// A backup that is restored over the database has another content under the same ids.
func TestReplaced(t *testing.T) {
	n := newNix(t)
	first := n.add("first", "is in the backup")
	backup := n.dbPath() + ".backup"
	n.edit(`vacuum into '` + backup + `'`)
	second := n.add("second", "is not")

	s := n.open()
	if err := waitForFilter(s); err != nil {
		t.Fatal(err)
	}
	before := s.Version(t.Context())
	if _, err := s.PathInfo(t.Context(), second.Hash()); err != nil {
		t.Fatal(err)
	}
	n.edit(`pragma journal_mode`) // nobody else has it open
	setWAL(t, backup)
	if err := os.Rename(backup, n.dbPath()); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"-wal", "-shm"} {
		os.Remove(n.dbPath() + suffix)
	}
	s.db.forgetIdentity()
	if before.Hit(s.Version(t.Context())) {
		t.Error("the version is the same though the database was replaced")
	}
	if _, err := s.PathInfo(t.Context(), first.Hash()); err != nil {
		t.Errorf("a path of the backup: %v", err)
	}
	if _, err := s.PathInfo(t.Context(), second.Hash()); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("a path that is not in the backup: %v, want ErrNotFound", err)
	}
	third := n.add("third", "comes later")
	if _, err := s.PathInfo(t.Context(), third.Hash()); err != nil {
		t.Errorf("a path that came later: %v", err)
	}
}

// setWAL writes into the header of a database that it is in WAL mode, which a backup forgets.
func setWAL(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{2, 2}, 18); err != nil {
		t.Fatal(err)
	}
}

// The version changes with every commit, and with nothing else, whatever becomes of the WAL.
func TestVersion(t *testing.T) {
	n := newNix(t)
	path := n.add("file", "hello\n")
	s := n.open()
	if err := waitForFilter(s); err != nil {
		t.Fatal(err)
	}
	seen := map[uint64]string{}
	version := func() uint64 {
		s.mu.RLock()
		if s.db != nil {
			s.db.forgetIdentity()
		}
		s.mu.RUnlock()
		// A replaced file is opened again by whoever asks for a path next.
		if _, err := s.PathInfo(t.Context(), path.Hash()); err != nil {
			t.Fatal(err)
		}
		at := s.Version(t.Context())
		v, ok := at.Number, at.Freshness == memo.Current
		if !ok {
			t.Fatal("it does not vouch for its version")
		}
		return v
	}
	check := func(what string) {
		t.Helper()
		v := version()
		if was, ok := seen[v]; ok {
			t.Errorf("the version after %s is the one after %s", what, was)
		}
		seen[v] = what
		if again := version(); again != v {
			t.Errorf("the version after %s changed though nothing did", what)
		}
	}
	check("opening")
	for i := range 5 {
		n.run("nix-store", "--add", n.write("src/more-"+strconv.Itoa(i), "more "+strconv.Itoa(i)))
		check("adding a path")
	}
	db := n.sqlite("")
	defer db.Close()
	touch := func() {
		if _, err := db.Exec(`update ValidPaths set registrationTime = registrationTime + 1`); err != nil {
			t.Fatal(err)
		}
	}
	for _, mode := range []string{"passive", "full", "restart", "truncate"} {
		touch()
		check("a change")
		if _, err := db.Exec(`pragma wal_checkpoint(` + mode + `)`); err != nil {
			t.Fatal(err)
		}
		before := version()
		touch()
		if version() == before {
			t.Errorf("the version stayed the same over a change after a %s checkpoint", mode)
		}
		check("a change after a checkpoint")
	}
	n.run("nix-store", "--gc")
	if _, err := s.PathInfo(t.Context(), path.Hash()); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("a path that was collected: %v, want ErrNotFound", err)
	}
}

// A version that stays the same across a look-up vouches for it, also while Nix is writing.
func TestVersionWhileNixWrites(t *testing.T) {
	n := newNix(t)
	s := n.open()
	if err := waitForFilter(s); err != nil {
		t.Fatal(err)
	}
	path := n.path(n.run("nix-store", "--add", n.write("src/flips", "flips")))
	n.run("nix-store", "--delete", path.String())

	done := make(chan error, 1)
	go func() {
		var err error
		for range 12 {
			_, err1 := n.try("nix-store", "--add", filepath.Join(n.dir, "src/flips"))
			_, err2 := n.try("nix-store", "--delete", path.String())
			err = errors.Join(err, err1, err2)
		}
		done <- err
	}()
	type answer struct{ found bool }
	answers := map[memo.Version]answer{}
	flips := 0
	for {
		before := s.Version(t.Context())
		_, err := s.PathInfo(t.Context(), path.Hash())
		if err != nil && !errors.Is(err, cache.ErrNotFound) {
			t.Fatal(err)
		}
		if before.Hit(s.Version(t.Context())) {
			got := answer{err == nil}
			if was, known := answers[before]; known && was != got {
				t.Fatalf("two answers at version %v", before)
			} else if !known {
				answers[before] = got
				flips++
			}
		}
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			if flips < 5 {
				t.Errorf("only %d versions were seen", flips)
			}
			return
		default:
		}
	}
}

// No statement reads a whole table, but the one that fills the filter in order of its ids.
func TestQueryPlans(t *testing.T) {
	n := newNix(t)
	n.edit(realisationTables...)
	db := n.sqlite("?mode=ro")
	defer db.Close()
	for name, test := range map[string]struct {
		query string
		args  []any
		want  []string
	}{
		"info": {infoQuery, []any{"a", "b"}, []string{
			"SEARCH found USING INDEX sqlite_autoindex_ValidPaths_1 (path>? AND path<?)",
			"CORRELATED SCALAR SUBQUERY 1",
			"SEARCH Refs USING COVERING INDEX sqlite_autoindex_Refs_1 (referrer=?)",
			"SEARCH target USING INTEGER PRIMARY KEY (rowid=?)",
		}},
		"filter": {filterQuery, []any{0, 1, 1}, []string{"SEARCH ValidPaths USING INTEGER PRIMARY KEY (rowid>?)"}},
		"realisation": {realisationQuery, []any{"a", "b"}, []string{
			"SEARCH r USING INDEX IndexRealisations (drvPath=? AND outputName=?)",
			"SEARCH v USING INTEGER PRIMARY KEY (rowid=?)",
		}},
		"dependencies": {dependenciesQuery, []any{1}, []string{
			"SEARCH f USING INDEX IndexRealisationsRefs (referrer=?)",
			"SEARCH r USING INTEGER PRIMARY KEY (rowid=?)",
			"SEARCH v USING INTEGER PRIMARY KEY (rowid=?)",
		}},
		"build trace": {buildTraceQuery, []any{"a", "b", "c"}, []string{
			"SEARCH BuildTraceV3 USING INDEX IndexBuildTraceV3 (drvPath=? AND outputName=?)",
		}},
	} {
		rows, err := db.Query("explain query plan "+test.query, test.args...)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for rows.Next() {
			var id, parent, unused int
			var detail string
			if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
				t.Fatal(err)
			}
			got = append(got, detail)
		}
		if strings.Join(got, "\n") != strings.Join(test.want, "\n") {
			t.Errorf("plan of %s is\n%s\nwant\n%s", name, strings.Join(got, "\n"), strings.Join(test.want, "\n"))
		}
	}
}

// Of a database in a journal mode other than WAL the daemon is asked where there is one.
func TestWithoutWAL(t *testing.T) {
	n := newNix(t, "use-sqlite-wal = false")
	path := n.add("file", "hello\n")
	stop := n.startDaemon()
	s := n.open()
	info, err := s.PathInfo(t.Context(), path.Hash())
	if err != nil {
		t.Fatal(err)
	}
	if info.Path != path || info.NARSize != 120 {
		t.Errorf("got %v of %d bytes, want %v of 120", info.Path, info.NARSize, path)
	}
	if _, err := s.PathInfo(t.Context(), nix.PathHash{1}); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("an absent path: %v, want ErrNotFound", err)
	}
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if s.Version(t.Context()).Freshness != memo.Unknown {
		t.Error("it vouches for a version of a database that it does not read")
	}
	if _, err := s.Realisation(t.Context(), nix.RealisationID{}); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("Realisation: %v, want ErrNotFound", err)
	}
	stop()
	s.daemon.close() // the connections
	s.forgetFailure()
	if info, err := s.PathInfo(t.Context(), path.Hash()); err != nil || info.Path != path {
		t.Errorf("the daemon has gone: %v, %v, want what the database says", info, err)
	}
	if _, err := s.PathInfo(t.Context(), nix.PathHash{1}); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("an absent path, without the daemon: %v, want ErrNotFound", err)
	}
}

// The path of the database is a URI to SQLite.
func TestAwkwardPath(t *testing.T) {
	n := newNix(t)
	root := filepath.Join(n.dir, "100% of ROOT?mode=rw#+&x=y z")
	path := n.run("nix-store", "--store", "local?root="+strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23", "+", "%2b", "&", "%26", " ", "%20").Replace(root),
		"--add", n.write("src/file", "hello\n"))
	s := openStore(t, Options{Root: root})
	if _, err := s.PathInfo(t.Context(), parsePath(t, nix.DefaultStoreDir, path).Hash()); err != nil {
		t.Error(err)
	}
}
