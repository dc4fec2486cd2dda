//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"

	"firn/internal/testing/debstore"
	"firn/nix"
)

// Material is what the servers serve: a store, and the same closure as flat files.
type Material struct {
	generation
	Key string // file of the secret key that signed the flat files, and that firn signs with
	// Again is a store that differs in its path hashes, as after a mass rebuild; nil of a store that was not made for this.
	Again *generation
}

// A generation is a store, and its closure as binary caches of flat files.
type generation struct {
	Root    string // of the store, as in `nix --store ROOT`
	Plain   string // NARs uncompressed
	Zstd    string // NARs compressed by Nix with zstd; "": not made
	Closure []Path // sorted by path hash
}

// quickPackages is how many packages the store of a quick run is made of, so that even the first takes less than a minute.
const quickPackages = 100

// prepare makes what is missing of the material. It is kept in dir for the next time.
// root is a store to use instead of one made of this machine's Debian packages; "": none.
// quick takes a part of the packages.
func prepare(ctx context.Context, dir, root string, quick bool, progress func(string, ...any)) (*Material, error) {
	m := &Material{}
	if root != "" {
		root, err := filepath.Abs(root)
		if err != nil {
			return nil, err
		}
		m.Root = root
		err = m.flatten(ctx, dir, []string{"--all"}, true, progress)
		m.Key = filepath.Join(filepath.Dir(m.Plain), "secret")
		return m, err
	}
	stores, err := makeStores(ctx, dir, quick, progress)
	if err != nil {
		return nil, err
	}
	m.Root, m.Again = stores[0].Root, &generation{Root: stores[1].Root}
	group, groupCtx := errgroup.WithContext(ctx) // Nix compresses on all cores, but reads the store on one
	group.Go(func() error { return m.flatten(groupCtx, dir, []string{stores[0].Everything.String()}, true, progress) })
	group.Go(func() error {
		return m.Again.flatten(groupCtx, dir, []string{stores[1].Everything.String()}, false, progress)
	})
	err = group.Wait()
	m.Key = filepath.Join(filepath.Dir(m.Plain), "secret")
	return m, err
}

// makeStores makes, or finds, two generations of a store. Both are made anew if they are not of the same packages,
// as when some were upgraded between the first and the second.
func makeStores(ctx context.Context, cache string, quick bool, progress func(string, ...any)) (stores [2]*debstore.Store, err error) {
	var of debstore.Options
	if quick {
		of = debstore.Options{Packages: quickPackages, LargeFile: 1 << 20}
	}
	progress("making two generations of a store of this machine's Debian packages, or finding them in %s", cache)
	for again := false; ; again = true {
		group, groupCtx := errgroup.WithContext(ctx)
		for i := range stores {
			of := of
			of.Generation = i
			group.Go(func() (err error) {
				stores[i], err = debstore.Make(groupCtx, cache, of)
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return stores, err
		}
		if slices.Equal(packageNames(stores[0]), packageNames(stores[1])) {
			return stores, nil
		}
		if again {
			return stores, errors.New("packages of this machine change while stores are made of them")
		}
		for _, s := range stores {
			if err := os.RemoveAll(s.Root); err != nil {
				return stores, err
			}
		}
	}
}

func packageNames(s *debstore.Store) []string {
	var names []string
	for _, p := range s.Packages {
		names = append(names, p.Name())
	}
	slices.Sort(names)
	return names
}

// flatten makes the flat files of a generation in dir, or finds them there.
func (g *generation) flatten(ctx context.Context, dir string, what []string, compressed bool, progress func(string, ...any)) error {
	name, err := flatName(g.Root)
	if err != nil {
		return err
	}
	flat := filepath.Join(dir, name)
	g.Plain = filepath.Join(flat, "none")
	compressions := []string{"none"}
	if compressed {
		g.Zstd = filepath.Join(flat, "zstd")
		compressions = append(compressions, "zstd")
	}
	if _, err := os.Stat(flat); err != nil {
		if err := makeFlat(ctx, dir, flat, g.Root, what, compressions, progress); err != nil {
			return err
		}
	}
	g.Closure, err = readClosure(g.Plain)
	return err
}

// flatName names the flat files of a store after the store paths in it.
func flatName(root string) (string, error) {
	entries, err := os.ReadDir(filepath.Join(root, string(nix.DefaultStoreDir)))
	if err != nil {
		return "", fmt.Errorf("read store: %w", err)
	}
	sum := sha256.New()
	for _, e := range entries {
		fmt.Fprintln(sum, e.Name())
	}
	return fmt.Sprintf("shootout-%x", sum.Sum(nil)[:8]), nil
}

// makeFlat writes binary caches and their key to the new directory flat, which appears whole or not at all.
func makeFlat(ctx context.Context, dir, flat, root string, what, compressions []string, progress func(string, ...any)) error {
	work, err := os.MkdirTemp(dir, ".shootout-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	secret, err := nix.GenerateKey("shootout-1")
	if err != nil {
		return err
	}
	key := filepath.Join(work, "secret")
	if err := os.WriteFile(key, []byte(secret.Reveal()), 0o600); err != nil {
		return err
	}
	for _, compression := range compressions {
		progress("writing %s as flat files, compression %s", filepath.Base(root), compression)
		to := url.URL{Scheme: "file", Path: filepath.Join(work, compression), RawQuery: url.Values{
			"compression":          {compression},
			"parallel-compression": {"true"},
			"secret-key":           {key},
		}.Encode()}
		args := append([]string{"--extra-experimental-features", "nix-command", "copy", "--from", root, "--to", to.String()}, what...)
		if text, err := exec.CommandContext(ctx, "nix", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("nix copy to flat files: %w\n%s", err, bytes.TrimSpace(text))
		}
	}
	return os.Rename(work, flat)
}

// readClosure reads what Nix wrote of every path of a binary cache of flat files.
func readClosure(flat string) ([]Path, error) {
	files, err := filepath.Glob(filepath.Join(flat, "*.narinfo"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("read closure: no narinfo in %s", flat)
	}
	slices.Sort(files)
	var closure []Path
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read closure: %w", err)
		}
		info, err := nix.ParseNARInfo(nix.DefaultStoreDir, text)
		if err != nil {
			return nil, fmt.Errorf("read closure: %s: %w", file, err)
		}
		closure = append(closure, Path{Path: info.Path, NARHash: info.NARHash, NARSize: info.NARSize, References: info.References})
	}
	return closure, nil
}

// part is the first paths of a closure, larger ones left out, up to a sum of NAR sizes: enough to see whether anything is wrong.
func part(closure []Path) []Path {
	const sum, most = 256 << 20, 32 << 20 // bytes
	var picked []Path
	left := int64(sum)
	for _, p := range closure {
		if p.NARSize <= most && p.NARSize <= left {
			picked = append(picked, p)
			left -= p.NARSize
		}
	}
	return picked
}
