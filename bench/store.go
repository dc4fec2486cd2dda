//go:build linux

package main

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"firn/internal/testing/debstore"
	"firn/nix"
)

// A storedPath is what Nix knows of a store path.
type storedPath struct {
	nix.StorePath
	narHash nix.Hash
	narSize int64
}

// A generation is a store of Debian packages.
type generation struct {
	*debstore.Store
	closure []storedPath // all packages and a path that refers to them, sorted by path hash
}

// material is what is served and pushed.
type material struct {
	first    generation
	rebuilt  generation    // of the same packages: all path hashes differ, and the references inside files
	versions generation    // as rebuilt, and every eighth package has another version, so that references have another length
	pushed   generation    // of some packages with all that they depend on
	atOnce   [2]generation // the first and the rebuilt one of fewer packages
	flat     string        // the first generation as binary caches of files that Nix wrote: the directories plain and zstd
	key      string        // file of the secret key that signed these
}

// prepare makes what is missing of the material. It is kept in the cache directory for the next
// time.
func (b *bench) prepare(ctx context.Context) (*material, error) {
	const largeFile = 1 << 20 // in a path that nothing refers to; by default it has 600 MB
	all, some, few := 0, 200, 100
	if b.opts.Quick {
		all, some, few = 15, 5, 5
	}
	m := &material{}
	b.progress("making stores of this machine's Debian packages, or finding them in %s", b.opts.Cache)
	group, groupCtx := errgroup.WithContext(ctx)
	for g, of := range map[*generation]debstore.Options{
		&m.first:     {Packages: all},
		&m.rebuilt:   {Packages: all, Generation: 1},
		&m.versions:  {Packages: all, Generation: 1, NewVersions: 8},
		&m.pushed:    {Packages: some, LargeFile: largeFile},
		&m.atOnce[0]: {Packages: few, LargeFile: largeFile},
		&m.atOnce[1]: {Packages: few, LargeFile: largeFile, Generation: 1},
	} {
		if b.opts.Quick {
			of.LargeFile = largeFile
		}
		group.Go(func() (err error) {
			if g.Store, err = debstore.Make(groupCtx, b.opts.Cache, of); err == nil {
				g.closure, err = readClosure(groupCtx, g.Store)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	if !samePackages(m.first.Store, m.rebuilt.Store) || !samePackages(m.first.Store, m.versions.Store) {
		b.progress("packages were upgraded after the first store was made: all are made again")
		for _, g := range []generation{m.first, m.rebuilt, m.versions} {
			os.RemoveAll(g.Root)
		}
		return b.prepare(ctx)
	}
	hash := sha256.New()
	for _, p := range m.first.closure {
		fmt.Fprintln(hash, p.StorePath)
	}
	var err error
	m.flat, err = b.once(fmt.Sprintf("bench-%x", hash.Sum(nil)[:8]), func(work string) error { return b.flatten(ctx, m.first, work) })
	m.key = filepath.Join(m.flat, "secret")
	return m, err
}

func samePackages(first, other *debstore.Store) bool {
	names := make(map[string]bool)
	for _, p := range first.Packages {
		names[p.Name()] = true
	}
	return len(first.Packages) == len(other.Packages) && !slices.ContainsFunc(other.Packages, func(p nix.StorePath) bool {
		return !names[p.Name()] && !names[debstore.OldName(p)]
	})
}

// flatten writes a generation as binary caches of files, with a key that signs them.
func (b *bench) flatten(ctx context.Context, g generation, work string) error {
	secret, err := nix.GenerateKey("bench-1")
	if err != nil {
		return err
	}
	key := filepath.Join(work, "secret")
	if err := os.WriteFile(key, []byte(secret.Reveal()), 0o600); err != nil {
		return err
	}
	for dir, compression := range map[string]string{"plain": "none", "zstd": "zstd"} {
		b.progress("writing the store as files, compression %s", compression)
		to := url.URL{Scheme: "file", Path: filepath.Join(work, dir), RawQuery: url.Values{
			"compression": {compression}, "parallel-compression": {"true"}, "secret-key": {key},
		}.Encode()}
		if _, err := b.nix(ctx, nil, "copy", "--from", g.Root, "--to", to.String(), g.Everything.String()); err != nil {
			return err
		}
	}
	return nil
}

// once makes a directory in the cache directory, or finds it there. It appears whole or not at all.
func (b *bench) once(name string, make func(work string) error) (string, error) {
	dir := filepath.Join(b.opts.Cache, name)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	b.progress("making %s", name)
	work, err := os.MkdirTemp(b.opts.Cache, ".bench-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	if err := make(work); err != nil {
		return "", fmt.Errorf("make %s: %w", name, err)
	}
	return dir, os.Rename(work, dir)
}

// nix runs a command of Nix that remembers nothing of earlier ones, and returns how long it took.
func (b *bench) nix(ctx context.Context, env []string, args ...string) (time.Duration, error) {
	home, err := os.MkdirTemp(b.work, "home-")
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	env = append([]string{"env", "HOME=" + home, "XDG_CACHE_HOME=" + home}, env...)
	err = runIn(ctx, home, append(append(env, "nix", "--extra-experimental-features", "nix-command"), args...)...)
	return time.Since(begin), err
}

// readClosure reads from Nix's database what it knows of the packages of a store, and of the path
// that refers to them.
func readClosure(ctx context.Context, s *debstore.Store) (closure []storedPath, err error) {
	wanted := map[nix.StorePath]bool{s.Everything: true}
	for _, p := range s.Packages {
		wanted[p] = true
	}
	err = withDatabase(databaseOf(s.Root), "mode=ro", func(db *sql.DB) error {
		rows, err := db.QueryContext(ctx, "SELECT path, hash, narSize FROM ValidPaths ORDER BY path")
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var path, hash string
			var p storedPath
			if err := rows.Scan(&path, &hash, &p.narSize); err != nil {
				return err
			}
			if p.StorePath, err = nix.DefaultStoreDir.ParsePath(path); err != nil {
				return err
			}
			if !wanted[p.StorePath] {
				continue
			}
			if p.narHash, err = nix.ParseHash(hash); err != nil {
				return err
			}
			closure = append(closure, p)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("read the database of %s: %w", s.Root, err)
	}
	return closure, nil
}

func databaseOf(root string) string {
	return filepath.Join(root, "nix", "var", "nix", "db", "db.sqlite")
}

func withDatabase(file, query string, use func(*sql.DB) error) error {
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: file, RawQuery: query}).String())
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	return use(db)
}

// describe says how much a generation is.
func (g generation) describe() string {
	var sum int64
	for _, p := range g.closure {
		sum += p.narSize
	}
	return fmt.Sprintf("%d store paths (%d MiB of NARs)", len(g.closure), sum>>20)
}
