package nar

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// Listing says what is in a NAR and where: the `.ls` file of a binary cache.
//
// Source: A version-1 listing is what Nix writes beside a NAR with write-nar-listing=true.
type Listing struct {
	// Entries are all objects in the order of the NAR: the root first, a directory right before what lies in it.
	Entries []Header
}

// MarshalJSON returns the JSON form, see [Listing.AppendJSON].
func (l *Listing) MarshalJSON() ([]byte, error) { return l.AppendJSON(nil), nil }

// AppendJSON appends the JSON form to dst:
//
//	{"version":1,"root":{"type":"directory","entries":{
//		"hello":{"type":"regular","size":6,"executable":false,"narOffset":400},
//		"link":{"type":"symlink","target":"hello"}}}}
//
// JSON is UTF-8 and names are bytes: each byte that is not UTF-8 becomes U+FFFD,
// and an entry that would then be named like an earlier one of its directory is left out.
func (l *Listing) AppendJSON(dst []byte) []byte {
	dst = append(dst, `{"version":1,"root":`...)
	depth := 0 // of directories that are open
	for i := range l.Entries {
		h := &l.Entries[i]
		if i > 0 {
			for d := strings.Count(h.Path, "/") + 1; depth > d; depth-- {
				dst = append(dst, "}}"...)
			}
			if dst[len(dst)-1] != '{' {
				dst = append(dst, ',')
			}
			dst = appendJSONString(dst, h.Path[strings.LastIndexByte(h.Path, '/')+1:])
			dst = append(dst, ':')
		}
		switch h.Type {
		case TypeDirectory:
			dst = append(dst, `{"type":"directory","entries":{`...)
			depth++
		case TypeSymlink:
			dst = append(dst, `{"type":"symlink","target":`...)
			dst = appendJSONString(dst, h.Target)
			dst = append(dst, '}')
		case TypeRegular:
			dst = append(dst, `{"type":"regular","size":`...)
			dst = strconv.AppendInt(dst, h.Size, 10)
			dst = append(dst, `,"executable":`...)
			dst = strconv.AppendBool(dst, h.Executable)
			if h.Offset > 0 {
				dst = append(dst, `,"narOffset":`...)
				dst = strconv.AppendInt(dst, h.Offset, 10)
			}
			dst = append(dst, '}')
		}
	}
	for ; depth > 0; depth-- {
		dst = append(dst, "}}"...)
	}
	return append(dst, '}')
}

// appendJSONString appends s as a JSON string.
func appendJSONString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			dst = append(dst, '\\', byte(r))
		case r < 0x20:
			dst = append(dst, '\\', 'u', '0', '0', hex[r>>4], hex[r&15])
		default:
			dst = utf8.AppendRune(dst, r)
		}
	}
	return append(dst, '"')
}
