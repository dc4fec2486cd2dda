package nar

import (
	"encoding/binary"
	"fmt"
	"syscall"
)

// filler makes bytes of a NAR in memory: the framing from the layout, the contents from the files of the tree.
type filler struct {
	r    *reading
	dst  []byte // still to be filled; its capacity has one byte more
	skip int64  // how many bytes of the NAR come before it

	rel    []byte // path below the tree of the file being read, ended by a zero byte
	relDir int32  // the directory that the first relLen bytes of rel name
	relLen int
}

// fill fills dst with the bytes of the NAR from off on. It may write to the byte behind dst, which must be there.
func (f *filler) fill(r *reading, dst []byte, off int64) error {
	i := r.find(off)
	f.r, f.dst, f.skip = r, dst, off-r.nodes[i].start
	f.relDir, f.relLen = 0, 0
	for ; len(f.dst) > 0; i++ {
		n := &r.nodes[i]
		f.head(n)
		if n.typ == TypeRegular {
			if err := f.contents(n); err != nil {
				return readError(r.tree, f.path(n), err)
			}
			put(f, zeros[:padding(n.size)])
		}
		f.tail(i, n)
	}
	return nil
}

// put fills in the next bytes of the NAR.
func put[T ~string | ~[]byte](f *filler, s T) {
	if f.skip > 0 {
		if int64(len(s)) <= f.skip {
			f.skip -= int64(len(s))
			return
		}
		s = s[f.skip:]
		f.skip = 0
	}
	f.dst = f.dst[copy(f.dst, s):]
}

func (f *filler) head(n *node) {
	if n.depth == 0 {
		put(f, wordMagic)
	} else {
		put(f, openEntry)
		f.string(f.r.name(n))
		put(f, wordNode)
	}
	switch {
	case n.typ == TypeDirectory:
		put(f, openDirectory)
	case n.typ == TypeSymlink:
		put(f, openSymlink)
		f.string(f.r.target(n))
	case n.exec:
		put(f, openExecutable)
		f.length(n.size)
	default:
		put(f, openRegular)
		f.length(n.size)
	}
}

func (f *filler) tail(i int, n *node) {
	ends := f.r.ends(i)
	for depth := int(n.depth); ends > 0; ends, depth = ends-1, depth-1 {
		if depth == 0 {
			put(f, wordClose)
		} else {
			put(f, closeEntry)
		}
	}
}

func (f *filler) string(s string) {
	f.length(int64(len(s)))
	put(f, s)
	put(f, zeros[:padding(int64(len(s)))])
}

func (f *filler) length(n int64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(n))
	put(f, b[:])
}

// contents fills in the contents of a regular file.
//
// The read itself shows whether the file is still as long as at the walk: it asks for one byte more
// than there should be.
func (f *filler) contents(n *node) error {
	if f.skip > 0 && f.skip >= n.size {
		f.skip -= n.size
		return nil
	}
	if len(f.dst) == 0 {
		return nil
	}
	off := f.skip
	want := int(min(int64(len(f.dst)), n.size-off))
	ask := want
	if off+int64(want) == n.size {
		ask++
	}
	file, err := f.r.tree.open(f.path(n))
	if err != nil {
		return err
	}
	got := 0
	for {
		m, err := file.ReadAt(f.dst[got:ask], off+int64(got))
		got += m
		if got >= want || m == 0 || err != nil {
			file.Close()
			if err != nil {
				return err
			}
			break
		}
	}
	if got != want {
		return ErrChanged
	}
	f.skip, f.dst = 0, f.dst[want:]
	return nil
}

// path returns the path of n below the tree, ended by a zero byte. It is valid until the next call.
func (f *filler) path(n *node) []byte {
	if n.parent != f.relDir {
		f.rel = f.r.appendPath(f.rel[:0], n.parent)
		f.relDir, f.relLen = n.parent, len(f.rel)
	}
	f.rel = append(append(f.rel[:f.relLen], f.r.name(n)...), 0)
	return f.rel
}

// appendPath appends the path below the root of the i-th node, a directory, with a slash after each name. That of the root is empty.
func (l *Layout) appendPath(dst []byte, i int32) []byte {
	var up [MaxDepth]int32
	depth := 0
	for ; i != 0; i = l.nodes[i].parent {
		up[depth] = i
		depth++
	}
	for depth--; depth >= 0; depth-- {
		dst = append(append(dst, l.name(&l.nodes[up[depth]])...), '/')
	}
	return dst
}

// readError says which file could not be read.
func readError(t *tree, rel []byte, err error) error {
	name := t.path
	if rel = rel[:len(rel)-1]; len(rel) > 0 {
		name += "/" + string(rel)
	}
	return fmt.Errorf("read %s: %w", name, changed(err))
}

// changed marks an error as ErrChanged if it says that the file is gone, or that something else is
// in its place.
func changed(err error) error {
	for _, errno := range []syscall.Errno{
		syscall.ENOENT, syscall.ENOTDIR,
		syscall.ELOOP,  // a symlink
		syscall.EISDIR, // a directory
		syscall.ENXIO,  // a socket
		syscall.ESPIPE, // a pipe
	} {
		if err == errno {
			return fmt.Errorf("%w: %w", ErrChanged, err)
		}
	}
	return err
}
