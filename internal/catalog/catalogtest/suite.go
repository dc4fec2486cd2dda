// Package catalogtest has what every database of the ports of package catalog must pass.
package catalogtest

import (
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"firn/internal/catalog"
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

// A Catalog is all ports of package catalog.
type Catalog struct {
	catalog.Database
	catalog.Caches
	catalog.Tokens
	catalog.SSHKeys
	catalog.Uses
	catalog.Notes
	catalog.Leases
}

// Of returns the ports of a database that has them all.
func Of(db interface {
	catalog.Database
	catalog.Caches
	catalog.Tokens
	catalog.SSHKeys
	catalog.Uses
	catalog.Notes
	catalog.Leases
}) Catalog {
	return Catalog{db, db, db, db, db, db, db}
}

// Test checks what the ports promise. open opens an empty catalog that has its time from a clock.
func Test(t *testing.T, open func(testing.TB, *Clock) Catalog) {
	for _, test := range []struct {
		name string
		run  func(*suite)
	}{
		{"caches", (*suite).caches},
		{"tokens", (*suite).tokens},
		{"SSH keys", (*suite).sshKeys},
		{"notes", (*suite).notes},
		{"leases", (*suite).leases},
		{"leases taken at once", (*suite).racedLeases},
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
	c     Catalog
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

func (s *suite) caches() {
	key, err := nix.GenerateKey("a-1")
	s.ok(err)
	a := &catalog.Cache{Name: "a", StoreDir: "/x/store", Sources: []string{catalog.SourceLocal, catalog.SourceDepot}, Priority: 7, Private: true,
		Hosts: []string{"a.example", "b.example"}, AllowMissingReferences: true, Keys: []nix.SecretKey{key}, Created: s.clock.Now()}
	s.ok(s.c.AddCache(s.Context(), a))
	b := &catalog.Cache{Name: "b", StoreDir: nix.DefaultStoreDir, Sources: []string{catalog.SourceDepot}, Created: s.clock.Now()}
	s.ok(s.c.AddCache(s.Context(), b))
	all, err := s.c.AllCaches(s.Context())
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
	all, err = s.c.AllCaches(s.Context())
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
	all, err = s.c.AllCaches(s.Context())
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
	all, err := s.c.AllTokens(s.Context())
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
	all, err := s.c.AllSSHKeys(s.Context())
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

func (s *suite) leases() {
	one, err := s.c.TakeLease(s.Context(), "sweep", time.Minute)
	s.ok(err)
	_, err = s.c.TakeLease(s.Context(), "sweep", time.Minute)
	s.want(err, catalog.ErrConflict)
	other, err := s.c.TakeLease(s.Context(), "rewrite", time.Minute)
	s.ok(err)
	s.ok(s.c.ReleaseLease(s.Context(), one))
	s.ok(s.c.ReleaseLease(s.Context(), one))
	two, err := s.c.TakeLease(s.Context(), "sweep", time.Minute)
	s.ok(err)
	// One that has ended, or was given back, takes nothing from the next.
	s.ok(s.c.ReleaseLease(s.Context(), one))
	_, err = s.c.TakeLease(s.Context(), "sweep", time.Minute)
	s.want(err, catalog.ErrConflict)
	s.clock.Advance(time.Minute)
	three, err := s.c.TakeLease(s.Context(), "sweep", time.Second)
	s.ok(err)
	s.ok(s.c.ReleaseLease(s.Context(), two))
	_, err = s.c.TakeLease(s.Context(), "sweep", time.Minute)
	s.want(err, catalog.ErrConflict)
	s.ok(s.c.ReleaseLease(s.Context(), three))
	s.ok(s.c.ReleaseLease(s.Context(), other))
	_, err = s.c.TakeLease(s.Context(), strings.Repeat("x", catalog.MaxNoteKey+1), time.Minute)
	s.want(err, catalog.ErrTooLarge)
}

// racedLeases are held by one at a time.
func (s *suite) racedLeases() {
	var holders, taken atomic.Int64
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 20 {
				l, err := s.c.TakeLease(s.Context(), "one", time.Minute)
				if errors.Is(err, catalog.ErrConflict) {
					continue
				}
				if err != nil {
					s.Error(err)
					return
				}
				taken.Add(1)
				if holders.Add(1) != 1 {
					s.Error("two have the lease")
				}
				holders.Add(-1)
				if err := s.c.ReleaseLease(s.Context(), l); err != nil {
					s.Error(err)
				}
			}
		})
	}
	all.Wait()
	if taken.Load() == 0 {
		s.Error("none has had the lease")
	}
}
