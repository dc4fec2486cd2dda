//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"firn/nix"
)

// Material is what the servers serve: a store, and the same closure as flat files.
type Material struct {
	Root    string // of the store, as in `nix --store ROOT`
	Plain   string // binary cache of flat files, NARs uncompressed
	Zstd    string // binary cache of flat files, NARs compressed by Nix with zstd
	Key     string // file of the secret key that signed both, and that firn signs with
	Closure []Path // sorted by path hash
	// Generations has this store, and one that differs in its path hashes. Empty of a store that was not made for this.
	Generations []generation
}

// quickPackages is how many packages the store of a quick run is made of, so that even the first takes less than a minute.
const quickPackages = 100

// prepare makes what is missing of the material. It is kept in dir for the next time.
// root is a store to use instead of one made of this machine's Debian packages; "": none.
// quick takes a part of the packages.
func prepare(ctx context.Context, dir, root string, quick bool, progress func(string, ...any)) (*Material, error) {
	what := []string{"--all"}
	var made []generation
	if root == "" {
		stores, err := generations(ctx, dir, quick, progress)
		if err != nil {
			return nil, err
		}
		made, root, what = stores, stores[0].root, []string{stores[0].what}
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	name, err := flatName(root)
	if err != nil {
		return nil, err
	}
	flat := filepath.Join(dir, name)
	if _, err := os.Stat(flat); err != nil {
		if err := makeFlat(ctx, dir, flat, root, what, progress); err != nil {
			return nil, err
		}
	}
	m := &Material{Generations: made, Root: root, Plain: filepath.Join(flat, "none"), Zstd: filepath.Join(flat, "zstd"), Key: filepath.Join(flat, "secret")}
	if m.Closure, err = readClosure(m.Plain); err != nil {
		return nil, err
	}
	return m, nil
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

// makeFlat writes both binary caches and their key to the new directory flat, which appears whole or not at all.
func makeFlat(ctx context.Context, dir, flat, root string, what []string, progress func(string, ...any)) error {
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
	for _, compression := range []string{"none", "zstd"} {
		progress("writing the closure as flat files, compression %s", compression)
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
		closure = append(closure, Path{Hash: info.Path.Hash(), NARHash: info.NARHash, NARSize: info.NARSize})
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

// need finds a program, or installs the Debian package that has it.
func need(ctx context.Context, found func() bool, pkg string, progress func(string, ...any)) error {
	if found() {
		return nil
	}
	progress("installing %s", pkg)
	for _, args := range [][]string{{"update", "-q"}, {"install", "-y", "-q", "--no-install-recommends", pkg}} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		// With RUNLEVEL=1 a package's script starts no service.
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1")
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args, " "), err, bytes.TrimSpace(text))
		}
	}
	if !found() {
		return fmt.Errorf("install %s: the program is still not there", pkg)
	}
	return nil
}

// needTools brings the programs that the shootout runs.
func needTools(ctx context.Context, progress func(string, ...any)) error {
	has := func(program string) func() bool {
		return func() bool { _, err := exec.LookPath(program); return err == nil }
	}
	if err := need(ctx, has("nix"), "nix-bin", progress); err != nil {
		return err
	}
	return need(ctx, has(nginxProgram()), "nginx-light", progress)
}
