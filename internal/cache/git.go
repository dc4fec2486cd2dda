package cache

import (
	"context"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"

	"firn/nix"
	"firn/nix/nar"
)

// maxGitTree bounds, in bytes, what is in memory of the directories of a NAR while its git hash is computed:
// the entries of those that are not at their end. Some 300,000 files in one directory have as much.
const maxGitTree = 16 << 20

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
	held      int       // bytes of entries
}

// A gitTree is a directory that is not at its end.
type gitTree struct {
	path    string
	entries []gitEntry
}

type gitEntry struct {
	order string // the name, with a slash behind that of a directory: git sorts by that
	text  string // as it stands in the tree
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
		return nil
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
	e := gitEntry{order: name, text: mode + " " + name + "\x00" + string(sum)}
	if mode == gitDirectory {
		e.order += "/"
	}
	if g.held += len(e.text); g.held > maxGitTree {
		return Refuse(ErrTooLarge, "CA: it has directories of more than %d bytes as git keeps them", maxGitTree)
	}
	in := &g.open[len(g.open)-1]
	in.entries = append(in.entries, e)
	return nil
}

// close ends the innermost directory.
func (g *gitHasher) close() error {
	last := len(g.open) - 1
	tree := g.open[last]
	g.open = g.open[:last]
	slices.SortFunc(tree.entries, func(a, b gitEntry) int { return strings.Compare(a.order, b.order) })
	size := 0
	for _, e := range tree.entries {
		size += len(e.text)
	}
	g.held -= size
	sum, err := g.object("tree", int64(size))
	if err != nil {
		return err
	}
	for _, e := range tree.entries {
		io.WriteString(sum, e.text)
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
