package cache

import (
	"cmp"
	"context"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"

	"firn/nix"
	"firn/nix/nar"
)

const (
	// maxGitTree bounds, in bytes, what is in memory of the directories of a NAR while its git hash is computed:
	// those that are not at their end, and their entries. Some 150,000 files in one directory have as much.
	maxGitTree = 16 << 20
	// gitEntryMemory is what an entry takes beside its text: that is rounded up, and lists grow faster than they are filled.
	gitEntryMemory = 64
	// maxGitHashes bounds the git hashes that are computed at once, of all caches.
	maxGitHashes = 4
)

var gitHashes = make(chan struct{}, maxGitHashes)

// Modes of git, as they stand in trees.
const (
	gitFile       = "100644"
	gitExecutable = "100755"
	gitSymlink    = "120000"
	gitDirectory  = "40000"
)

// gitHash returns the hash that git gives what a NAR is of: a blob for a file or a symlink, a tree for a directory.
// Nix does the same. Unlike git, it keeps empty directories, as empty trees; whether the root is executable it does not tell.
func gitHash(ctx context.Context, n NAR, a nix.HashAlgorithm) ([]byte, error) {
	select {
	case gitHashes <- struct{}{}:
		defer func() { <-gitHashes }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	var sum []byte
	err := readNAR(ctx, n, func(r *nar.Reader) error {
		g := gitHasher{algorithm: a}
		for {
			h, err := r.Next()
			if err == io.EOF {
				sum, err = g.end()
				return err
			}
			if err == nil {
				err = g.add(h, r)
			}
			if err != nil {
				return err
			}
		}
	})
	return sum, err
}

// gitHasher takes the objects of a NAR in their order.
type gitHasher struct {
	algorithm nix.HashAlgorithm
	open      []gitTree // the directories that the next object may be in, the root first
	root      []byte    // the hash of the root, once it is known
	held      int       // bytes of them, for maxGitTree
}

// A gitTree is a directory that is not at its end.
type gitTree struct {
	path    string
	entries []gitEntry
}

// A gitEntry is the text of an entry as it stands in the tree: mode, space, name, NUL, hash. It has no part of the path that it was made of.
type gitEntry string

// compare orders entries as git does: by their names, with a slash behind those of directories.
func (e gitEntry) compare(f gitEntry) int {
	a, aDir := e.name()
	b, bDir := f.name()
	n := min(len(a), len(b))
	if c := strings.Compare(a[:n], b[:n]); c != 0 {
		return c
	}
	return cmp.Compare(after(a, n, aDir), after(b, n, bDir))
}

func (e gitEntry) name() (name string, dir bool) {
	mode, rest, _ := strings.Cut(string(e), " ")
	name, _, _ = strings.Cut(rest, "\x00")
	return name, mode == gitDirectory
}

// after returns the byte that a name has at n, for the order: n is not beyond its end.
func after(name string, n int, dir bool) byte {
	switch {
	case n < len(name):
		return name[n]
	case dir:
		return '/'
	}
	return 0
}

// add takes the next object.
func (g *gitHasher) add(h *nar.Header, contents io.Reader) error {
	for len(g.open) > 0 && !within(h.Path, g.open[len(g.open)-1].path) {
		if err := g.close(); err != nil {
			return err
		}
	}
	switch h.Type {
	case nar.TypeDirectory:
		g.open = append(g.open, gitTree{path: h.Path})
		return g.hold(len(h.Path))
	case nar.TypeSymlink:
		return g.blob(h.Path, gitSymlink, int64(len(h.Target)), strings.NewReader(h.Target))
	}
	mode := gitFile
	if h.Executable {
		mode = gitExecutable
	}
	return g.blob(h.Path, mode, h.Size, contents)
}

// within reports whether a path is below a directory.
func within(path, dir string) bool {
	return dir == "" || strings.HasPrefix(path, dir) && len(path) > len(dir) && path[len(dir)] == '/'
}

func (g *gitHasher) blob(path, mode string, size int64, contents io.Reader) error {
	sum, err := g.object("blob", size)
	if err != nil {
		return err
	}
	if _, err := io.Copy(sum, contents); err != nil {
		return err
	}
	return g.put(path, mode, sum.Sum(nil))
}

// object returns the hash of an object, without its contents.
func (g *gitHasher) object(kind string, size int64) (hash.Hash, error) {
	sum, err := newHash(g.algorithm)
	if err == nil {
		fmt.Fprintf(sum, "%s %d\x00", kind, size)
	}
	return sum, err
}

// put adds an object to the directory that it is in.
func (g *gitHasher) put(path, mode string, sum []byte) error {
	if len(g.open) == 0 {
		g.root = sum
		return nil
	}
	name := path[strings.LastIndexByte(path, '/')+1:]
	e := gitEntry(mode + " " + name + "\x00" + string(sum))
	in := &g.open[len(g.open)-1]
	in.entries = append(in.entries, e)
	return g.hold(len(e) + gitEntryMemory)
}

// hold counts what is in memory.
func (g *gitHasher) hold(n int) error {
	if g.held += n; g.held > maxGitTree {
		return Refuse(ErrTooLarge, "CA: its directories take more than %d bytes while they are hashed as git does", maxGitTree)
	}
	return nil
}

// close ends the innermost directory.
func (g *gitHasher) close() error {
	last := len(g.open) - 1
	tree := g.open[last]
	g.open = g.open[:last]
	slices.SortFunc(tree.entries, gitEntry.compare)
	size := 0
	for _, e := range tree.entries {
		size += len(e)
	}
	g.held -= len(tree.path) + size + len(tree.entries)*gitEntryMemory
	sum, err := g.object("tree", int64(size))
	if err != nil {
		return err
	}
	for _, e := range tree.entries {
		io.WriteString(sum, string(e))
	}
	return g.put(tree.path, gitDirectory, sum.Sum(nil))
}

// end returns the hash of the root.
func (g *gitHasher) end() ([]byte, error) {
	for len(g.open) > 0 {
		if err := g.close(); err != nil {
			return nil, err
		}
	}
	return g.root, nil
}
