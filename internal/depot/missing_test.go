package depot_test

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/internal/depot"
	"firn/internal/depot/blob"
	blobdir "firn/internal/depot/blob/dir"
	"firn/internal/depot/index"
	"firn/internal/memo"
	"firn/nix"
	"firn/nix/nar"
)

// A house is a depot whose packs are files.
type house struct {
	*tester
	dir  string // of the packs
	logs *bytes.Buffer
}

func newHouse(tb testing.TB) *house {
	h := &house{dir: filepath.Join(tb.TempDir(), "packs"), logs: new(bytes.Buffer)}
	blobs, err := blobdir.Open(h.dir, blobdir.Options{Make: true})
	if err != nil {
		tb.Fatal(err)
	}
	h.tester = newTesterOn(tb, newCatalog(tb), blobs, depot.Options{Logger: slog.New(slog.NewTextHandler(h.logs, nil))})
	return h
}

// again is the same depot after a restart.
func (h *house) again() {
	h.Helper()
	if err := h.depot.Close(); err != nil {
		h.Fatal(err)
	}
	h.depot = depot.New(h.catalog, index.Of(h.catalog), h.blobs, depot.Options{Logger: slog.New(slog.NewTextHandler(h.logs, nil))})
	h.record, h.View = h.main()
}

// file returns the path of the pack that was added since the others.
func (h *house) file(others ...string) string {
	h.Helper()
	names, _ := h.packs()
	for _, name := range names {
		path := filepath.Join(h.dir, name[:2], name)
		if !contains(others, path) {
			return path
		}
	}
	h.Fatal("no pack was added")
	return ""
}

func contains(all []string, one string) bool {
	for _, each := range all {
		if each == one {
			return true
		}
	}
	return false
}

// get reads a NAR in one of its forms, and returns how many bytes came.
func (h *house) get(info *nix.PathInfo, compressed bool) (n int, err error) {
	open := h.OpenNAR
	if compressed {
		open = framesOf(h.View)
	}
	a, err := open(h.Context(), info)
	if err != nil {
		return 0, err
	}
	defer a.Close()
	var got bytes.Buffer
	err = a.WriteRange(h.Context(), &got, 0, a.Size())
	return got.Len(), err
}

func (h *house) tick() {
	h.Helper()
	if err := h.depot.Tick(h.Context()); err != nil {
		h.Error(err)
	}
}

func (h *house) wantGone(infos ...*nix.PathInfo) {
	h.Helper()
	for _, info := range infos {
		_, err := h.PathInfo(h.Context(), info.Path.Hash())
		wantError(h, "PathInfo", err, cache.ErrNotFound)
		_, err = h.Received(h.Context(), "nar/"+info.NARHash.Nix32()+".nar")
		wantError(h, "Received", err, cache.ErrNotFound)
	}
}

// spoil does something to the file of a pack.
var spoil = map[string]func(path string) error{
	"removed":   os.Remove,
	"emptied":   func(path string) error { return os.Truncate(path, 0) },
	"truncated": func(path string) error { return os.Truncate(path, 100_000) },
	"zeroed": func(path string) error {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		return os.WriteFile(path, make([]byte, info.Size()), 0o600)
	},
}

// TestSpoiledPack: whatever became of a pack under a running depot, the first who asks for a NAR
// that needs it is told that there is none, as long as nothing was sent; what needs it is withheld
// then, and what does not is served; and it is whole when it is back, or sent again.
func TestSpoiledPack(tt *testing.T) {
	for how, spoil := range spoil {
		for _, compressed := range []bool{false, true} {
			if how == "zeroed" && compressed {
				continue // frames are sent as they are
			}
			for _, restarted := range []bool{false, true} {
				tt.Run(how, func(tt *testing.T) {
					h := newHouse(tt)
					shared := noise(1_500_000, 1)
					first := archive(h, dir(""), file("a", shared), file("b", text(200_000, 2)))
					firstInfo := h.push(first)
					pack := h.file()
					// It begins with what another pack has, and lacks the rest.
					second := archive(h, dir(""), file("0", text(300_000, 3)), file("a", shared))
					secondInfo := h.push(second)
					whole := archive(h, file("", noise(50_000, 4)))
					wholeInfo := h.push(whole)
					before, err := os.ReadFile(pack)
					if err != nil {
						h.Fatal(err)
					}
					if restarted {
						h.again() // nothing is open
					} else {
						h.wantNAR(firstInfo, first)
					}
					if err := spoil(pack); err != nil {
						h.Fatal(err)
					}
					n, err := h.get(firstInfo, compressed)
					if how == "removed" && !restarted && err == nil {
						h.again() // until then, who has it open reads it
						n, err = h.get(firstInfo, compressed)
					}
					if how == "zeroed" {
						wantError(h, "the first", err, nar.ErrMismatch)
						n = 0 // the head of a NAR may be in a frame of another pack
					} else {
						wantError(h, "the first", err, cache.ErrNotFound)
					}
					if n > 0 {
						h.Errorf("%d bytes were sent", n)
					}
					h.wantGone(firstInfo)
					if how != "zeroed" {
						h.wantGone(secondInfo)
						if !strings.Contains(h.logs.String(), filepath.Base(pack)) {
							h.Errorf("the log does not name the pack:\n%s", h.logs)
						}
						h.tick()
						h.wantGone(firstInfo, secondInfo)
					}
					h.wantNAR(wholeInfo, whole)

					if how != "zeroed" { // which nobody sees where it is not read
						// One is sent again, and builds on nothing of that pack.
						h.push(second)
						h.wantNAR(secondInfo, second)
					}
					// The other is whole with its pack.
					if err := os.WriteFile(pack, before, 0o600); err != nil {
						h.Fatal(err)
					}
					if how == "zeroed" {
						if _, err := h.depot.Verify(h.Context(), depot.VerifyOptions{Repair: true}); err != nil {
							h.Error(err)
						}
					} else {
						h.tick()
					}
					h.wantNAR(firstInfo, first)
					h.wantNAR(secondInfo, second)
					h.wantClean()
				})
			}
		}
	}
}

// TestPushOntoMissingPack: what is pushed is not built on a pack that is not there, though that was
// not found out yet.
func TestPushOntoMissingPack(tt *testing.T) {
	h := newHouse(tt)
	shared := noise(1_500_000, 1)
	first := archive(h, file("", shared))
	firstInfo := h.push(first)
	if err := os.Remove(h.file()); err != nil {
		h.Fatal(err)
	}
	second := archive(h, dir(""), file("a", shared))
	info := h.push(second)
	h.wantNAR(info, second)
	h.wantGone(firstInfo)

	// Nor is the same NAR taken for one that is there.
	third := archive(h, file("", noise(700_000, 2)))
	h.push(third)
	names, _ := h.packs()
	for _, name := range names {
		if err := os.Remove(filepath.Join(h.dir, name[:2], name)); err != nil {
			h.Fatal(err)
		}
	}
	if _, err := h.Receive(h.Context(), cache.Upload{NAR: bytes.NewReader(third), NARHash: infoOf(h, third).NARHash}); err != nil {
		h.Fatal(err)
	}
	h.wantNAR(infoOf(h, third), third)
	// And what lost its pack since it was sent is not published.
	fourth := archive(h, file("", noise(100_000, 3)))
	others := []string{h.file()}
	if _, err := h.Receive(h.Context(), cache.Upload{NAR: bytes.NewReader(fourth)}); err != nil {
		h.Fatal(err)
	}
	if err := os.Remove(h.file(others...)); err != nil {
		h.Fatal(err)
	}
	_, err := h.Publish(h.Context(), infoOf(h, fourth), cachetest.Unchecked())
	wantError(h, "Publish", err, cache.ErrNotFound)
}

// TestMissingPacksAreFound: a tick after the start finds what is missing, before anybody asks for
// it.
func TestMissingPacksAreFound(tt *testing.T) {
	h := newHouse(tt)
	info := h.push(archive(h, file("", noise(50_000, 1))))
	if err := os.Remove(h.file()); err != nil {
		h.Fatal(err)
	}
	h.tick()
	h.wantGone(info)
}

// TestAbsentPacks: where the directory of the packs is not the one that it was, as when a disk is
// not mounted, nothing is withheld, swept, or taken: all who ask are told to come again, and
// everything is there once it is back.
func TestAbsentPacks(tt *testing.T) {
	for how, replace := range map[string]func(dir string) error{
		"gone":       func(string) error { return nil },
		"empty":      func(dir string) error { return os.Mkdir(dir, 0o700) },
		"other data": func(dir string) error { return os.MkdirAll(filepath.Join(dir, "ab"), 0o700) },
	} {
		tt.Run(how, func(tt *testing.T) {
			h := newHouse(tt)
			first := archive(h, file("", noise(1_000_000, 1)))
			info := h.push(first)
			h.again()
			away := h.dir + ".away"
			if err := os.Rename(h.dir, away); err != nil {
				h.Fatal(err)
			}
			if err := replace(h.dir); err != nil {
				h.Fatal(err)
			}
			for _, compressed := range []bool{false, true} {
				n, err := h.get(info, compressed)
				wantError(h, "a NAR", err, cache.ErrUnavailable)
				if n > 0 || errors.Is(err, cache.ErrNotFound) {
					h.Errorf("%d bytes, %v", n, err)
				}
			}
			_, err := h.PathInfo(h.Context(), info.Path.Hash())
			wantError(h, "PathInfo", err, cache.ErrUnavailable)
			wantError(h, "Check", h.Check(h.Context()), cache.ErrUnavailable)
			if h.Version(h.Context()).Freshness != memo.Unknown {
				h.Error("what is answered may be remembered")
			}
			_, err = h.PathInfo(h.Context(), infoOf(h, nil).Path.Hash())
			wantError(h, "PathInfo of what never was there", err, cache.ErrNotFound)
			for _, again := range [][]byte{first, archive(h, file("", noise(100_000, 2)))} {
				_, err = h.Receive(h.Context(), cache.Upload{NAR: bytes.NewReader(again)})
				wantError(h, "Receive", err, cache.ErrUnavailable)
			}
			wantError(h, "Tick", h.depot.Tick(h.Context()), blob.ErrAbsent)
			_, err = h.depot.Verify(h.Context(), depot.VerifyOptions{Repair: true})
			wantError(h, "Verify", err, blob.ErrAbsent)
			if n := strings.Count(h.logs.String(), "the packs are not there"); n != 1 {
				h.Errorf("the log says so %d times:\n%s", n, h.logs)
			}
			err = filepath.WalkDir(h.dir, func(path string, e fs.DirEntry, err error) error {
				if err == nil && !e.IsDir() && path != h.dir {
					h.Errorf("%s was written where the disk is to be mounted", path)
				}
				return nil
			})
			if err != nil {
				h.Error(err)
			}

			if err := os.RemoveAll(h.dir); err != nil {
				h.Fatal(err)
			}
			if err := os.Rename(away, h.dir); err != nil {
				h.Fatal(err)
			}
			h.wantNAR(info, first)
			if _, err := h.PathInfo(h.Context(), info.Path.Hash()); err != nil {
				h.Error(err)
			}
			if h.Version(h.Context()).Freshness != memo.Current {
				h.Error("nothing is remembered")
			}
			h.tick()
			h.wantClean()
			h.wantNAR(h.push(archive(h, file("", noise(100_000, 2)))), archive(h, file("", noise(100_000, 2))))
		})
	}
}

// TestUnreadablePack: a pack that cannot be opened or read is not taken for one that is missing.
func TestUnreadablePack(tt *testing.T) {
	h := newHouse(tt)
	first := archive(h, file("", noise(1_000_000, 1)))
	info := h.push(first)
	h.again()
	pack := h.file()
	if err := os.Rename(pack, pack+"2"); err != nil {
		h.Fatal(err)
	}
	// No file, so neither read nor missing.
	if err := os.Symlink(filepath.Base(pack), pack); err != nil {
		h.Fatal(err)
	}
	for _, compressed := range []bool{false, true} {
		_, err := h.get(info, compressed)
		wantError(h, "a NAR", err, cache.ErrUnavailable)
	}
	_ = h.depot.Tick(h.Context())
	if err := os.Rename(pack+"2", pack); err != nil {
		h.Fatal(err)
	}
	h.wantNAR(info, first)
}

// TestDamageFoundElsewhere: what another process found to be damaged, as firn verify --repair does,
// is in the log of the server, once, and in what it counts.
func TestDamageFoundElsewhere(tt *testing.T) {
	h := newHouse(tt)
	h.push(archive(h, file("", noise(300_000, 1))))
	h.push(archive(h, file("", noise(300_000, 2))))
	pack, err := os.OpenFile(h.file(), os.O_RDWR, 0)
	if err != nil {
		h.Fatal(err)
	}
	defer pack.Close()
	if _, err := pack.WriteAt([]byte("other bytes"), 150_000); err != nil {
		h.Fatal(err)
	}
	logged := func(want int) {
		h.Helper()
		h.tick()
		if n := strings.Count(h.logs.String(), `msg="NARs are damaged`); n != want {
			h.Errorf("the log says %d times that NARs are damaged, want %d:\n%s", n, want, h.logs)
		}
	}
	logged(0)
	other := depot.New(h.catalog, index.Of(h.catalog), h.blobs, depot.Options{})
	report, err := other.Verify(h.Context(), depot.VerifyOptions{Repair: true})
	if err != nil || len(report.Damaged) != 1 {
		h.Fatalf("found %+v, %v", report, err)
	}
	if err := other.Close(); err != nil {
		h.Error(err)
	}
	logged(1)
	logged(1)
	if counts, err := h.catalog.Count(h.Context()); err != nil || counts.Withheld != 1 {
		h.Errorf("counted %+v, %v", counts, err)
	}
	if !strings.Contains(h.logs.String(), "nars=1") {
		h.Errorf("the log does not count them:\n%s", h.logs)
	}
	// A server that starts later says so too.
	h.again()
	logged(2)
}
