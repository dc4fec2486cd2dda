// Package catalogtest has what every catalog must pass.
package catalogtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"firn/internal/catalog"
	"firn/internal/memo"
	"firn/nix"
)

// A Clock is what a catalog under test takes the time from.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// NewClock returns a clock that stands still.
func NewClock() *Clock { return &Clock{now: time.Unix(1_800_000_000, 0).UTC()} }

func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the clock.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// Test checks what the port promises. open opens an empty catalog that has its time from a clock.
func Test(t *testing.T, open func(testing.TB, *Clock) catalog.Catalog) {
	for _, test := range []struct {
		name string
		run  func(*suite)
	}{
		{"caches", (*suite).caches},
		{"tokens", (*suite).tokens},
		{"SSH keys", (*suite).sshKeys},
		{"notes", (*suite).notes},
		{"NARs", (*suite).nars},
		{"NARs that are refused", (*suite).refusedNARs},
		{"NARs of little", (*suite).bareNARs},
		{"damaged NARs", (*suite).damaged},
		{"missing packs", (*suite).missing},
		{"uploads", (*suite).uploads},
		{"packs of several NARs", (*suite).sharedPacks},
		{"listings of several NARs", (*suite).sharedListings},
		{"uploads of NARs that are there", (*suite).uploadsOfKnown},
		{"uses of chunks", (*suite).usesOfChunks},
		{"NARs built on chunks", (*suite).builtNARs},
		{"awaited paths", (*suite).awaitedPaths},
		{"dangling references", (*suite).danglingReferences},
		{"paths on a basis", (*suite).bases},
		{"cycles that are closed at once", (*suite).racedCycles},
		{"references", (*suite).references},
		{"paths", (*suite).paths},
		{"paths that are refused", (*suite).refusedPaths},
		{"all of a path", (*suite).wholePaths},
		{"signatures of what is elsewhere", (*suite).endorsements},
		{"paths in order", (*suite).order},
		{"deletions", (*suite).deletions},
		{"deletions of what is referred to", (*suite).referredDeletions},
		{"deletions of what files tell of", (*suite).fileDeletions},
		{"deletions while others publish", (*suite).racedDeletions},
		{"signatures", (*suite).signatures},
		{"paths that are withheld", (*suite).replaceWithheld},
		{"debug info", (*suite).debug},
		{"files", (*suite).files},
		{"updates of files", (*suite).updates},
		{"updates of files at once", (*suite).racedUpdates},
		{"sweeps", (*suite).sweeps},
		{"packs that are soon swept", (*suite).leavingPacks},
		{"sweeps of uploads", (*suite).sweepUploads},
		{"sweeps of a few", (*suite).sweepLimit},
		{"thin packs", (*suite).thinPacks},
		{"moves", (*suite).moves},
		{"retired packs", (*suite).retiredPacks},
		{"rewritten packs", (*suite).rewrittenPacks},
		{"moves that come too late", (*suite).lateMoves},
		{"deleting a cache", (*suite).deleteCache},
		{"versions", (*suite).versions},
		{"many writers", (*suite).many},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &suite{T: t, clock: NewClock()}
			s.c = open(t, s.clock)
			test.run(s)
		})
	}
}

type suite struct {
	*testing.T
	clock *Clock
	c     catalog.Catalog
}

func sum(text string) catalog.Sum { return sha256.Sum256([]byte(text)) }

func (s *suite) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *suite) want(err, target error) {
	s.Helper()
	if !errors.Is(err, target) {
		s.Errorf("error %v, want %v", err, target)
	}
}

func (s *suite) equal(got, want any) {
	s.Helper()
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b nix.SecretKey) bool { return a.Reveal() == b.Reveal() }),
		cmp.Comparer(func(a, b nix.StorePath) bool { return a == b }), cmp.Comparer(func(a, b nix.Hash) bool { return a == b }),
		cmp.Comparer(func(a, b nix.Signature) bool { return a == b }), cmp.Comparer(func(a, b nix.ContentAddress) bool { return a == b })); diff != "" {
		s.Errorf("-want +got:\n%s", diff)
	}
}

func (s *suite) cache(name string) catalog.CacheID {
	s.Helper()
	c := &catalog.Cache{Name: name, StoreDir: nix.DefaultStoreDir, Sources: []string{catalog.SourceDepot}, Created: s.clock.Now()}
	s.ok(s.c.AddCache(s.Context(), c))
	return c.ID
}

// nar adds a NAR of one shared chunk of its own, and those of others, under an upload if cache is not 0.
func (s *suite) nar(name string, cache catalog.CacheID, others ...string) (catalog.NARID, *catalog.NewNAR) {
	s.Helper()
	n := newNAR(name, cache, others...)
	id, added, err := s.c.AddNAR(s.Context(), n)
	s.ok(err)
	if !added {
		s.Errorf("NAR %s is not added", name)
	}
	return id, n
}

func (s *suite) caches() {
	key, err := nix.GenerateKey("a-1")
	s.ok(err)
	a := &catalog.Cache{Name: "a", StoreDir: "/x/store", Sources: []string{catalog.SourceLocal, catalog.SourceDepot}, Priority: 7, Private: true,
		Hosts: []string{"a.example", "b.example"}, AllowMissingReferences: true, Keys: []nix.SecretKey{key}, Created: s.clock.Now()}
	s.ok(s.c.AddCache(s.Context(), a))
	b := &catalog.Cache{Name: "b", StoreDir: nix.DefaultStoreDir, Sources: []string{catalog.SourceDepot}, Created: s.clock.Now()}
	s.ok(s.c.AddCache(s.Context(), b))
	all, err := s.c.Caches(s.Context())
	s.ok(err)
	// None of something may come back as nil or as empty.
	for _, c := range append(all, b) {
		c.Hosts, c.Keys = append([]string{}, c.Hosts...), append([]nix.SecretKey{}, c.Keys...)
	}
	s.equal(all, []*catalog.Cache{a, b})
	s.want(s.c.AddCache(s.Context(), &catalog.Cache{Name: "a"}), catalog.ErrConflict)
	s.want(s.c.AddCache(s.Context(), &catalog.Cache{Name: "c", Hosts: []string{"b.example"}}), catalog.ErrConflict)
	wasA, wasB := *a, *b
	b.Hosts, b.Priority = []string{"b.example"}, 3
	s.want(s.c.SetCache(s.Context(), &wasB, b), catalog.ErrConflict)
	a.Hosts = []string{"a.example"}
	s.ok(s.c.SetCache(s.Context(), &wasA, a))
	s.ok(s.c.SetCache(s.Context(), &wasB, b))
	// Who has read it before does not undo that.
	open := wasA
	open.Private = false
	s.want(s.c.SetCache(s.Context(), &wasA, &open), catalog.ErrChanged)
	for _, stale := range []func(*catalog.Cache){
		func(c *catalog.Cache) { c.Name = "x" },
		func(c *catalog.Cache) { c.StoreDir = "/y/store" },
		func(c *catalog.Cache) { c.Sources = c.Sources[:1] },
		func(c *catalog.Cache) { c.Priority++ },
		func(c *catalog.Cache) { c.Private = false },
		func(c *catalog.Cache) { c.Hosts = nil },
		func(c *catalog.Cache) { c.AllowMissingReferences = false },
		func(c *catalog.Cache) { c.Keys = nil },
	} {
		old := *a
		stale(&old)
		s.want(s.c.SetCache(s.Context(), &old, a), catalog.ErrChanged)
	}
	all, err = s.c.Caches(s.Context())
	s.ok(err)
	if len(all) != 2 || all[1].Priority != 3 || !slices.Equal(all[1].Hosts, b.Hosts) || !slices.Equal(all[0].Hosts, a.Hosts) {
		s.Errorf("caches %+v, %+v", all[0], all[1])
	}
	s.want(s.c.SetCache(s.Context(), b, &catalog.Cache{ID: 999, Name: "x"}), catalog.ErrNotFound)
	s.want(s.c.SetCache(s.Context(), b, &catalog.Cache{ID: b.ID, Name: "a"}), catalog.ErrConflict)
	// The moment at which it was made stays, and what was refused has taken no host.
	s.ok(s.c.SetCache(s.Context(), b, &catalog.Cache{ID: b.ID, Name: "z", Hosts: []string{"z.example"}, Created: s.clock.Now().Add(time.Hour)}))
	s.want(s.c.AddCache(s.Context(), &catalog.Cache{Name: "d", Hosts: []string{"d.example", "a.example"}}), catalog.ErrConflict)
	s.ok(s.c.AddCache(s.Context(), &catalog.Cache{Name: "b", Hosts: []string{"d.example", "b.example"}}))
	all, err = s.c.Caches(s.Context())
	s.ok(err)
	if len(all) != 3 || all[1].Name != "b" || all[2].Name != "z" || !all[2].Created.Equal(s.clock.Now()) {
		s.Errorf("caches %+v, %+v", all[1], all[2])
	}
	s.want(s.c.DeleteCache(s.Context(), 999), catalog.ErrNotFound)
}

// noteUses checks when a credential was used last: look returns that, and what names the
// credential.
func (s *suite) noteUses(name string, look func() (time.Time, catalog.Use)) {
	s.Helper()
	used, u := look()
	if !used.IsZero() {
		s.Errorf("%s was used at %v before it was used", name, used)
	}
	now := s.clock.Now()
	// One that is gone keeps none of the others from being noted.
	gone := catalog.Use{Token: sum("gone"), At: now}
	for _, test := range []struct{ at, want time.Time }{{now, now}, {now.Add(-time.Minute), now}, {now.Add(time.Minute), now.Add(time.Minute)}} {
		u.At = test.at
		s.ok(s.c.NoteUses(s.Context(), []catalog.Use{gone, u}))
		if used, _ := look(); !used.Equal(test.want) {
			s.Errorf("%s was used at %v, want %v", name, used, test.want)
		}
	}
}

func (s *suite) tokens() {
	t := &catalog.Token{Name: "ci", Hash: sum("secret"), Created: s.clock.Now(), Expires: s.clock.Now().Add(time.Hour), Grants: []catalog.Grant{{Pattern: "main", Rights: 3}, {Pattern: "x*", Rights: 1}}}
	s.ok(s.c.AddToken(s.Context(), t))
	got, err := s.c.TokenByHash(s.Context(), sum("secret"))
	s.ok(err)
	s.equal(got, t)
	s.want(s.c.AddToken(s.Context(), &catalog.Token{Name: "ci", Hash: sum("other")}), catalog.ErrConflict)
	s.want(s.c.AddToken(s.Context(), &catalog.Token{Name: "other", Hash: sum("secret")}), catalog.ErrConflict)
	s.ok(s.c.AddToken(s.Context(), &catalog.Token{Name: "b", Hash: sum("b"), Created: s.clock.Now()}))
	all, err := s.c.Tokens(s.Context())
	s.ok(err)
	if len(all) != 2 || all[0].Name != "b" || !all[0].Expires.IsZero() {
		s.Errorf("tokens %+v", all)
	}
	s.clock.Advance(2 * time.Hour)
	got, err = s.c.TokenByHash(s.Context(), sum("secret"))
	s.ok(err)
	s.equal(got, t) // expired, and there
	s.noteUses("ci", func() (time.Time, catalog.Use) {
		got, err := s.c.TokenByHash(s.Context(), sum("secret"))
		s.ok(err)
		return got.Used, catalog.Use{Token: sum("secret")}
	})
	s.ok(s.c.RevokeToken(s.Context(), "ci"))
	s.want(s.c.RevokeToken(s.Context(), "ci"), catalog.ErrNotFound)
	_, err = s.c.TokenByHash(s.Context(), sum("secret"))
	s.want(err, catalog.ErrNotFound)
	s.ok(s.c.AddToken(s.Context(), &catalog.Token{Name: "ci", Hash: sum("secret"), Created: s.clock.Now()}))
}

func (s *suite) sshKeys() {
	k := &catalog.SSHKey{
		Name: "ci", Key: []byte("key\x00"), Created: s.clock.Now(), Expires: s.clock.Now().Add(time.Hour),
		Grants: []catalog.Grant{{Pattern: "main", Rights: 3}, {Pattern: "x*", Rights: 1}},
	}
	s.ok(s.c.AddSSHKey(s.Context(), k))
	got, err := s.c.SSHKey(s.Context(), []byte("key\x00"))
	s.ok(err)
	s.equal(got, k)
	s.want(s.c.AddSSHKey(s.Context(), &catalog.SSHKey{Name: "ci", Key: []byte("other")}), catalog.ErrConflict)
	s.want(s.c.AddSSHKey(s.Context(), &catalog.SSHKey{Name: "other", Key: []byte("key\x00")}), catalog.ErrConflict)
	b := &catalog.SSHKey{Name: "b", Key: []byte("b"), Authority: true, Users: []string{"alice", "bob"}, Created: s.clock.Now()}
	s.ok(s.c.AddSSHKey(s.Context(), b))
	all, err := s.c.SSHKeys(s.Context())
	s.ok(err)
	if len(all) != 2 {
		s.Fatalf("keys %+v", all)
	}
	s.equal(all[0], b)
	s.clock.Advance(2 * time.Hour)
	got, err = s.c.SSHKey(s.Context(), k.Key)
	s.ok(err)
	s.equal(got, k) // expired, and there
	before := s.c.Version(s.Context())
	s.noteUses("ci", func() (time.Time, catalog.Use) {
		got, err := s.c.SSHKey(s.Context(), k.Key)
		s.ok(err)
		return got.Used, catalog.Use{SSHKey: k.Key}
	})
	s.ok(s.c.RevokeSSHKey(s.Context(), "ci"))
	if before.Hit(s.c.Version(s.Context())) {
		s.Error("a key was revoked, and the version is the same")
	}
	s.want(s.c.RevokeSSHKey(s.Context(), "ci"), catalog.ErrNotFound)
	_, err = s.c.SSHKey(s.Context(), k.Key)
	s.want(err, catalog.ErrNotFound)
	s.ok(s.c.AddSSHKey(s.Context(), &catalog.SSHKey{Name: "ci", Key: k.Key, Created: s.clock.Now()}))
}

func (s *suite) notes() {
	lease := &catalog.Note{Key: "lease", Expires: s.clock.Now().Add(time.Minute), Value: []byte("a")}
	_, err := s.c.Note(s.Context(), "lease")
	s.want(err, catalog.ErrNotFound)
	s.ok(s.c.AddNote(s.Context(), lease))
	s.want(s.c.AddNote(s.Context(), &catalog.Note{Key: "lease"}), catalog.ErrConflict)
	got, err := s.c.Note(s.Context(), "lease")
	s.ok(err)
	s.equal(got, lease)
	s.clock.Advance(time.Minute)
	_, err = s.c.Note(s.Context(), "lease")
	s.want(err, catalog.ErrNotFound)
	lease.Expires = lease.Expires.Add(time.Minute)
	s.ok(s.c.AddNote(s.Context(), lease))
	s.ok(s.c.DeleteNote(s.Context(), "lease"))
	s.ok(s.c.DeleteNote(s.Context(), "lease"))

	before := s.c.Version(s.Context())
	for _, value := range []string{"one", "two"} {
		s.ok(s.c.PutNote(s.Context(), &catalog.Note{Key: "k", Value: []byte(value)}))
	}
	if before.Hit(s.c.Version(s.Context())) {
		s.Error("a note was put, and the version is the same")
	}
	s.clock.Advance(1000 * time.Hour)
	got, err = s.c.Note(s.Context(), "k")
	s.ok(err)
	s.equal(got, &catalog.Note{Key: "k", Value: []byte("two")})

	s.ok(s.c.PutNote(s.Context(), &catalog.Note{Key: strings.Repeat("k", catalog.MaxNoteKey), Value: make([]byte, catalog.MaxNote)}))
	s.want(s.c.PutNote(s.Context(), &catalog.Note{Key: strings.Repeat("k", catalog.MaxNoteKey+1)}), catalog.ErrTooLarge)
	s.want(s.c.PutNote(s.Context(), &catalog.Note{Key: "large", Value: make([]byte, catalog.MaxNote+1)}), catalog.ErrTooLarge)

	// One of many at once gets it.
	won := make(chan bool)
	for range 8 {
		go func() {
			err := s.c.AddNote(s.Context(), &catalog.Note{Key: "race"})
			if err != nil && !errors.Is(err, catalog.ErrConflict) {
				s.Error(err)
			}
			won <- err == nil
		}()
	}
	n := 0
	for range 8 {
		if <-won {
			n++
		}
	}
	if n != 1 {
		s.Errorf("%d of 8 got the lease", n)
	}
}

func errOf[A, B any](_ A, _ B, err error) error { return err }

func (s *suite) files() {
	a, b := s.cache("a"), s.cache("b")
	s.ok(s.c.PutFile(s.Context(), a, &catalog.File{Key: "log/x", Content: []byte("one")}))
	content, err := s.c.File(s.Context(), a, "log/x")
	s.ok(err)
	s.equal(string(content), "one")
	s.ok(s.c.PutFile(s.Context(), a, &catalog.File{Key: "log/x", Content: []byte("three")}))
	content, err = s.c.File(s.Context(), a, "log/x")
	s.ok(err)
	s.equal(string(content), "three")
	_, err = s.c.File(s.Context(), b, "log/x")
	s.want(err, catalog.ErrNotFound)
	s.want(s.c.PutFile(s.Context(), 999, &catalog.File{Key: "log/x"}), catalog.ErrGone)
	s.ok(s.c.PutFile(s.Context(), a, &catalog.File{Key: "log/empty"}))
	for i := range 410 {
		s.ok(s.c.PutFile(s.Context(), b, &catalog.File{Key: fmt.Sprintf("k/%03d", i)}))
	}
	s.ok(s.c.PutFile(s.Context(), b, &catalog.File{Key: "j"}))
	s.ok(s.c.PutFile(s.Context(), b, &catalog.File{Key: "l"}))
	var keys []string
	for key, err := range s.c.AllFiles(s.Context(), b, "k/") {
		s.ok(err)
		keys = append(keys, key)
	}
	if len(keys) != 410 || !slices.IsSorted(keys) || keys[0] != "k/000" {
		s.Errorf("%d keys", len(keys))
	}
}

func (s *suite) updates() {
	a := s.cache("a")
	f := &catalog.File{Key: "k", Content: []byte("not this")}
	update := func(cache catalog.CacheID, old, content string, result error) error {
		s.Helper()
		return s.c.UpdateFile(s.Context(), cache, f, catalog.Basis{}, func(got []byte) ([]byte, error) {
			if string(got) != old {
				s.Errorf("the old content is %q, want %q", got, old)
			}
			if content == "nil" {
				return nil, result
			}
			return []byte(content), result
		})
	}
	want := func(content string) {
		s.Helper()
		got, err := s.c.File(s.Context(), a, "k")
		s.ok(err)
		s.equal(string(got), content)
	}
	refused := errors.New("refused")
	if err := update(a, "", "x", refused); err != refused {
		s.Errorf("an update that fails: %v, want its own error", err)
	}
	_, err := s.c.File(s.Context(), a, "k")
	s.want(err, catalog.ErrNotFound)
	s.ok(update(a, "", "nil", nil))
	_, err = s.c.File(s.Context(), a, "k")
	s.want(err, catalog.ErrNotFound)
	s.want(update(999, "", "x", nil), catalog.ErrGone)
	s.ok(update(a, "", "one", nil))
	want("one")
	s.ok(update(a, "one", "two", nil))
	s.ok(update(a, "two", "nil", nil))
	s.ok(update(a, "two", "two", nil))
	if err := update(a, "two", "three", refused); err != refused {
		s.Errorf("an update that fails: %v, want its own error", err)
	}
	want("two")

	// A file that is there and empty is not one that is missing.
	s.ok(s.c.PutFile(s.Context(), a, &catalog.File{Key: "k"}))
	s.ok(s.c.UpdateFile(s.Context(), a, f, catalog.Basis{}, func(old []byte) ([]byte, error) {
		if old == nil || len(old) > 0 {
			s.Errorf("the content of an empty file is %#v", old)
		}
		return []byte("three"), nil
	}))
	want("three")
}

// racedUpdates all take effect, each once.
func (s *suite) racedUpdates() {
	a := s.cache("a")
	const writers, each = 8, 20
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				if err := s.c.UpdateFile(s.Context(), a, &catalog.File{Key: "k"}, catalog.Basis{}, func(old []byte) ([]byte, error) {
					return append(bytes.Clone(old), 'x'), nil
				}); err != nil {
					s.Error(err)
				}
			}
		})
	}
	wg.Wait()
	content, err := s.c.File(s.Context(), a, "k")
	s.ok(err)
	s.equal(len(content), writers*each)
}

func (s *suite) versions() {
	s.ok(s.c.Check(s.Context()))
	a := s.cache("a")
	before := s.c.Version(s.Context())
	if before.Freshness == memo.Unknown {
		return
	}
	if !before.Hit(s.c.Version(s.Context())) {
		s.Error("the version changes by itself")
	}
	s.ok(s.c.PutFile(s.Context(), a, &catalog.File{Key: "k"}))
	if before.Hit(s.c.Version(s.Context())) {
		s.Error("the version stays after a commit")
	}
}

func (s *suite) many() {
	a := s.cache("a")
	var group sync.WaitGroup
	ctx := context.WithoutCancel(s.Context())
	for i := range 16 {
		group.Go(func() {
			for j := range 8 {
				name := fmt.Sprint("n", i, "-", j)
				id, _, err := s.c.AddNAR(ctx, newNAR(name, a))
				if err == nil {
					_, _, err = s.c.Publish(ctx, a, path(name, id, name), nil, Unchecked())
				}
				if err == nil {
					_, err = s.c.Path(ctx, a, storePath(name).Hash())
				}
				// One that fails does no harm to those that share its transaction.
				if _, _, gone := s.c.AddNAR(ctx, newNAR("x"+name, a, "gone")); !errors.Is(gone, catalog.ErrGone) {
					s.Errorf("error %v, want ErrGone", gone)
				}
				if err != nil {
					s.Error(err)
				}
			}
		})
	}
	group.Wait()
	if n := len(s.all(a, false)); n != 128 {
		s.Errorf("%d paths, want 128", n)
	}
}
