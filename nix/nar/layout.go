package nar

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"sort"
	"strings"
	"unsafe"
)

// Layout is the plan of the NAR of one tree: it knows where everything is, and has no contents of files.
// It is immutable, safe for concurrent use, and takes 32 bytes and its name for each object of the tree.
type Layout struct {
	nodes []node // in the order of the NAR; the first is the root
	text  string // names and targets
	size  int64
}

// node is one file system object. In the NAR, it is
//
//	head: all framing up to the contents, a symlink's target included
//	contents of a regular file, and padding
//	tail: the ends of the node, and of each directory that ends with it
type node struct {
	start  int64  // offset in the NAR of the head
	size   int64  // bytes of a file's contents or a symlink's target
	text   uint32 // where in Layout.text the name begins; a symlink's target follows it
	parent int32  // index of the directory it lies in
	name   uint8  // length of the name
	depth  uint8
	typ    Type
	exec   bool
}

// NewLayout walks once through the tree at path and returns the layout of its NAR.
// A tree that no NAR can hold (a socket, a pipe or a device in it, more than [MaxDepth] levels) is an error.
// Symlinks are not followed.
func NewLayout(ctx context.Context, path string) (*Layout, error) {
	b := builder{root: path}
	if err := b.walk(ctx); err != nil {
		return nil, err
	}
	return b.layout(), nil
}

// Size returns the NAR size in bytes.
func (l *Layout) Size() int64 { return l.size }

// MemSize returns how many bytes of memory the layout occupies.
func (l *Layout) MemSize() int64 {
	return int64(unsafe.Sizeof(*l)) + int64(cap(l.nodes))*int64(unsafe.Sizeof(node{})) + int64(len(l.text))
}

// Listing returns the listing of the NAR, offsets included.
func (l *Layout) Listing() *Listing {
	entries := make([]Header, len(l.nodes))
	for i := range l.nodes {
		n := &l.nodes[i]
		h := Header{Type: n.typ}
		if i > 0 {
			h.Path = l.name(n)
			if n.parent > 0 {
				h.Path = entries[n.parent].Path + "/" + h.Path
			}
		}
		switch n.typ {
		case TypeRegular:
			h.Executable, h.Size, h.Offset = n.exec, n.size, n.contents()
		case TypeSymlink:
			h.Target = l.target(n)
		}
		entries[i] = h
	}
	return &Listing{Entries: entries}
}

func (l *Layout) name(n *node) string { return l.text[n.text:][:n.name] }

func (l *Layout) target(n *node) string { return l.text[n.text+uint32(n.name):][:n.size] }

// find returns the index of the node that holds the byte at off, which lies in the NAR.
func (l *Layout) find(off int64) int {
	return sort.Search(len(l.nodes), func(i int) bool { return l.nodes[i].start > off }) - 1
}

// ends returns how many nodes end with the i-th: itself, unless entries of it follow, and the directories it is the last of.
func (l *Layout) ends(i int) int {
	if i+1 == len(l.nodes) {
		return int(l.nodes[i].depth) + 1
	}
	return int(l.nodes[i].depth) - int(l.nodes[i+1].depth) + 1
}

// head returns the length of the framing before the contents.
func (n *node) head() int64 {
	var size int64
	if n.depth == 0 {
		size = int64(len(wordMagic))
	} else {
		size = int64(len(openEntry)) + 8 + int64(n.name) + padding(int64(n.name)) + int64(len(wordNode))
	}
	switch {
	case n.typ == TypeDirectory:
		size += int64(len(openDirectory))
	case n.typ == TypeSymlink:
		size += int64(len(openSymlink)) + 8 + n.size + padding(n.size)
	case n.exec:
		size += int64(len(openExecutable)) + 8
	default:
		size += int64(len(openRegular)) + 8
	}
	return size
}

// contents returns the offset of a regular file's contents in the NAR.
func (n *node) contents() int64 { return n.start + n.head() }

// tail returns the length of the framing that ends nodes, one after the other, the last of them at the given depth.
func tail(ends int, depth int) int64 {
	size := int64(ends) * int64(len(closeEntry))
	if depth == 0 && ends > 0 {
		size -= int64(len(closeEntry) - len(wordClose)) // the root is no entry
	}
	return size
}

// builder collects the nodes of a layout, in the order of the NAR.
type builder struct {
	root  string // where the tree lies
	nodes []node
	text  strings.Builder
}

// layout says where in the NAR each node stands.
func (b *builder) layout() *Layout {
	l := &Layout{nodes: slices.Clip(b.nodes), text: strings.Clone(b.text.String())}
	for i := range l.nodes {
		n := &l.nodes[i]
		n.start = l.size
		l.size += n.head()
		if n.typ == TypeRegular {
			l.size += n.size + padding(n.size)
		}
		ends := l.ends(i)
		l.size += tail(ends, int(n.depth)+1-ends)
	}
	return l
}

// errTooLarge: sizes and counts that the fields of a node do not hold, or that are no int64 in sum.
var errTooLarge = errors.New("tree is too large")

// add appends a node for the object that info describes.
func (b *builder) add(name string, info fs.FileInfo, parent, depth int, readlink func() (string, error)) error {
	if depth > MaxDepth {
		return fmt.Errorf("tree is deeper than %d levels", MaxDepth)
	}
	n := node{parent: int32(parent), depth: uint8(depth), name: uint8(len(name)), text: uint32(b.text.Len())}
	b.text.WriteString(name)
	switch mode := info.Mode(); {
	case mode.IsRegular():
		n.typ, n.size, n.exec = TypeRegular, info.Size(), mode&0o100 != 0
	case mode.IsDir():
		n.typ = TypeDirectory
	case mode.Type() == fs.ModeSymlink:
		target, err := readlink()
		if err != nil {
			return err
		}
		if msg := checkTarget(target, len(target)); msg != "" {
			return errors.New(msg)
		}
		n.typ, n.size = TypeSymlink, int64(len(target))
		b.text.WriteString(target)
	default:
		return fmt.Errorf("a NAR cannot hold a file of type %s", mode.Type())
	}
	if len(b.nodes) == math.MaxInt32 || int64(b.text.Len()) > math.MaxUint32 || n.size > math.MaxInt64>>24 {
		return errTooLarge
	}
	b.nodes = append(b.nodes, n)
	return nil
}

// level is a directory that the walk is in.
type level struct {
	dir   *os.Root
	path  string
	names []string // still to be visited
	node  int
}

// ctxEvery is how many objects are visited between looks at the context: a walk over them takes about a millisecond.
const ctxEvery = 256

// walk visits the tree in the order of its NAR.
// Every directory on the way is held open and everything is named relative to it, so that nothing outside the tree is visited
// even if the tree changes at the same time.
func (b *builder) walk(ctx context.Context) (err error) {
	info, err := os.Lstat(b.root)
	if err == nil {
		err = b.add("", info, 0, 0, func() (string, error) { return os.Readlink(b.root) })
	}
	if err != nil {
		return walkError(b.root, err)
	}
	if !info.IsDir() {
		return nil
	}
	var levels []level
	defer func() {
		for _, lv := range levels {
			lv.dir.Close()
		}
	}()
	enter := func(dir *os.Root, err error, path string, info fs.FileInfo) error {
		if err != nil {
			return err
		}
		levels = append(levels, level{dir: dir, path: path, node: len(b.nodes) - 1})
		lv := &levels[len(levels)-1]
		lv.names, err = readNames(dir, info)
		return err
	}
	dir, err := os.OpenRoot(b.root)
	if err := enter(dir, err, b.root, info); err != nil {
		return walkError(b.root, err)
	}
	for len(levels) > 0 {
		if len(b.nodes)%ctxEvery == 0 && ctx.Err() != nil {
			return walkError(b.root, context.Cause(ctx))
		}
		lv := &levels[len(levels)-1]
		if len(lv.names) == 0 {
			lv.dir.Close()
			levels = levels[:len(levels)-1]
			continue
		}
		name := lv.names[0]
		lv.names = lv.names[1:]
		info, err := lv.dir.Lstat(name)
		if err == nil {
			err = b.add(name, info, lv.node, len(levels), func() (string, error) { return lv.dir.Readlink(name) })
		}
		if err == nil && info.IsDir() {
			dir, openErr := lv.dir.OpenRoot(name)
			err = enter(dir, openErr, lv.path+"/"+name, info)
		}
		if err != nil {
			return walkError(lv.path+"/"+name, err)
		}
	}
	return nil
}

// readNames returns the sorted names of the entries of an open directory, which must be the one that info describes.
func readNames(dir *os.Root, info fs.FileInfo) ([]string, error) {
	f, err := dir.Open(".")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if opened, err := f.Stat(); err != nil {
		return nil, err
	} else if !os.SameFile(info, opened) {
		return nil, ErrChanged
	}
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if msg := checkName(name, len(name)); msg != "" {
			return nil, errors.New(msg)
		}
	}
	slices.Sort(names)
	return names, nil
}

// walkError says where the walk failed.
func walkError(path string, err error) error {
	return fmt.Errorf("walk %s: %w", path, cause(err))
}

// cause returns the error of the system without its path, which is only part of the whole path.
func cause(err error) error {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		return pathErr.Err
	}
	return err
}
