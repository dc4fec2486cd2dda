package sqlite

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"firn/internal/catalog"
	"firn/internal/depot/index/indextest"
	"firn/internal/memo"
	"firn/internal/testing/seed"
	"firn/nix"
)

// childVariable makes the test binary a child that does something else: see children.
const childVariable = "FIRN_CATALOG_CHILD"

// children are what a child may do with the catalog whose file is its argument, and with words that it prints.
var children = map[string]func(context.Context, string) error{
	"push":  pushUntilKilled,
	"open":  openAndClose,
	"limit": hitLimit,
}

func TestMain(m *testing.M) {
	if do := children[os.Getenv(childVariable)]; do != nil {
		if err := do(context.Background(), os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child prepares a child that inherits standard error.
func child(t testing.TB, what, path string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, path)
	cmd.Env = append(os.Environ(), childVariable+"="+what)
	cmd.Stderr = os.Stderr
	return cmd
}

func openAt(t testing.TB, path string, opts Options) *Catalog {
	t.Helper()
	c, err := Open(t.Context(), path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// New is asked where there is no catalog: no file, an empty one, or one that was copied without its WAL. Its error ends Open, and one that is there is not asked for.
func TestNew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	lost := errors.New("lost")
	refuse := Options{New: func() error { return lost }}
	if _, err := Open(t.Context(), path, refuse); !errors.Is(err, lost) {
		t.Errorf("without a file: %v, want %v", err, lost)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file was made: %v", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), path, refuse); !errors.Is(err, lost) {
		t.Errorf("with an empty file: %v, want %v", err, lost)
	}

	c := openAt(t, path, Options{})
	if _, err := addCache(t.Context(), c, "team"); err != nil {
		t.Fatal(err)
	}
	openAt(t, path, refuse)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	alone := filepath.Join(t.TempDir(), "catalog.db")
	if err := os.WriteFile(alone, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), alone, refuse); !errors.Is(err, lost) {
		t.Errorf("without its WAL: %v, want %v", err, lost)
	}
}

// The last to close takes the WAL into the file: who copies that alone, of a server that has ended, has everything.
func TestCloseLeavesOneFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	c, err := Open(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := addCache(t.Context(), c, "team"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.AllCaches(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	found, err := filepath.Glob(path + "*")
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found[0] != path {
		t.Errorf("there are %q, want %s alone", found, path)
	}
}

func addCache(ctx context.Context, c *Catalog, name string) (catalog.CacheID, error) {
	r := &catalog.Cache{Name: name, StoreDir: nix.DefaultStoreDir, Sources: []string{catalog.SourceDepot}, Created: time.Now()}
	err := c.AddCache(ctx, r)
	return r.ID, err
}

// push adds and publishes what is called name, and has its digest for all hashes.
func push(ctx context.Context, c *Catalog, cache catalog.CacheID, name string) error {
	n, p := indextest.Sample(name, cache)
	id, _, err := c.AddNAR(ctx, n)
	if err != nil {
		return err
	}
	p.NAR = id
	_, _, err = c.Publish(ctx, cache, p, nil, indextest.Unchecked())
	return err
}

// pushUntilKilled prints the name of whatever is published.
func pushUntilKilled(ctx context.Context, path string) error {
	c, err := Open(ctx, path, Options{})
	if err != nil {
		return err
	}
	caches, err := c.AllCaches(ctx)
	if err != nil {
		return err
	}
	var failed sync.Once
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			for j := 0; ; j++ {
				name := fmt.Sprintf("p%d-%d-%d", os.Getpid(), i, j)
				if e := push(ctx, c, caches[0].ID, name); e != nil {
					failed.Do(func() { err = e })
					return
				}
				fmt.Println(name) // one write
				if j%16 == 15 {
					if _, _, e := c.Sweep(ctx, time.Now().Add(time.Hour), 4); e != nil {
						failed.Do(func() { err = e })
						return
					}
				}
			}
		})
	}
	group.Wait()
	return err
}

func TestKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	c, err := Open(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	cache, err := addCache(t.Context(), c, "main")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	random := seed.Rand(seed.Of(t), 0)
	acknowledged := 0
	for range 30 {
		names := pushAndKill(t, path, 1+random.IntN(120), time.Duration(random.Int64N(int64(5*time.Millisecond))))
		acknowledged += len(names)
		c, err := Open(t.Context(), path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			n, p := indextest.Sample(name, cache)
			if _, err := c.Path(t.Context(), cache, p.Info.Path.Hash()); err != nil {
				t.Errorf("acknowledged, but: %v", err)
			}
			if got, err := c.NAR(t.Context(), n.Hash); err != nil || len(got.Packs) != 1 {
				t.Errorf("NAR of what was acknowledged: %+v, %v", got, err)
			}
		}
		checkFile(t, c)
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d paths acknowledged", acknowledged)
}

// pushAndKill starts a child, kills it some time after it has printed a number of names, and returns all names that it printed.
func pushAndKill(t *testing.T, path string, after int, wait time.Duration) (names []string) {
	t.Helper()
	cmd := child(t, "push", path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if err != nil { // what has no line feed was not acknowledged
			break
		}
		names = append(names, strings.TrimSuffix(line, "\n"))
		if len(names) == after {
			time.AfterFunc(wait, func() { _ = cmd.Process.Kill() })
		}
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child ended by itself: %v", err)
	}
	return names
}

// checkFile, which may be called while cleaning up, has SQLite check its file, and looks for records that lack another.
func checkFile(t testing.TB, c *Catalog) {
	t.Helper()
	for _, query := range []string{"PRAGMA integrity_check", "PRAGMA foreign_key_check",
		"SELECT 'no listing for NAR ' || id FROM nars WHERE listing IS NULL",
		"SELECT 'lost listing ' || id FROM listings WHERE id NOT IN (SELECT listing FROM nars)",
		"SELECT 'no recipe for NAR ' || id FROM nars WHERE id NOT IN (SELECT nar FROM recipes)",
		"SELECT 'lost pack ' || name FROM packs WHERE id NOT IN (SELECT pack FROM nar_packs) AND id NOT IN (SELECT pack FROM loose_packs)",
		"SELECT 'lost NAR ' || id FROM nars WHERE id NOT IN (SELECT nar FROM paths) AND id NOT IN (SELECT nar FROM uploads) AND id NOT IN (SELECT nar FROM loose_nars)",
	} {
		rows, err := c.reads.QueryContext(context.WithoutCancel(t.Context()), query)
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			var text any
			if err := rows.Scan(&text); err != nil {
				t.Fatal(err)
			}
			if text != "ok" {
				t.Errorf("%s: %v", query, text)
			}
		}
		if err := rows.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func openAndClose(ctx context.Context, path string) error {
	c, err := Open(ctx, path, Options{})
	if err != nil {
		return err
	}
	if _, err := addCache(ctx, c, fmt.Sprint("c", os.Getpid())); err != nil {
		return err
	}
	return c.Close()
}

// Several processes make and open the same file at once.
func TestOpenAtOnce(t *testing.T) {
	for range 3 {
		path := filepath.Join(t.TempDir(), "catalog.db")
		var children []*exec.Cmd
		for range 6 {
			cmd := child(t, "open", path)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			children = append(children, cmd)
		}
		for _, cmd := range children {
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		}
		all, err := openAt(t, path, Options{}).AllCaches(t.Context())
		if err != nil || len(all) != 6 {
			t.Errorf("%d caches, %v", len(all), err)
		}
	}
}

// A process sees what another does.
func TestOtherProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	c := openAt(t, path, Options{})
	before := c.Version(t.Context())
	if before.Freshness != memo.Current {
		t.Error("no version")
	}
	if out, err := child(t, "open", path).Output(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if after := c.Version(t.Context()); before.Hit(after) || after.Freshness != memo.Current {
		t.Errorf("version %v after another process has written", after)
	}
	all, err := c.AllCaches(t.Context())
	if err != nil || len(all) != 1 {
		t.Errorf("%d caches, %v", len(all), err)
	}
	if _, err := addCache(t.Context(), c, "mine"); err != nil {
		t.Error(err)
	}
}

// hitLimit writes until files may not grow, and goes on when they may.
func hitLimit(ctx context.Context, path string) error {
	signal.Ignore(syscall.SIGXFSZ)
	c, err := Open(ctx, path, Options{})
	if err != nil {
		return err
	}
	cache, err := addCache(ctx, c, "main")
	if err != nil {
		return err
	}
	if err := push(ctx, c, cache, "first"); err != nil {
		return err
	}
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		return err
	}
	limit := old
	for round := range 3 {
		info, err := os.Stat(path + "-wal")
		if err != nil {
			return err
		}
		limit.Cur = uint64(info.Size() + 100_000)
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
			return err
		}
		var good []string
		for i := 0; err == nil; i++ {
			name := fmt.Sprintf("p%d-%d", round, i)
			if err = push(ctx, c, cache, name); err == nil {
				good = append(good, name)
			}
		}
		fmt.Println(round, len(good), err)
		if _, err := c.AllCaches(ctx); err != nil {
			return fmt.Errorf("read after a write failed: %w", err)
		}
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
			return err
		}
		if err := push(ctx, c, cache, fmt.Sprint("after", round)); err != nil {
			return fmt.Errorf("write after a write failed: %w", err)
		}
		for _, name := range append(good, "first", fmt.Sprint("after", round)) {
			_, p := indextest.Sample(name, cache)
			if _, err := c.Path(ctx, cache, p.Info.Path.Hash()); err != nil {
				return err
			}
		}
	}
	return c.Close()
}

// The system refuses to write to the file, and does so no more.
func TestWriteErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	out, err := child(t, "limit", path).Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if strings.Count(string(out), catalog.ErrUnavailable.Error()) != 3 {
		t.Errorf("errors:\n%s", out)
	}
	checkFile(t, openAt(t, path, Options{}))
}
