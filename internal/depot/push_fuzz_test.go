package depot_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"testing"

	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/internal/catalog/sqlite/sqlitetest"
	"firn/internal/depot"
	"firn/internal/depot/blob/blobtest"
	"firn/nix"
)

// What a client may do, as bits of the last argument of FuzzPush.
const (
	fuzzHash    = 1 << iota // it says the right hash and size of its NAR, in its narinfos too
	fuzzURL                 // its narinfos have the URL of its upload
	fuzzPartial             // the cache allows missing references when the first narinfo comes
	fuzzTwice               // it uploads twice
	fuzzKnown               // it says beforehand which hash its NAR has
)

// FuzzPush has a client upload a NAR under a URL to a public cache, and publish two narinfos. Beside that cache is a private one that has something.
// What is refused is refused as the client's fault and changes nothing; what is taken is served as it was sent;
// and nothing makes a cycle, damages what was there, or gives away what the private cache has.
func FuzzPush(f *testing.F) {
	secret := archive(f, dir(""), file("secret", text(300_000, 1)))
	there := archive(f, file("", text(2000, 2)))
	info := func(n *nix.NARInfo) []byte { return n.AppendText(nil) }
	narinfo := func(of []byte, url string, refs ...nix.StorePath) *nix.NARInfo {
		p := *infoOf(f, of)
		p.References = nix.SortPaths(refs)
		return &nix.NARInfo{PathInfo: p, URL: url, Compression: nix.None}
	}
	paths := func(of []byte) nix.StorePath { return infoOf(f, of).Path }
	self := archive(f, dir(""), file("a", []byte(reference(1, 1))), program("b", text(3000, 3)), link("c", reference(2, 1)))
	for _, of := range [][]byte{there, secret, self, archive(f, dir("")), archive(f, dir(""), dir("lib"), file("lib/x", nil))} {
		for _, url := range []string{"nar/x.nar", "", "nar/" + infoOf(f, secret).NARHash.Nix32() + ".nar", "../nar/x.nar", "nar/" + paths(secret).Hash().String() + ".nar"} {
			for _, how := range []uint8{0, fuzzHash | fuzzURL, fuzzHash | fuzzURL | fuzzPartial | fuzzTwice, fuzzKnown} {
				f.Add(of, url, info(narinfo(of, "nar/x.nar", paths(there))), info(narinfo(secret, url, paths(of), paths(secret))), how)
			}
		}
	}
	f.Add(self[:len(self)-8], "nar/x.nar", info(narinfo(self, "nar/x.nar")), []byte("StorePath: x\n"), uint8(fuzzHash|fuzzURL))
	f.Add(append(bytes.Clone(self), 0), "nar/x.nar", info(narinfo(self, "nar/x.nar")), []byte(nil), uint8(fuzzKnown))
	a, b := narinfo(self, "nar/x.nar", paths(secret)), narinfo(secret, "nar/x.nar", paths(self))
	f.Add(self, "nar/x.nar", info(a), info(b), uint8(fuzzHash|fuzzURL|fuzzPartial))

	f.Fuzz(func(tt *testing.T, sent []byte, url string, first, second []byte, how uint8) {
		t := newTesterOn(tt, sqlitetest.Open(tt, nil), blobtest.NewMemory(), depot.Options{})
		hidden, private := t.cache("private")
		known := map[nix.PathHash][]byte{t.push(there).Path.Hash(): there}
		(&tester{TB: tt, catalog: t.catalog, blobs: t.blobs, depot: t.depot, record: hidden, View: private}).push(secret)

		u := cache.Upload{URL: url}
		if how&fuzzKnown != 0 {
			u.NARHash, u.NARSize = nix.SHA256Sum(sha256.Sum256(sent)), int64(len(sent))
		}
		received := false
		for range 1 + how&fuzzTwice/fuzzTwice {
			u.NAR = bytes.NewReader(sent)
			before, _ := t.packs()
			r, err := t.Receive(t.Context(), u)
			if !t.refused("Receive", err) {
				received = true
				if want := nix.SHA256Sum(sha256.Sum256(sent)); r.NARHash != want || r.NARSize != int64(len(sent)) {
					t.Fatalf("received %v, %d bytes", r.NARHash, r.NARSize)
				}
				t.wantReceived(r, sent)
			} else if after, _ := t.packs(); len(after) != len(before) {
				t.Error("what was refused left a pack")
			}
		}
		for i, text := range [][]byte{first, second} {
			n, err := nix.ParseNARInfoStrict(nix.DefaultStoreDir, text)
			if err != nil {
				continue
			}
			if how&fuzzHash != 0 {
				n.NARHash, n.NARSize, n.FileHash, n.FileSize = nix.SHA256Sum(sha256.Sum256(sent)), int64(len(sent)), nix.Hash{}, 0
			}
			if how&fuzzURL != 0 {
				n.URL = url
			}
			c, err := cache.New([]cache.Source{t.View}, cache.Options{Name: "main", Sink: cache.SinkOf(t.View), AllowMissingReferences: how&fuzzPartial != 0 && i == 0})
			if err != nil {
				t.Fatal(err)
			}
			var upload cache.Received // none, where the narinfo has come back
			if !cache.IsOwnURL(n.URL, &n.PathInfo) {
				if upload, err = c.Received(t.Context(), n.URL); errors.Is(err, cache.ErrNotFound) || t.refused("Received", err) {
					continue
				}
			}
			added, err := c.Publish(t.Context(), &n.PathInfo, upload)
			if upload == (cache.Received{}) && errors.Is(err, cache.ErrNotFound) {
				continue
			}
			if t.refused("Publish", err) || !added {
				continue
			}
			if !received || !bytes.Equal(sent, secret) && n.NARHash == infoOf(t, secret).NARHash {
				t.Fatalf("%s was published with the NAR %v, which was not uploaded", n.Path, n.NARHash)
			}
			known[n.Path.Hash()] = sent
		}
		t.wantServed(known)
		t.wantNoCycle()
		t.wantClean()
		if _, err := private.PathInfo(t.Context(), infoOf(t, secret).Path.Hash()); err != nil {
			t.Errorf("what the private cache had: %v", err)
		}
		if _, err := t.OpenReceived(t.Context(), cache.Received{NARHash: infoOf(t, secret).NARHash}); !bytes.Equal(sent, secret) && !errors.Is(err, cache.ErrNotFound) {
			t.Errorf("what only the private cache has is open: %v", err)
		}
	})
}

// refused reports whether something failed, which must be the fault of the client.
func (t *tester) refused(what string, err error) bool {
	t.Helper()
	if err != nil && !errors.Is(err, cache.ErrInvalid) && !errors.Is(err, cache.ErrTooLarge) && !errors.Is(err, cache.ErrConflict) {
		t.Errorf("%s failed with %v", what, err)
	}
	return err != nil
}

// wantReceived checks that an upload can be had as it was sent.
func (t *tester) wantReceived(r cache.Received, sent []byte) {
	t.Helper()
	n, err := t.OpenReceived(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	var got bytes.Buffer
	if err := n.WriteRange(t.Context(), &got, 0, n.Size()); err != nil || !bytes.Equal(got.Bytes(), sent) {
		t.Errorf("an upload of %d bytes is served as %d, %v", len(sent), got.Len(), err)
	}
}

// wantServed checks that these paths are all that is published, each with its NAR.
func (t *tester) wantServed(want map[nix.PathHash][]byte) {
	t.Helper()
	count := 0
	for info, err := range t.Paths(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		count++
		nar, ok := want[info.Path.Hash()]
		if !ok {
			t.Errorf("%s is published", info.Path)
			continue
		}
		n, err := t.OpenNAR(t.Context(), info)
		if err != nil {
			t.Error(err)
			continue
		}
		var got bytes.Buffer
		if err := n.WriteRange(t.Context(), &got, 0, n.Size()); err != nil || !bytes.Equal(got.Bytes(), nar) {
			t.Errorf("%s: %d bytes, %v, want %d", info.Path, got.Len(), err, len(nar))
		}
		n.Close()
		if err := t.WriteListing(t.Context(), info, &got); err != nil {
			t.Error(err)
		}
	}
	if count != len(want) {
		t.Errorf("%d paths are published, want %d", count, len(want))
	}
}

// wantNoCycle checks that no path leads to itself over another one.
func (t *tester) wantNoCycle() {
	t.Helper()
	refs := make(map[nix.PathHash][]nix.PathHash)
	for p, err := range t.catalog.AllPaths(t.Context(), catalog.CacheID(t.record.ID)) {
		if err != nil {
			t.Fatal(err)
		}
		own := p.Info.Path.Hash()
		refs[own] = nil
		for _, ref := range p.Info.References {
			if ref.Hash() != own {
				refs[own] = append(refs[own], ref.Hash())
			}
		}
	}
	for left := len(refs); left > 0; left = len(refs) { // take away, again and again, what refers to nothing that is left
		for path, to := range refs {
			stays := false
			for _, ref := range to {
				_, there := refs[ref]
				stays = stays || there
			}
			if !stays {
				delete(refs, path)
			}
		}
		if len(refs) == left {
			t.Fatalf("%d paths make a cycle", left)
		}
	}
}
