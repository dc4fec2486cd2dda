package nix

import (
	"slices"
	"strconv"
)

// Compression names how the NAR of a narinfo is compressed. The zero Compression means None.
type Compression string

// The compressions of Nix, under the names that it gives them (compression-algo.hh).
const (
	None   Compression = "none"
	Brotli Compression = "br"
	Bzip2  Compression = "bzip2"
	Gzip   Compression = "gzip"
	LZ4    Compression = "lz4"
	Lzip   Compression = "lzip"
	LZMA   Compression = "lzma"
	XZ     Compression = "xz"
	Zstd   Compression = "zstd"
	// libarchive knows these too. No cache is known to use them.
	Compress Compression = "compress"
	Grzip    Compression = "grzip"
	Lrzip    Compression = "lrzip"
	Lzop     Compression = "lzop"
)

// Known reports whether Nix knows the compression. Since 2.35 it refuses narinfos with any other.
func (c Compression) Known() bool {
	switch c {
	case None, Brotli, Bzip2, Gzip, LZ4, Lzip, LZMA, XZ, Zstd, Compress, Grzip, Lrzip, Lzop:
		return true
	}
	return false
}

// NARInfo is a path info together with where its NAR is, and how that is compressed:
// what a cache answers to <path hash>.narinfo.
type NARInfo struct {
	PathInfo
	URL         string // of the compressed NAR, relative to the cache; without spaces and control characters
	Compression Compression
	FileHash    Hash  // of the compressed NAR; zero: not given
	FileSize    int64 // bytes of the compressed NAR; 0: not given
}

// AppendText appends the narinfo as text, in the order in which Nix writes it.
// Fields that are not given are left out, except that empty references are
// written as "References: " with the trailing space: Nix's reader takes the value
// from two bytes after the colon, and would otherwise swallow the line that follows.
func (n *NARInfo) AppendText(dst []byte) []byte {
	dst = slices.Grow(dst, n.TextSize())
	dst = append(dst, "StorePath: "...)
	dst = append(dst, n.Path.path...)
	dst = append(dst, "\nURL: "...)
	dst = append(dst, n.URL...)
	dst = append(dst, "\nCompression: "...)
	if n.Compression == "" {
		dst = append(dst, None...)
	} else {
		dst = append(dst, n.Compression...)
	}
	if !n.FileHash.IsZero() {
		dst = n.FileHash.Append(append(dst, "\nFileHash: "...))
	}
	if n.FileSize > 0 {
		dst = strconv.AppendInt(append(dst, "\nFileSize: "...), n.FileSize, 10)
	}
	dst = n.NARHash.Append(append(dst, "\nNarHash: "...))
	dst = strconv.AppendInt(append(dst, "\nNarSize: "...), n.NARSize, 10)
	dst = append(dst, "\nReferences: "...)
	for i, ref := range n.References {
		if i > 0 {
			dst = append(dst, ' ')
		}
		dst = append(dst, ref.Base()...)
	}
	if !n.Deriver.IsZero() {
		dst = append(dst, "\nDeriver: "...)
		dst = append(dst, n.Deriver.Base()...)
	}
	for _, sig := range n.Signatures {
		dst = sig.Append(append(dst, "\nSig: "...))
	}
	if !n.CA.IsZero() {
		dst = n.CA.Append(append(dst, "\nCA: "...))
	}
	return AppendFields(append(dst, '\n'), n.Extra)
}

// TextSize returns a size in bytes that the text is not longer than, and hardly shorter.
func (n *NARInfo) TextSize() int {
	const labels = 160       // bytes of the field names
	dir := len(n.Path.Dir()) // of the references, too, which are written without it
	hash := len("fixed:git:sha512:") + nix32Len(maxHashSize)
	size := labels + len(n.Path.path) + len(n.URL) + len(n.Compression) + 3*hash + 2*maxDecimalLen + len(n.Deriver.path)
	for _, ref := range n.References {
		size += len(ref.path) - dir // without the slash, and with a space
	}
	for _, sig := range n.Signatures {
		size += len("\nSig: :") + len(sig.Name) + len(sig.text)
	}
	for _, f := range n.Extra {
		size += f.size()
	}
	return size
}
