package cache

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"firn/nix"
)

// An Archive names the bytes of one NAR, as the URL of a narinfo does.
type Archive struct {
	Path        nix.PathHash
	NARHash     nix.Hash        // zero: whatever the path has now
	Compression nix.Compression // None, or else that of the source or of the encoder
}

func (a Archive) isCompressed() bool { return a.Compression != "" && a.Compression != nix.None }

// ArchiveInfo is what is known of the NAR that an [Archive] names.
type ArchiveInfo struct {
	*nix.PathInfo

	// Tag is for an entity tag: as long as it is the same, the bytes are.
	Tag string

	// FileTag is what the URL of a compressed NAR carries, so that it stands for these bytes only.
	// It is "" for one that is not compressed.
	FileTag string
}

// OpenNAR opens the NAR of a store path, and returns what is known of that.
// ErrNotFound if there is none with this NAR hash or in this compression.
// The context bounds the opening only. The caller closes the NAR; it may be [Unfinished].
func (c *Cache) OpenNAR(ctx context.Context, a Archive) (NAR, ArchiveInfo, error) {
	e, err := c.findArchive(ctx, a)
	if err != nil {
		return nil, ArchiveInfo{}, err
	}
	open := func(ctx context.Context) (NAR, error) { return e.from.OpenNAR(ctx, e.origin) }
	var n NAR
	fileTag := c.fileTag(e)
	switch from, kept := e.from.(Compressed); {
	case !a.isCompressed():
		n, err = open(ctx)
	case kept:
		n, fileTag, err = from.OpenCompressed(ctx, e.origin) // which may be another one by now
	default:
		n, err = c.encoder.Encode(ctx, e.origin, open)
	}
	if err != nil {
		return nil, ArchiveInfo{}, fmt.Errorf("open NAR of %s: %w", e.origin.Path, err)
	}
	return n, archiveInfo(e, a, fileTag), nil
}

// StatNAR returns the size in bytes of what OpenNAR would open, without beginning to compress it:
// known is false where the size is not known before that is done.
func (c *Cache) StatNAR(ctx context.Context, a Archive) (info ArchiveInfo, size int64, known bool, err error) {
	e, err := c.findArchive(ctx, a)
	if err != nil {
		return ArchiveInfo{}, 0, false, err
	}
	info = archiveInfo(e, a, c.fileTag(e))
	switch _, kept := e.from.(Compressed); {
	case !a.isCompressed():
		return info, e.origin.NARSize, true, nil
	case kept:
		return info, e.file.size, true, nil
	}
	size, known = c.encoder.Encoded(e.origin)
	return info, size, known, nil
}

// findArchive finds a NAR in the first source that has it. That the first source that has the path
// has another NAR of it, or that the path is not announced any more, does not keep clients from it:
// they remember narinfos for a month.
func (c *Cache) findArchive(ctx context.Context, a Archive) (*entry, error) {
	e, err := c.findNAR(ctx, a.Path)
	if err == nil {
		if err = c.fits(e, a); err == nil {
			return e, nil
		}
	}
	if a.NARHash.IsZero() || !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	found, all := first(c, func(s Source) (*entry, error) {
		info, err := c.soundInfo(ctx, s, a.Path)
		if err != nil {
			return nil, err
		}
		e := &entry{from: s, origin: withoutReferences(info)}
		if err := c.fits(e, a); err != nil {
			return nil, err
		}
		if able, ok := s.(Compressed); ok && a.isCompressed() {
			e.file.size, e.file.tag, err = able.StatCompressed(ctx, info)
		}
		return e, err
	})
	if errors.Is(all, ErrNotFound) {
		return nil, err
	}
	return found.value, all
}

// findNAR is find for those who need no narinfo, and may hold the entry for long, as a NAR takes
// its time: a large one is without what is large.
func (c *Cache) findNAR(ctx context.Context, hash nix.PathHash) (*entry, error) {
	e, err := c.find(ctx, hash)
	if err != nil || len(e.text) <= LargeInfo {
		return e, err
	}
	return &entry{from: e.from, origin: withoutReferences(e.origin), file: e.file}, nil
}

// fits returns ErrNotFound where the source of an entry does not have the NAR.
func (c *Cache) fits(e *entry, a Archive) error {
	switch {
	case !a.NARHash.IsZero() && a.NARHash != e.origin.NARHash:
		return fmt.Errorf("open NAR of %s: %w: it has another NAR hash", e.origin.Path, ErrNotFound)
	case a.isCompressed() && a.Compression != c.compression(e):
		return fmt.Errorf("open NAR of %s: %w: not compressed by %s here", e.origin.Path, ErrNotFound, a.Compression)
	}
	return nil
}

// compression returns how the NAR of a path can be had beside uncompressed, "" if not.
func (c *Cache) compression(e *entry) nix.Compression {
	if from, kept := e.from.(Compressed); kept {
		return from.Compression()
	}
	if c.encoder != nil {
		return c.encoder.Compression()
	}
	return ""
}

// fileTag returns the tag of the bytes of the compressed NAR of a path, "" if there is none.
func (c *Cache) fileTag(e *entry) string {
	switch _, kept := e.from.(Compressed); {
	case kept:
		return e.file.tag
	case c.encoder != nil:
		return c.encoder.Version()
	}
	return ""
}

func archiveInfo(e *entry, a Archive, fileTag string) ArchiveInfo {
	tag := e.origin.NARHash.Nix32()
	if !a.isCompressed() {
		return ArchiveInfo{e.origin, tag, ""}
	}
	return ArchiveInfo{e.origin, tag + "-" + fileTag, fileTag}
}

// IsOwnURL reports whether the narinfos of this server give a path this URL, or could, or did.
func IsOwnURL(url string, info *nix.PathInfo) bool {
	rest, ok := strings.CutPrefix(url, strings.TrimSuffix(narURL(info, ""), ".nar"))
	return ok && (rest == ".nar" || strings.HasPrefix(rest, "-") && strings.HasSuffix(rest, ".nar"+suffix(nix.Zstd)))
}

// narURL returns where the NAR of a path is, relative to the cache: with the tag of its bytes if it is
// compressed. Both hashes are in the name, so that the NAR can be found, and so that the URL never
// stands for other bytes.
func narURL(info *nix.PathInfo, fileTag string) string {
	url := append(make([]byte, 0, 128), "nar/"...)
	url = append(url, info.Path.Hash().String()...)
	url = append(url, '-')
	url = info.NARHash.AppendNix32(url)
	if fileTag != "" {
		url = append(append(url, '-'), fileTag...)
	}
	return string(append(url, ".nar"...))
}

// suffix is what the URL of a NAR ends in that is kept or made in this compression.
func suffix(c nix.Compression) string {
	if c == nix.Zstd {
		return ".zst"
	}
	return ""
}
