package debstore

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
)

// awkwardPaths returns paths with what is rare in packages and goes wrong first.
func awkwardPaths(opts Options) []*storePath {
	var paths []*storePath
	add := func(name string, write func(at string) error) {
		sp := newStorePath(name, "", opts.Generation)
		sp.write = write
		paths = append(paths, sp)
	}
	add("empty-directory", func(at string) error { return os.Mkdir(at, 0o755) })
	add("file", func(at string) error { return os.WriteFile(at, []byte("one file\n"), 0o644) })
	add("empty-file", func(at string) error { return os.WriteFile(at, nil, 0o644) })
	add("executable", func(at string) error { return os.WriteFile(at, []byte("#!/bin/sh\necho firn\n"), 0o755) })
	add("symlink", func(at string) error { return os.Symlink("../nowhere/at all", at) })
	add("name+with-all._that?may=be", func(at string) error { return os.WriteFile(at, []byte("in a name\n"), 0o644) })
	add("names", writeNames)
	add("sizes", writeSizes)
	add("deep", writeDeep)
	add("many-files", writeMany)
	add("large", func(at string) error { return writeLarge(at, opts.LargeFile) })
	return paths
}

// writeNames writes files whose names are any bytes but NUL and slash.
func writeNames(at string) error {
	if err := os.Mkdir(at, 0o755); err != nil {
		return err
	}
	for _, name := range []string{
		"+?= ", " ", "new\nline", "tab\tand\rreturn", "non-UTF-8 \xff\xfe", "\x01", "\xc3\x28",
		"...", ".hidden", "-", "--option", "*", "$(id)", `back\slash`, `"quotes'`, "%2e%2e%2f", "a;b|c&d", "<img src=x>",
		"caf\u00e9", "cafe\u0301", "雪", // one name in two Unicode forms: both are legal at once
		"A", "a", "name~nix~case~hack~1",
		strings.Repeat("n", 255),
	} {
		if err := os.WriteFile(filepath.Join(at, name), []byte(name), 0o644); err != nil {
			return err
		}
	}
	if err := os.Symlink(strings.Repeat("t/", 2047)+"t", filepath.Join(at, "longest target")); err != nil {
		return err
	}
	if err := os.Symlink("\xff\n?", filepath.Join(at, "odd target")); err != nil {
		return err
	}
	return os.Mkdir(filepath.Join(at, "empty directory"), 0o755)
}

// writeSizes writes files of the sizes where padding, buffers and reading ahead change.
func writeSizes(at string) error {
	if err := os.Mkdir(at, 0o755); err != nil {
		return err
	}
	sizes := []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17}
	for _, kib := range []int{4, 32, 64, 128, 256, 512, 1024, 4096} {
		sizes = append(sizes, kib<<10-1, kib<<10, kib<<10+1)
	}
	for i, size := range sizes {
		mode := os.FileMode(0o644)
		if i%2 == 1 {
			mode = 0o755
		}
		if err := os.WriteFile(filepath.Join(at, fmt.Sprint(size)), noise(uint64(size), size), mode); err != nil {
			return err
		}
	}
	return nil
}

// writeDeep writes directories 40 deep, with a file beside each.
func writeDeep(at string) error {
	for i := range 40 {
		if err := os.Mkdir(at, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(at, "file"), fmt.Append(nil, i), 0o644); err != nil {
			return err
		}
		at = filepath.Join(at, "d")
	}
	return nil
}

// writeMany writes 45,000 files of up to 2 KiB, 20,000 of them in one directory.
func writeMany(at string) error {
	write := func(dir string, n int) error {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for i := range n {
			text := noise(uint64(n+i), i*31%2048)
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%x", i)), text, 0o644); err != nil {
				return err
			}
		}
		return nil
	}
	if err := write(filepath.Join(at, "flat"), 20_000); err != nil {
		return err
	}
	for i := range 250 {
		if err := write(filepath.Join(at, "nested", fmt.Sprint(i)), 100); err != nil {
			return err
		}
	}
	return nil
}

// writeLarge writes one file, every other MiB of it a hole, so that it costs half its size on disk.
func writeLarge(at string, size int64) error {
	f, err := os.Create(at)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	const block = 1 << 20
	for off := int64(0); off < size; off += 2 * block {
		n := int(min(block, size-off))
		if _, err := f.WriteAt(noise(uint64(off), n), off); err != nil {
			return err
		}
	}
	return f.Close()
}

// noise returns n bytes that do not compress, the same for the same seed.
func noise(seed uint64, n int) []byte {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	b := make([]byte, n)
	// A ChaCha8 never fails to read.
	_, _ = io.ReadFull(rand.NewChaCha8(key), b)
	return b
}
