// Package debstore makes a Nix store out of the Debian packages of this machine,
// for tests and measurements on real files: some 700 store paths, 40,000 files and 2.5 GB on a
// machine for development, with the references that the packages' dependencies are.
//
//	store, err := debstore.Make(ctx, dir, debstore.Options{})
//	// firn serve --store store.Root
//
// A package's store path holds its files below the path: /usr/bin/git is <store path>/usr/bin/git.
// As in a store that was built, references are in the files: every ELF file has an RPATH-like
// text of them in its middle, scripts name their interpreters by store path, and
// nix-support/propagated-build-inputs lists all.
//
// It is made by real Nix, which sets modes and times, computes the NAR hashes and writes the database.
// That needs root, Nix and dpkg.
package debstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"firn/nix"
)

// format is part of a store's directory name. It changes with whatever Make writes, so that
// a store made by an older version is never taken for one of this.
const format = 1

// DefaultLargeFile is the size in bytes of the largest awkward path.
const DefaultLargeFile = 600_000_000

// Options say which store to make.
type Options struct {
	// Generation tells stores of the same packages apart: the trees are the same, all path hashes
	// and the references inside files differ, as after a mass rebuild. The first is 0.
	Generation int
	// NewVersions gives one package in so many another version, whose name is longer: as after a
	// mass rebuild in which some dependencies were updated. The files that refer to such a package
	// get longer. 0: no package.
	NewVersions int
	// LargeFile is the size in bytes of the awkward path that is one large file.
	// 0: DefaultLargeFile.
	LargeFile int64
	// Packages takes no more than about as many: the first by name, with all that they depend on. 0: all.
	Packages int
}

// A Store is a store that Make made. Its store directory is nix.DefaultStoreDir.
type Store struct {
	// Root is the directory of the store, as in `nix --store ROOT`: the files are in ROOT/nix/store.
	Root string
	// Everything refers to all packages: it is the root of their closure.
	Everything nix.StorePath
	// Packages has the path of each package, sorted.
	Packages []nix.StorePath
	// Awkward has the paths with what is rare in packages, sorted. Nothing refers to them.
	Awkward []nix.StorePath
}

// Path returns where the files of a store path are.
func (s *Store) Path(p nix.StorePath) string { return filepath.Join(s.Root, p.String()) }

// DefaultDir is the directory where tests and measurements keep what takes long to make:
// $FIRN_E2E_CACHE, or firn-e2e in the user's cache directory.
func DefaultDir() (string, error) {
	if dir := os.Getenv("FIRN_E2E_CACHE"); dir != "" {
		return dir, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a cache directory: %w", err)
	}
	return filepath.Join(cache, "firn-e2e"), nil
}

// Make returns the store of opts in dir. The first call makes it, in about a minute; later ones find it,
// whatever packages came or went meanwhile. It appears there whole or not at all.
// Processes that call at the same time make it once.
func Make(ctx context.Context, dir string, opts Options) (*Store, error) {
	if opts.LargeFile == 0 {
		opts.LargeFile = DefaultLargeFile
	}
	name := fmt.Sprintf("debstore-%d-generation-%d-large-%d", format, opts.Generation, opts.LargeFile)
	if opts.NewVersions > 0 {
		name += fmt.Sprintf("-versions-%d", opts.NewVersions)
	}
	if opts.Packages > 0 {
		name += fmt.Sprintf("-packages-%d", opts.Packages)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make store of Debian packages: %w", err)
	}
	unlock, err := lock(filepath.Join(dir, name+".lock"))
	if err != nil {
		return nil, fmt.Errorf("lock store of Debian packages: %w", err)
	}
	defer unlock()

	root := filepath.Join(dir, name)
	switch s, err := load(root); {
	case err == nil:
		return s, nil
	case !errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("open store of Debian packages: %w", err)
	}
	// Also removes what a killed process left.
	work := filepath.Join(dir, "."+name)
	if err := os.RemoveAll(work); err != nil {
		return nil, fmt.Errorf("make store of Debian packages: %w", err)
	}
	if err := build(ctx, work, opts); err != nil {
		return nil, errors.Join(fmt.Errorf("make store of Debian packages: %w", err), os.RemoveAll(work))
	}
	if err := os.Rename(work, root); err != nil {
		return nil, fmt.Errorf("make store of Debian packages: %w", err)
	}
	return load(root)
}

// lock waits for an exclusive lock on the named file, which it makes where it is missing.
func lock(name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// build makes the store in root.
func build(ctx context.Context, root string, opts Options) error {
	packages, err := installed(ctx)
	if err != nil {
		return err
	}
	if opts.Packages > 0 {
		packages = some(packages, opts.Packages)
	}
	paths := packagePaths(packages, opts)
	everything := everythingPath(paths, opts.Generation)
	awkward := awkwardPaths(opts)

	if err := os.MkdirAll(filepath.Join(root, string(nix.DefaultStoreDir)), 0o755); err != nil {
		return err
	}
	all := slices.Concat(paths, awkward, []*storePath{everything})
	if err := writeAll(ctx, root, all); err != nil {
		return err
	}
	if err := register(ctx, root, all); err != nil {
		return err
	}
	return save(root, index{
		Everything: everything.path.String(),
		Packages:   texts(paths),
		Awkward:    texts(awkward),
	})
}

// index is the file beside the store that says what is in it.
type index struct {
	Everything string   `json:"everything"`
	Packages   []string `json:"packages"`
	Awkward    []string `json:"awkward"`
}

const indexName = "debstore.json"

func save(root string, ix index) error {
	text, err := json.MarshalIndent(ix, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, indexName), append(text, '\n'), 0o644)
}

func load(root string) (*Store, error) {
	text, err := os.ReadFile(filepath.Join(root, indexName))
	if err != nil {
		return nil, err
	}
	var ix index
	if err := json.Unmarshal(text, &ix); err != nil {
		return nil, fmt.Errorf("parse %s: %w", filepath.Join(root, indexName), err)
	}
	s := &Store{Root: root}
	if s.Everything, err = nix.DefaultStoreDir.ParsePath(ix.Everything); err != nil {
		return nil, err
	}
	if s.Packages, err = parsePaths(ix.Packages); err != nil {
		return nil, err
	}
	if s.Awkward, err = parsePaths(ix.Awkward); err != nil {
		return nil, err
	}
	return s, nil
}

func parsePaths(texts []string) ([]nix.StorePath, error) {
	paths := make([]nix.StorePath, 0, len(texts))
	for _, text := range texts {
		p, err := nix.DefaultStoreDir.ParsePath(text)
		if err != nil {
			return nil, err
		}
		paths = append(paths, p)
	}
	return nix.SortPaths(paths), nil
}

func texts(paths []*storePath) []string {
	texts := make([]string, 0, len(paths))
	for _, p := range paths {
		texts = append(texts, p.path.String())
	}
	return texts
}
