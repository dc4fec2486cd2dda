package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"firn/nix"
)

// randomRanges is how many ranges of NARs are asked for in all.
const randomRanges = 1000

// Every path of the Debian store and every awkward one is served as Nix itself has it.
func TestEveryPath(t *testing.T) {
	t.Parallel()
	store := debian(t)
	m := debianMachine(t)
	s := startFirn(m)
	paths := slices.Concat(store.Packages, store.Awkward, []nix.StorePath{store.Everything})

	query := []string{"nix-store", "--query", "--hash"}
	for _, p := range paths {
		query = append(query, p.String())
	}
	hashes := lines(m.run(query...))
	if len(hashes) != len(paths) {
		t.Fatalf("Nix knows %d hashes of %d paths", len(hashes), len(paths))
	}
	random := rand.New(rand.NewPCG(1, 2))
	ranges := make([]int, len(paths))
	for range randomRanges {
		ranges[random.IntN(len(ranges))]++
	}
	for i, p := range paths {
		t.Run(p.Name(), func(t *testing.T) {
			t.Parallel()
			info, err := s.narInfo(p)
			if err != nil {
				t.Fatal(err)
			}
			if got := info.NARHash.String(); got != hashes[i] {
				t.Errorf("NarHash is %s, in the database %s", got, hashes[i])
			}
			nar, err := os.Create(filepath.Join(t.TempDir(), "nar"))
			if err != nil {
				t.Fatal(err)
			}
			defer nar.Close()
			if err := s.fetchNAR(info, nar); err != nil {
				t.Fatal(err)
			}
			sameDump(t, m, p, nar)
			checkListing(t, s, p, store.Path(p), nar)
			random := rand.New(rand.NewPCG(3, uint64(i)))
			for range ranges[i] {
				checkRange(t, s, info, nar, random)
			}
		})
	}
}

// sameDump checks that a NAR is what nix-store --dump writes.
func sameDump(t *testing.T, m *machine, p nix.StorePath, nar io.ReaderAt) {
	t.Helper()
	cmd := m.command(t.Context(), "nix-store", "--dump", p.String())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	dump, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := sameBytes(dump, io.NewSectionReader(nar, 0, 1<<62)); err != nil {
		t.Errorf("nix-store --dump: %v", err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("nix-store --dump: %v\n%s", err, stderr.Bytes())
	}
}

// buffers are pairs of buffers to compare with: there are 100,000 files to read.
var buffers = sync.Pool{New: func() any { return new([2][256 << 10]byte) }}

// sameBytes reads want and got to the end and says where they first differ.
func sameBytes(want, got io.Reader) error {
	pair := buffers.Get().(*[2][256 << 10]byte)
	defer buffers.Put(pair)
	a, b := pair[0][:], pair[1][:]
	for off := int64(0); ; {
		n, errA := io.ReadFull(want, a)
		m, errB := io.ReadFull(got, b)
		if !bytes.Equal(a[:n], b[:m]) {
			return fmt.Errorf("it differs within %d bytes after %d", len(a), off)
		}
		off += int64(n)
		if errA != nil || errB != nil {
			for _, err := range []error{errA, errB} {
				if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
					return err
				}
			}
			return nil
		}
	}
}

// checkRange checks that a random range of a NAR is the same part of the whole.
func checkRange(t *testing.T, s *server, info *nix.NARInfo, nar io.ReaderAt, random *rand.Rand) {
	t.Helper()
	const maxLength = 1 << 20
	first := random.Int64N(info.NARSize)
	last := min(first+random.Int64N(maxLength), info.NARSize-1)
	asked := fmt.Sprintf("bytes=%d-%d", first, last)
	switch random.IntN(8) {
	case 0: // to the end
		first = max(first, info.NARSize-maxLength)
		last = info.NARSize - 1
		asked = fmt.Sprintf("bytes=%d-", first)
	case 1: // from the end
		last = info.NARSize - 1
		first = max(first, info.NARSize-maxLength)
		asked = fmt.Sprintf("bytes=-%d", last-first+1)
	}
	res, err := s.get(info.URL, "Range", asked)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	want := fmt.Sprintf("bytes %d-%d/%d", first, last, info.NARSize)
	if got := res.Header.Get("Content-Range"); res.StatusCode != http.StatusPartialContent || got != want {
		t.Fatalf("Range %s: %s, Content-Range %q, want %q", asked, res.Status, got, want)
	}
	if err := sameBytes(io.NewSectionReader(nar, first, last-first+1), res.Body); err != nil {
		t.Errorf("Range %s: %v", asked, err)
	}
}

// A listed is an object in a listing, as other tools read it.
type listed struct {
	Type       string
	Size       int64
	Executable bool
	NAROffset  int64
	Target     string
	Entries    map[string]listed
}

// checkListing checks that the listing of p has what is in tree, at the places where nar has it.
func checkListing(t *testing.T, s *server, p nix.StorePath, tree string, nar io.ReaderAt) {
	t.Helper()
	var listing struct {
		Version int
		Root    listed
	}
	text, err := s.fetch(p.Hash().String() + ".ls")
	if err == nil {
		err = json.Unmarshal(text, &listing)
	}
	if err != nil || listing.Version != 1 {
		t.Fatalf("listing of version %d: %v", listing.Version, err)
	}
	if err := listing.Root.check(tree, nar); err != nil {
		t.Errorf("listing: %v", err)
	}
}

// check returns the first difference between what is listed and what is there.
func (l listed) check(path string, nar io.ReaderAt) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	switch info.Mode().Type() {
	case fs.ModeDir:
		return l.checkDirectory(path, nar)
	case fs.ModeSymlink:
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		if l.Type != "symlink" || l.Target != asUTF8(target) {
			return fmt.Errorf("%q is a symlink to %q, listed as %q %q", path, target, l.Type, l.Target)
		}
		return nil
	default:
		if l.Type != "regular" || l.Size != info.Size() || l.Executable != (info.Mode().Perm()&0o100 != 0) {
			return fmt.Errorf("%q is a file with %v, %d bytes, listed as %+v", path, info.Mode(), info.Size(), l)
		}
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		if err := sameBytes(file, io.NewSectionReader(nar, l.NAROffset, l.Size)); err != nil {
			return fmt.Errorf("%q at %d of the NAR: %w", path, l.NAROffset, err)
		}
		return nil
	}
}

func (l listed) checkDirectory(path string, nar io.ReaderAt) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	if l.Type != "directory" || len(l.Entries) != len(entries) {
		return fmt.Errorf("%q is a directory of %d entries, listed as %q of %d", path, len(entries), l.Type, len(l.Entries))
	}
	for _, entry := range entries {
		child, ok := l.Entries[asUTF8(entry.Name())]
		if !ok {
			return fmt.Errorf("%q in %q is not listed", entry.Name(), path)
		}
		if err := child.check(filepath.Join(path, entry.Name()), nar); err != nil {
			return err
		}
	}
	return nil
}

// asUTF8 is what becomes of a name in JSON: each byte that is not UTF-8 is U+FFFD.
func asUTF8(s string) string { return string([]rune(s)) }

// A machine without Nix is told so, and what runs there is a cache without paths.
func TestNothingToServe(t *testing.T) {
	t.Parallel()
	m := newMachine(t, systemNix())
	s := startFirn(m)
	if got := s.text("nix-cache-info"); !strings.Contains(got, "StoreDir: /nix/store\n") {
		t.Errorf("nix-cache-info is %q", got)
	}
	res, err := s.get(strings.Repeat("0", 32) + ".narinfo")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusNotFound {
		t.Errorf("a narinfo is answered with %s", res.Status)
	}
	if !strings.Contains(s.announced, "nothing to serve yet") {
		t.Errorf("it started with %q", s.announced)
	}
	_, err = m.try(firnPath, "serve", "--listen", "127.0.0.1:0", "--state", m.dir, "--store", m.dir+"/absent")
	if err == nil || !strings.Contains(err.Error(), "firn: open store") {
		t.Errorf("a named store that is not there: %v", err)
	}
	var exit interface{ ExitCode() int }
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("exit code of %v, want 1", err)
	}
}
