package debstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"firn/nix"
)

// storePath is a path to make: what it refers to, and how to write its files.
type storePath struct {
	path  nix.StorePath
	refs  []nix.StorePath // in the order that files have them in, whatever their hashes; may have path itself
	write func(at string) error
}

// newStorePath names a path after its seed, which says all that its contents depend on.
func newStorePath(name, seed string, generation int) *storePath {
	sum := sha256.Sum256(fmt.Appendf(nil, "firn debstore %d\n%d\n%s\n%s", format, generation, name, seed))
	base := nix.PathHash(sum[:20]).String() + "-" + name
	path, err := nix.DefaultStoreDir.ParseBase(base)
	if err != nil {
		panic(err) // storeName and the constants of this package give valid names
	}
	return &storePath{path: path}
}

// newVersion is what the name of a package with another version ends with.
const newVersion = ".1"

// OldName returns the name that a package has in a store without new versions.
func OldName(p nix.StorePath) string { return strings.TrimSuffix(p.Name(), newVersion) }

// storePathName returns the name of a package's store path.
func storePathName(p *debianPackage, opts Options) string {
	name := storeName(p.name + "-" + p.version)
	if sum := sha256.Sum256([]byte(p.name)); opts.NewVersions > 0 && int(sum[0])%opts.NewVersions == 0 {
		name += newVersion
	}
	return name
}

// packagePaths returns the store path of each package.
func packagePaths(packages []*debianPackage, opts Options) []*storePath {
	of := map[*debianPackage]*storePath{}
	owner := map[string]*storePath{} // of files, by name
	paths := make([]*storePath, 0, len(packages))
	for _, p := range packages {
		sp := newStorePath(storePathName(p, opts), p.arch, opts.Generation)
		of[p] = sp
		paths = append(paths, sp)
		for _, file := range p.files {
			owner[file] = sp
		}
	}
	for _, p := range packages {
		sp := of[p]
		for _, d := range p.depends {
			sp.refs = append(sp.refs, of[d].path)
		}
		sp.refs = append(sp.refs, sp.path)
		sp.write = func(at string) error {
			t := tree{path: sp.path, refs: sp.refs, owner: owner}
			return t.copy(p.files, at)
		}
	}
	return paths
}

// everythingPath returns a path that refers to all paths.
func everythingPath(paths []*storePath, generation int) *storePath {
	sp := newStorePath("everything", "", generation)
	for _, p := range paths {
		sp.refs = append(sp.refs, p.path)
	}
	sp.write = func(at string) error {
		if err := os.Mkdir(at, 0o755); err != nil {
			return err
		}
		for _, ref := range sp.refs {
			if err := os.Symlink(ref.String(), filepath.Join(at, ref.Base())); err != nil {
				return err
			}
		}
		return nil
	}
	return sp
}

// storeName makes s fit as the name of a store path.
func storeName(s string) string {
	const maxName = 211
	s = strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', strings.ContainsRune("+-._?=", r):
			return r
		}
		return '-' // "~" and ":" in versions
	}, s)
	return s[:min(len(s), maxName)]
}

// writers is how many paths are written at once: one reads while the other writes.
const writers = 2

// writeAll writes the files of all paths into the store at root.
func writeAll(ctx context.Context, root string, paths []*storePath) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	for _, p := range paths {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := p.write(filepath.Join(root, p.path.String())); err != nil {
				return fmt.Errorf("write %s: %w", p.path.Base(), err)
			}
			return nil
		})
	}
	return g.Wait()
}

// tree copies the files of one package and puts references into them.
type tree struct {
	path  nix.StorePath
	refs  []nix.StorePath
	owner map[string]*storePath // of files, by name
}

// copy copies files below the directory at, which it makes.
func (t *tree) copy(files []string, at string) error {
	if err := os.Mkdir(at, 0o755); err != nil {
		return err
	}
	for _, file := range files {
		to := filepath.Join(at, file)
		err := os.MkdirAll(filepath.Dir(to), 0o755)
		if err == nil {
			err = t.copyFile(file, to)
		}
		// A file may go while packages are installed or removed at the same time.
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	var list strings.Builder
	for _, ref := range t.refs {
		if ref != t.path {
			list.WriteString(ref.String() + "\n")
		}
	}
	support := filepath.Join(at, "nix-support")
	if err := os.MkdirAll(support, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(support, "propagated-build-inputs"), []byte(list.String()), 0o644)
}

func (t *tree) copyFile(from, to string) error {
	info, err := os.Lstat(from)
	if err != nil {
		return err
	}
	if info.Mode().Type() == os.ModeSymlink {
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	}
	// Packages' files are at most some hundred MB.
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, t.withRefs(text), info.Mode().Perm()&0o111|0o644)
}

// withRefs returns the contents of a file with references in them, as a build would have put them there.
// What it returns for another generation differs in the path hashes only.
func (t *tree) withRefs(text []byte) []byte {
	switch {
	case strings.HasPrefix(string(text[:min(4, len(text))]), "\x7fELF"):
		var rpath []byte
		for _, ref := range t.refs {
			rpath = append(rpath, ref.String()+"/usr/lib:"...)
		}
		return slices.Insert(text, len(text)/2, rpath...)
	case strings.HasPrefix(string(text[:min(2, len(text))]), "#!"):
		line, rest, _ := strings.Cut(string(text[2:]), "\n")
		interpreter, args, _ := strings.Cut(strings.TrimSpace(line), " ")
		if ref := t.ownerOf(interpreter); !ref.IsZero() {
			return []byte("#!" + ref.String() + interpreter + " " + args + "\n" + rest)
		}
	}
	return text
}

// ownerOf returns the path that a file of this machine is in, if t refers to it.
func (t *tree) ownerOf(file string) nix.StorePath {
	for _, name := range []string{file, "/usr" + file, strings.TrimPrefix(file, "/usr")} {
		if sp := t.owner[name]; sp != nil && slices.Contains(t.refs, sp.path) {
			return sp.path
		}
	}
	return nix.StorePath{}
}
