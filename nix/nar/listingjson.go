package nar

import (
	"io"
	"iter"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	// listingPart is how many bytes of a listing are written at once.
	listingPart = 32 << 10
	// maxReplaced bounds the bytes of paths that are remembered because they are not UTF-8.
	maxReplaced = 4 << 20
)

// AppendJSON appends the JSON form to dst, see [WriteListing].
func (l *Listing) AppendJSON(dst []byte) []byte {
	e := listingEncoder{buf: dst}
	_ = e.encode(l.All()) // which has no error, and neither has writing nowhere
	return e.buf
}

// WriteListing writes the JSON form of a listing, with every field that Nix 2.35 writes:
//
//	{"version":1,"root":{"type":"directory","entries":{
//		"hello":{"type":"regular","size":6,"executable":false,"narOffset":400},
//		"link":{"type":"symlink","target":"hello"}}}}
//
// entries are the objects in the order of the NAR. It goes through them up to three times, has only some of them in memory,
// and fails with the error that it gets from them, or from w.
//
// JSON is UTF-8, and names and targets are bytes: each byte that is not UTF-8 becomes U+FFFD.
// An entry that would get the name of another one in its directory by that is left out, with all that lies in it,
// and so are such entries where their paths have more than 4 MiB in all.
func WriteListing(w io.Writer, entries iter.Seq2[*Header, error]) error {
	e := listingEncoder{w: w, buf: make([]byte, 0, listingPart)}
	err := e.encode(entries)
	if err == nil {
		_, err = w.Write(e.buf)
	}
	return err
}

type listingEncoder struct {
	w     io.Writer // nil: all stays in buf
	buf   []byte
	depth int  // how many directories are open
	inner bool // the directory that was opened last has an entry
}

func (e *listingEncoder) encode(entries iter.Seq2[*Header, error]) error {
	skip, err := clashes(entries)
	if err != nil {
		return err
	}
	e.buf = append(e.buf, `{"version":1,"root":`...)
	for h, err := range entries {
		if err != nil {
			return err
		}
		if skip(h.Path) {
			continue
		}
		e.add(h)
		if e.w != nil && len(e.buf) >= listingPart {
			if _, err := e.w.Write(e.buf); err != nil {
				return err
			}
			e.buf = e.buf[:0]
		}
	}
	e.close(0)
	e.buf = append(e.buf, '}')
	return nil
}

// close closes the directories that are open, but for depth of them.
func (e *listingEncoder) close(depth int) {
	for ; e.depth > depth; e.depth-- {
		e.buf = append(e.buf, "}}"...)
		e.inner = true
	}
}

func (e *listingEncoder) add(h *Header) {
	if h.Path != "" {
		e.close(strings.Count(h.Path, "/") + 1)
		if e.inner {
			e.buf = append(e.buf, ',')
		}
		e.inner = true
		e.buf = append(appendJSONString(e.buf, h.Path[strings.LastIndexByte(h.Path, '/')+1:]), ':')
	}
	switch h.Type {
	case TypeDirectory:
		e.buf = append(e.buf, `{"type":"directory","entries":{`...)
		e.depth++
		e.inner = false
	case TypeSymlink:
		e.buf = append(e.buf, `{"type":"symlink","target":`...)
		e.buf = append(appendJSONString(e.buf, h.Target), '}')
	case TypeRegular:
		e.buf = strconv.AppendInt(append(e.buf, `{"type":"regular","size":`...), h.Size, 10)
		e.buf = strconv.AppendBool(append(e.buf, `,"executable":`...), h.Executable)
		if h.Offset > 0 {
			e.buf = strconv.AppendInt(append(e.buf, `,"narOffset":`...), h.Offset, 10)
		}
		e.buf = append(e.buf, '}')
	}
}

// clashes returns what tells, of each path in turn, whether it becomes that of another when what is not UTF-8 is replaced,
// or lies below one that does.
func clashes(entries iter.Seq2[*Header, error]) (skip func(path string) bool, err error) {
	taken := make(map[string]bool) // by paths that are not UTF-8, with that replaced
	left := maxReplaced
	for h, err := range entries {
		if err != nil {
			return nil, err
		}
		if !utf8.ValidString(h.Path) {
			if left -= len(h.Path); left < 0 {
				break
			}
			taken[string([]rune(h.Path))] = false
		}
	}
	if len(taken) == 0 && left >= 0 {
		return func(string) bool { return false }, nil
	}
	for h, err := range entries { // entries that keep their name come first
		if err != nil {
			return nil, err
		}
		if _, ok := taken[h.Path]; ok {
			taken[h.Path] = true
		}
	}
	left, below := maxReplaced, ""
	return func(path string) bool {
		if utf8.ValidString(path) {
			return false
		}
		if left < 0 {
			return true
		}
		if left -= len(path); left < 0 || below != "" && strings.HasPrefix(path, below) {
			return true
		}
		replaced := string([]rune(path))
		if taken[replaced] {
			below = path + "/"
			return true
		}
		taken[replaced] = true
		return false
	}, nil
}

// appendJSONString appends s as a JSON string.
func appendJSONString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			dst = append(dst, '\\', byte(r))
		case r < ' ':
			dst = append(dst, `\u00`...)
			dst = append(dst, hex[r>>4], hex[r&15])
		default:
			dst = utf8.AppendRune(dst, r)
		}
	}
	return append(dst, '"')
}
