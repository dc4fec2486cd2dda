package nar

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Writer writes a NAR, one file system object after the other: a header, then the contents where it is that of a regular file.
// The objects come in the order of the NAR: the root first, a directory right before what lies in it,
// and the entries of a directory by the bytes of their names. It refuses what a [Reader] would refuse.
// After an error, every call returns it again.
type Writer struct {
	w    *bufio.Writer
	err  error
	any  bool   // there is a root
	last string // path of the last object
	leaf bool   // the last object is no directory, and has not been ended
	dirs int    // how many directories are open: those on the way to the last object
	left int64  // bytes to come of the contents of the last object
	pad  int64  // bytes of padding behind them
}

var errClosed = errors.New("write NAR: it has been closed")

// NewWriter returns a Writer to w.
func NewWriter(w io.Writer) *Writer {
	return &Writer{w: bufio.NewWriterSize(w, 32<<10)}
}

// WriteHeader begins the next object. Fields of h that are not of its type, and its offset, are not looked at.
func (w *Writer) WriteHeader(h *Header) error {
	if w.err == nil {
		if err := w.header(h); err != nil {
			w.err = fmt.Errorf("write NAR: entry %q: %w", h.Path, err)
		}
	}
	return w.err
}

// Write writes contents of the current object, which must be a regular file that is not complete by then.
func (w *Writer) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	if int64(len(p)) > w.left {
		w.err = fmt.Errorf("write NAR: entry %q: contents are longer than its header says", w.last)
		return 0, w.err
	}
	n, err := w.w.Write(p)
	w.left -= int64(n)
	w.err = err
	return n, err
}

// Close ends the NAR and writes what has been held back of it. It does not close the underlying writer.
func (w *Writer) Close() error {
	if w.err != nil {
		return w.err
	}
	switch err := w.end(0); {
	case err != nil:
		w.err = fmt.Errorf("write NAR: entry %q: %w", w.last, err)
	case !w.any:
		w.err = errors.New("write NAR: there is no root")
	default:
		if err := w.w.Flush(); err != nil {
			w.err = err
			break
		}
		w.err = errClosed
		return nil
	}
	return w.err
}

func (w *Writer) header(h *Header) error {
	if !w.any {
		if h.Path != "" {
			return errors.New("it comes before the root")
		}
		w.w.WriteString(wordMagic)
	} else if err := w.entry(h.Path); err != nil {
		return err
	}
	switch h.Type {
	case TypeDirectory:
		w.w.WriteString(openDirectory)
		w.dirs++
	case TypeSymlink:
		if msg := checkTarget(h.Target, len(h.Target)); msg != "" {
			return errors.New(msg)
		}
		w.w.WriteString(openSymlink)
		w.string(h.Target)
	case TypeRegular:
		if h.Size < 0 {
			return fmt.Errorf("size is %d", h.Size)
		}
		if h.Executable {
			w.w.WriteString(openExecutable)
		} else {
			w.w.WriteString(openRegular)
		}
		w.length(h.Size)
		w.left, w.pad = h.Size, padding(h.Size)
	default:
		return fmt.Errorf("type is %s", h.Type)
	}
	w.leaf = h.Type != TypeDirectory
	w.any, w.last = true, h.Path
	return nil
}

// entry ends what has to end before the object at path, and begins its entry.
func (w *Writer) entry(path string) error {
	dir, name := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, name = path[:i], path[i+1:]
	}
	if msg := checkName(name, len(name)); msg != "" {
		return errors.New(msg)
	}
	depth := strings.Count(path, "/") + 1
	if depth > MaxDepth {
		return fmt.Errorf("tree is deeper than %d levels", MaxDepth)
	}
	below, ok := w.last, true // the last object, relative to dir
	if dir != "" {
		below, ok = strings.CutPrefix(w.last, dir)
		if ok && below != "" {
			below, ok = strings.CutPrefix(below, "/")
		}
	}
	if !ok || depth > w.dirs {
		return errors.New("its directory is not open")
	}
	if before, _, _ := strings.Cut(below, "/"); name <= before {
		return fmt.Errorf("it comes after %q", before)
	}
	if err := w.end(depth); err != nil {
		return err
	}
	w.w.WriteString(openEntry)
	w.string(name)
	w.w.WriteString(wordNode)
	return nil
}

// end ends the last object, and open directories until no more than the given number are left.
func (w *Writer) end(dirs int) error {
	if w.left > 0 {
		return fmt.Errorf("contents are %d bytes shorter than its header says", w.left)
	}
	if w.leaf {
		w.w.WriteString(zeros[:w.pad])
		w.endNode()
		w.leaf, w.pad = false, 0
	}
	for w.dirs > dirs {
		w.dirs--
		w.endNode()
	}
	return nil
}

// endNode ends a node and the entry that it is, if it is not the root.
func (w *Writer) endNode() {
	if w.dirs == 0 {
		w.w.WriteString(wordClose)
	} else {
		w.w.WriteString(closeEntry)
	}
}

func (w *Writer) string(s string) {
	w.length(int64(len(s)))
	w.w.WriteString(s)
	w.w.WriteString(zeros[:padding(int64(len(s)))])
}

func (w *Writer) length(n int64) {
	w.w.Write(binary.LittleEndian.AppendUint64(w.w.AvailableBuffer(), uint64(n)))
}
